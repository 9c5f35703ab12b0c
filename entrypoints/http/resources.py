"""Resources of no particular API: probes, metrics, prompt cache and documentation; and parts that resources share."""

import json
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from typing import Any

import attrs
import falcon

from mlxk import __version__
from mlxk.application.ports.system import Clock
from mlxk.application.ports.text_generator import EngineState, ResidentModel, TextGenerator
from mlxk.domain.errors import UnauthorizedError, ValidationError
from mlxk.domain.models.model import served_id
from mlxk.entrypoints.http.lifecycle import CONTENT_TYPE, ConcurrencyLimit, Metrics, ServerLifecycle
from mlxk.entrypoints.http.request_scope import caller_of
from mlxk.entrypoints.http.requests.body import read_fields


class Readable:
    """A resource with GET, and HEAD as GET without the body."""

    on_get: Callable[..., None]
    """Responds; takes the request, the response, and the path parameters of its route."""

    def on_head(self, request: falcon.Request, response: falcon.Response, **parts: str) -> None:
        """Respond as GET does; Falcon omits the body."""
        self.on_get(request, response, **parts)


def send_json(response: falcon.Response, document: object) -> None:
    """Set a JSON body."""
    response.content_type = "application/json"
    response.data = json.dumps(document, ensure_ascii=False).encode()


def page_size(request: falcon.Request, usual: int, most: int) -> int:
    """Return the query parameter ``limit``: entries of a list per page, ``usual`` without it.

    Raises:
        ValidationError: It is no whole number from 1 to ``most``.
    """
    limit = request.get_param("limit")
    if limit is None:
        return usual
    if not (limit.isascii() and limit.isdecimal() and len(limit) <= len(str(most)) and 1 <= int(limit) <= most):
        raise ValidationError.in_field("limit", f"must be a whole number from 1 to {most}")
    return int(limit)


class CacheStatsResource(Readable):
    """Statistics of cached prompts: of the caller's tenant, or of all with ``scope=all``."""

    def __init__(self, generator: TextGenerator) -> None:
        self._generator = generator

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """Report the sizes in memory and on disk.

        Raises:
            ValidationError: The scope is neither ``tenant`` nor ``all``.
            UnauthorizedError: ``scope=all`` needs the operator's key.
        """
        tenant = _scope(request)
        prompts = self._generator.kept_prompts(tenant)
        memory = attrs.asdict(prompts)
        del memory["disk"]
        disk = None if prompts.disk is None else attrs.asdict(prompts.disk)
        if disk is not None and tenant is not None:
            disk = {name: disk[name] for name in ("entries", "bytes", "limit_bytes")}  # other figures count all tenants
        scope = "all" if tenant is None else "tenant"
        response.set_header("Cache-Control", "no-store")
        send_json(response, {"object": "cache.stats", "scope": scope, "memory": memory, "disk": disk})


class CacheResetResource:
    """Clears cached prompts: of the caller's tenant, or of all with ``scope=all``."""

    def __init__(self, generator: TextGenerator) -> None:
        self._generator = generator

    def on_post(self, request: falcon.Request, response: falcon.Response) -> None:
        """Drop the prompts in memory and on disk.

        Raises:
            ValidationError: The scope is neither ``tenant`` nor ``all``, or the body has other fields.
            UnauthorizedError: ``scope=all`` needs the operator's key.
        """
        tenant = _scope(request, read_fields(request, "scope").get("scope"))
        self._generator.forget_prompts(tenant)
        send_json(response, {"object": "cache.reset", "scope": "all" if tenant is None else "tenant"})


def _scope(request: falcon.Request, in_body: object = None) -> str | None:
    """Return the tenant that a request is about, by the ``scope`` in its query or body; None for all tenants."""
    caller = caller_of(request)
    scopes = [each for each in (request.get_param("scope"), in_body) if each is not None]
    if any(each not in ("tenant", "all") for each in scopes):
        raise ValidationError.in_field("scope", "must be tenant or all")
    if len(set(scopes)) > 1:
        raise ValidationError.in_field("scope", "is one in the address and another one in the body; send one of them")
    scope = scopes[0] if scopes else "tenant"
    if scope == "tenant":
        return caller.tenant
    if not caller.is_operator:
        raise UnauthorizedError(
            "What is kept of everybody's prompts needs the operator's key.",
            hint="Send that key, or leave out scope=all.",
        )
    return None


ENGINE_SECONDS = 0.5
"""How long the engine may take to respond to a probe."""

