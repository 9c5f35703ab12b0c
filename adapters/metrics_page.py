"""The figures that a server of this program reports at ``/metrics``, in the text format of Prometheus.

Proxies are not used and redirects not followed: the API key is for this server only.
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
"""Timeout of connecting and of each read."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Makes a redirect an ``HTTPError``."""

    def redirect_request(self, *_arguments: object) -> None:
        """Follow no redirect."""


class HttpServerProbe(ServerProbe):
    """Reads the metrics page."""

    def read(self, server: CompletionServer) -> ServerReading:
        headers = {} if server.api_key is None else {"Authorization": f"Bearer {server.api_key}"}
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirects())
        try:
            request = urllib.request.Request(f"{server.url}/metrics", headers=headers)
            with opener.open(request, timeout=_SECONDS) as response:
                body: bytes = response.read(_LONGEST_METRICS)
            return _reading(server.url, metrics(body))
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in (401, 403):
                raise AccessDeniedError(f"the server wants another key (HTTP {error.code})") from error
            raise NetworkError(
                f"it does not report the figures that a server of this program does (HTTP {error.code})"
            ) from error
        except (KeyError, ValueError, OverflowError):
            raise NetworkError("it does not report the figures that a server of this program does") from None
        except (OSError, HTTPException) as error:
            reason = getattr(error, "reason", error)
            why = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
            raise NetworkError(f"the server cannot be asked: {why}") from error


_LONGEST_METRICS = 2**24
_METRIC = re.compile(r'(?P<name>\w+)(?:\{model="(?P<model>(?:[^"\\]|\\.)*)"\})? (?P<value>[0-9.eE+-]+)')

Metrics = dict[str, dict[str | None, float]]
"""Values by metric name and model label; None where there is no label."""


def metrics(body: bytes) -> Metrics:
    """Return the metrics of a page that have no label, or a model label only."""
    found: Metrics = {}
    for line in body.decode("utf-8", "replace").splitlines():
        match = _METRIC.fullmatch(line)
        if match:
            model = match["model"]
            label = None if model is None else re.sub(r"\\(.)", lambda char: {"n": "\n"}.get(char[1], char[1]), model)
            found.setdefault(match["name"], {})[label] = float(match["value"])
    return found


def _reading(url: str, values: Metrics) -> ServerReading:
    """Return the metrics as a reading.

    Raises:
        KeyError: One is missing: the server is another program, or an early version.
    """

    def total(name: str) -> int:
        return int(values[f"mlxk_{name}"][None])

    def for_model(name: str, model: str | None) -> float | None:
        return values.get(f"mlxk_model_{name}", {}).get(model)

    engine = EngineFigures(
        running=total("answers_running"),
        waiting=total("answers_waiting"),
        prompt_tokens=total("engine_prompt_tokens_total") + total("engine_cached_tokens_total"),
        cached_tokens=total("engine_cached_tokens_total"),
        generated_tokens=total("engine_generated_tokens_total"),
        array_bytes=total("engine_memory_bytes"),
        kept_prompt_bytes=total("prefix_cache_bytes"),
        responding=bool(total("engine_responding")),
    )
    weights = values.get("mlxk_model_weight_bytes", {})
    models = (
        WatchedModel(name, int(size), bool(for_model("in_use", name)), for_model("tokens_per_second", name))
        for name, size in weights.items()
        if name is not None
    )
    return ServerReading(url, None, tuple(sorted(models, key=lambda model: model.name)), engine)
