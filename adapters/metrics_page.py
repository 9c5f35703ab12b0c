"""The figures that a server of this program reports at ``/metrics``, in the text format of Prometheus.

Proxies are not used and redirections not followed: the key is for this server.
"""

import re
import urllib.error
import urllib.request
from http.client import HTTPException

from mlxk.application.ports.measuring import CompletionServer, ServerProbe
from mlxk.domain.errors import AccessDeniedError, NetworkError
from mlxk.domain.generation.request import EngineFigures
from mlxk.domain.monitoring import ServerReading, WatchedModel

_SECONDS = 5.0
"""How long a server may take to report its figures."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Has a redirection fail."""

    def redirect_request(self, *_arguments: object) -> None:
        """Follow none."""


class HttpServerProbe(ServerProbe):
    """Reads the page of metrics."""

    def read(self, server: CompletionServer) -> ServerReading:
        key = {} if server.api_key is None else {"Authorization": f"Bearer {server.api_key}"}
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirects())
        try:
            request = urllib.request.Request(f"{server.url}/metrics", headers=key)
            with direct.open(request, timeout=_SECONDS) as answer:
                body: bytes = answer.read(_LONGEST_METRICS)
            return _reading(server.url, metrics(body))
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in (401, 403):
                raise AccessDeniedError(f"the server wants another key (HTTP {error.code})") from error
            raise NetworkError(
                f"it does not report the figures that a server of this program does (HTTP {error.code})"
            ) from error
        except KeyError:
            raise NetworkError("it does not report the figures that a server of this program does") from None
        except (OSError, HTTPException) as error:
            reason = getattr(error, "reason", error)
            why = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
            raise NetworkError(f"the server cannot be asked: {why}") from error


_LONGEST_METRICS = 2**24
_METRIC = re.compile(r'(?P<name>\w+)(?:\{model="(?P<model>(?:[^"\\]|\\.)*)"\})? (?P<value>[0-9.eE+-]+)')

Metrics = dict[str, dict[str | None, float]]
"""Values by name and model; None for those that are of no single model."""


def metrics(body: bytes) -> Metrics:
    """Return the metrics of a page, except those with other labels than a model."""
    found: Metrics = {}
    for line in body.decode("utf-8", "replace").splitlines():
        match = _METRIC.fullmatch(line)
        if match:
            model = match["model"]
            name = None if model is None else re.sub(r"\\(.)", lambda each: {"n": "\n"}.get(each[1], each[1]), model)
            found.setdefault(match["name"], {})[name] = float(match["value"])
    return found


def _reading(url: str, values: Metrics) -> ServerReading:
    """Return what the metrics say.

    Raises:
        KeyError: They are those of another program, or of an early version.
    """

    def of_all(name: str) -> int:
        return int(values[f"mlxk_{name}"][None])

    def of_model(name: str, model: str | None) -> float | None:
        return values.get(f"mlxk_model_{name}", {}).get(model)

    engine = EngineFigures(
        running=of_all("answers_running"),
        waiting=of_all("answers_waiting"),
        prompt_tokens=of_all("engine_prompt_tokens_total") + of_all("engine_cached_tokens_total"),
        cached_tokens=of_all("engine_cached_tokens_total"),
        generated_tokens=of_all("engine_generated_tokens_total"),
        array_bytes=of_all("engine_memory_bytes"),
        kept_prompt_bytes=of_all("prefix_cache_bytes"),
        responding=bool(of_all("engine_responding")),
    )
    weights = values.get("mlxk_model_weight_bytes", {})
    models = (
        WatchedModel(name, int(size), bool(of_model("in_use", name)), of_model("tokens_per_second", name))
        for name, size in weights.items()
        if name is not None
    )
    return ServerReading(url, None, tuple(sorted(models, key=lambda each: each.name)), engine)
