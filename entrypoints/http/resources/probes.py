"""``GET /health``, ``/livez``, ``/readyz`` and ``/metrics``: probes and metrics for process managers."""

import threading

import falcon

from mlxk import __version__
from mlxk.application.ports.clock import Clock
from mlxk.application.ports.text_generator import EngineState, TextGenerator
from mlxk.entrypoints.http.lifecycle import ConcurrencyLimit, ServerLifecycle
from mlxk.entrypoints.http.metrics import CONTENT_TYPE, Metrics
from mlxk.entrypoints.http.resources.readable import Readable, send_json

ENGINE_SECONDS = 0.5
"""How long the engine may take to respond to a probe."""

STALLED_SECONDS = 120.0
"""Time without a response of the engine after which it counts as stuck, and no longer as loading a model."""

RECOVERY_SECONDS = 2.0
"""How long a server is not ready after a failure of the engine as a whole, so that probes see it."""


class EngineWatch:
    """Reads the state of the engine, and remembers since when it does not respond."""

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
        """Report whether the engine's loop is alive; while it loads a model it is busy, which is no failure."""
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
        """Report that it does."""
        response.set_header("Cache-Control", "no-store")
        send_json(response, {"status": "ok"})


class Ready(Readable):
    """Whether the server takes requests."""

    def __init__(self, lifecycle: ServerLifecycle, watch: EngineWatch) -> None:
        self._lifecycle = lifecycle
        self._watch = watch

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """Report each check."""
        state, _ = self._watch.read()
        recovered = state.fault_seconds is None or state.fault_seconds >= RECOVERY_SECONDS
        checks = {
            "preloaded": self._lifecycle.preloaded,
            "accepting": not self._lifecycle.draining,
            "engine": state.responding and recovered,
        }
        ready = all(checks.values())
        response.status = falcon.HTTP_200 if ready else falcon.HTTP_503
        response.set_header("Cache-Control", "no-store")
        if not ready:
            response.set_header("Retry-After", "1")
        send_json(response, {"status": "ok" if ready else "unavailable", "checks": checks})


class MetricsPage(Readable):
    """Metrics for Prometheus."""

    def __init__(self, metrics: Metrics, limit: ConcurrencyLimit, watch: EngineWatch) -> None:
        self._metrics = metrics
        self._limit = limit
        self._watch = watch

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """Render them."""
        state, _ = self._watch.read()
        response.content_type = CONTENT_TYPE
        response.text = self._metrics.render(
            {
                "mlxk_answers_admitted": self._limit.admitted,
                "mlxk_answers_running": state.running,
                "mlxk_answers_waiting": state.waiting,
                "mlxk_models_loaded": len(state.models),
                "mlxk_engine_memory_bytes": state.active_bytes,
                "mlxk_prefix_cache_bytes": state.prefix_cache_bytes,
                "mlxk_engine_responding": state.responding,
            }
        )