STALLED_SECONDS = 120.0
"""Time without a response after which the engine counts as stuck; up to then it may be loading a model."""

RECOVERY_SECONDS = 2.0
"""How long a server is not ready after a failure that ended all sequences, so that probes notice it."""


class EngineWatch:
    """Reads the state of the engine, and remembers when it stopped responding."""

    def __init__(self, resident: TextGenerator, clock: Clock) -> None:
        self._resident = resident
        self._clock = clock
        self._silent_since: float | None = None
        self._lock = threading.Lock()

    def read(self) -> tuple[EngineState, bool]:
        """Return the engine's state, and whether it is stuck."""
        state = self._resident.state(ENGINE_SECONDS)
        now = self._clock.monotonic()
        with self._lock:
            if state.responding:
                self._silent_since = None
            elif self._silent_since is None:
                self._silent_since = now
            since = self._silent_since
        return state, since is not None and now - since >= STALLED_SECONDS


class Health(Readable):
    """Whether the engine responds."""

    def __init__(self, watch: EngineWatch) -> None:
        self._watch = watch

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """Report whether the engine's loop responds; while it loads a model it is busy, which is no failure."""
        state, stuck = self._watch.read()
        response.status = falcon.HTTP_503 if stuck else falcon.HTTP_200
        response.set_header("Cache-Control", "no-store")
        engine = "ok" if state.responding else "stuck" if stuck else "busy"
        send_json(
            response,
            {"status": "error" if stuck else "ok", "service": "mlxk-server", "version": __version__, "engine": engine},
        )


class Alive(Readable):
    """Whether the process runs."""

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """Report that the process runs."""
        response.set_header("Cache-Control", "no-store")
        send_json(response, {"status": "ok"})


class Ready(Readable):
    """Whether the server takes requests."""

    def __init__(self, lifecycle: ServerLifecycle, limit: ConcurrencyLimit, watch: EngineWatch) -> None:
        self._lifecycle = lifecycle
        self._limit = limit
        self._watch = watch

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """Report each check; the queue's fails when the next request would be refused."""
        state, _ = self._watch.read()
        recovered = state.fault_seconds is None or state.fault_seconds >= RECOVERY_SECONDS
        checks = {
            "preloaded": self._lifecycle.preloaded,
            "accepting": not self._lifecycle.draining,
            "engine": state.responding and recovered,
            "queue": not self._limit.full,
        }
        ready = all(checks.values())
        response.status = falcon.HTTP_200 if ready else falcon.HTTP_503
        response.set_header("Cache-Control", "no-store")
        if not ready:
            response.set_header("Retry-After", "1")
        send_json(response, {"status": "ok" if ready else "unavailable", "checks": checks})


_DISK = {
    "entries": "mlxk_prefix_disk_entries",
    "bytes": "mlxk_prefix_disk_bytes",
    "limit_bytes": "mlxk_prefix_disk_limit_bytes",
    "hits": "mlxk_prefix_disk_hits_total",
    "misses": "mlxk_prefix_disk_misses_total",
    "writes": "mlxk_prefix_disk_writes_total",
    "evictions": "mlxk_prefix_disk_evictions_total",
    "refusals": "mlxk_prefix_disk_refusals_total",
    "faults": "mlxk_prefix_disk_faults_total",
}
"""Metrics of the disk tier, by the field of ``DiskPrefixes``."""


class MetricsPage(Readable):
    """Metrics for Prometheus."""

    def __init__(self, metrics: Metrics, limit: ConcurrencyLimit, watch: EngineWatch) -> None:
        self._metrics = metrics
        self._limit = limit
        self._watch = watch

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """Render the metrics."""
        state, _ = self._watch.read()
        response.content_type = CONTENT_TYPE
        disk = {} if state.disk is None else {_DISK[name]: value for name, value in attrs.asdict(state.disk).items()}
        gauges: dict[str, float | Mapping[str, float]] = {
            "mlxk_answers_admitted": self._limit.admitted,
            "mlxk_answers_running": state.running,
            "mlxk_answers_waiting": state.waiting,
            "mlxk_models_loaded": len(state.models),
            "mlxk_models_widened": sum(each.widened for each in state.residents),
            "mlxk_blas": state.matrix_library is not None,
            "mlxk_engine_memory_bytes": state.active_bytes,
            "mlxk_engine_prompt_tokens_total": state.prompt_tokens,
            "mlxk_engine_cached_tokens_total": state.cached_tokens,
            "mlxk_engine_generated_tokens_total": state.generated_tokens,
            "mlxk_prefix_cache_bytes": state.prefix_cache_bytes,
            "mlxk_prefix_quantizations_total": state.prefix_quantizations,
            "mlxk_prefix_quantized_hits_total": state.prefix_quantized_hits,
            "mlxk_vision_cache_bytes": state.vision_cache_bytes,
            "mlxk_vision_cache_hits": state.vision_cache_hits,
            "mlxk_vision_cache_misses": state.vision_cache_misses,
            "mlxk_decode_step_seconds": state.step_seconds,
            "mlxk_prompt_chunk_tokens": state.chunk_tokens,
            "mlxk_memory_waits_total": state.memory_waits,
            "mlxk_memory_evictions_total": state.memory_evictions,
            "mlxk_memory_smaller_chunks_total": state.memory_smaller_chunks,
            "mlxk_memory_step_backs_total": state.memory_step_backs,
            "mlxk_memory_swaps_total": state.memory_swaps,
            "mlxk_memory_refusals_total": state.memory_refusals,
            "mlxk_engine_responding": state.responding,
            **_model_gauges(state.residents),
            **disk,
        }
        response.text = self._metrics.render(gauges)


def _model_gauges(residents: Sequence[ResidentModel]) -> dict[str, float | Mapping[str, float]]:
    """Return the gauges per model. Several models may share a name, such as one with and without an adapter."""
    weights, used, speeds = Counter[str](), dict[str, float](), dict[str, float]()
    for each in residents:
        name = served_id(each.handle)
        weights[name] += each.weight_bytes
        used[name] = max(used.get(name, 0), each.in_use)
        if each.tokens_per_second is not None:
            speeds[name] = max(speeds.get(name, 0.0), each.tokens_per_second)
    return {
        "mlxk_model_weight_bytes": weights,
        "mlxk_model_in_use": used,
        "mlxk_model_tokens_per_second": speeds,
    }


PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>mlxk</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 50rem; margin: 3rem auto; padding: 0 1rem; }
code, pre { font: 14px/1.5 ui-monospace, monospace; background: #8881; border-radius: 4px; padding: .1em .3em; }
pre { padding: 1em; overflow: auto; } td { padding: .2em 1em .2em 0; vertical-align: top; }
</style>
<h1>mlxk</h1>
<p>An OpenAI-compatible server. Point any client at <code id="base">/v1</code>; any API key will do
unless the operator set one. The whole contract: <a href="/openapi.json">openapi.json</a>.</p>
<pre>curl <span id="origin"></span>/v1/chat/completions -H 'Content-Type: application/json' \\
  -d '{"model": "demo", "messages": [{"role": "user", "content": "What is mlxk?"}]}'</pre>
<table id="routes"></table>
<script>
document.getElementById("base").textContent = location.origin + "/v1";
document.getElementById("origin").textContent = location.origin;
fetch("/openapi.json").then(answer => answer.json()).then(contract => {
  for (const [path, methods] of Object.entries(contract.paths))
    for (const [method, operation] of Object.entries(methods)) {
      const row = document.getElementById("routes").insertRow();
      row.insertCell().append(Object.assign(document.createElement("code"),
        {textContent: method.toUpperCase() + " " + path}));
      row.insertCell().textContent = operation.summary || "";
    }
});
</script></html>
"""


def openapi_document() -> dict[str, Any]:
    """Return the OpenAPI document of ``contracts``, merged with tags, paths and components of the files beside it."""
    folder = resources.files("mlxk.contracts").joinpath("http", "v1")
    parts = sorted((file for file in folder.iterdir() if file.name.endswith(".json")), key=lambda file: file.name)
    first, *others = sorted(parts, key=lambda file: file.name != "openapi.json")
    document: dict[str, Any] = json.loads(first.read_bytes())
    for part in (json.loads(file.read_bytes()) for file in others):
        document["tags"] = [*document.get("tags", []), *part.get("tags", [])]
        document["paths"] |= part["paths"]
        for kind, components in part.get("components", {}).items():
            document["components"].setdefault(kind, {}).update(components)
    return document


class OpenApi(Readable):
    """``/openapi.json``: the OpenAPI document."""

    def __init__(self) -> None:
        self._document = json.dumps(openapi_document(), ensure_ascii=False).encode()

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """Send the document."""
        response.data = self._document


class Docs(Readable):
    """``/docs``: a page with an example request and all paths."""

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """Send the page."""
        response.content_type = "text/html; charset=utf-8"
        response.set_header("Content-Security-Policy", "default-src 'self' 'unsafe-inline'; frame-ancestors 'none'")
        response.text = PAGE
