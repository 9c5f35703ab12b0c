"""The engine on the owner thread: loaded models, queued and running sequences, and counters."""

from collections.abc import Callable

import mlx.core as mx

from mlxk.adapters.mlx.engine import malloc
from mlxk.adapters.mlx.engine.admission import AdmissionQueue
from mlxk.adapters.mlx.engine.engine_limits import EngineLimits
from mlxk.adapters.mlx.engine.jobs import Job
from mlxk.adapters.mlx.engine.model_pool import LoadRequest, ModelPool, PooledModel, WantedModel
from mlxk.adapters.mlx.engine.prefix_cache import PrefixCache
from mlxk.adapters.mlx.engine.scheduler import EngineCounters, Scheduler
from mlxk.application.ports.clock import Clock
from mlxk.application.ports.event_log import EventLog
from mlxk.application.ports.text_generator import EngineState
from mlxk.domain.errors import ExecutionError
from mlxk.domain.models.model import ModelHandle

_SECONDS_BETWEEN_RESTS = 0.2
"""An engine without work gives back the memory it does not need, at most this often: it takes about a millisecond, too
much for each of many short answers."""


class Engine:
    """The worker of the owner thread; see ``owner_thread.Worker``."""

    def __init__(self, log: EventLog, clock: Clock, options: EngineLimits) -> None:
        self._clock = clock
        self._failed_at: float | None = None
        """When a turn failed as a whole; None when none did."""
        self._rest_at: float | None = None
        """From when on memory is to be given back; None when nothing was done since it was."""
        self._prefixes = PrefixCache(options.prefix_cache_bytes)
        self._residency = ModelPool(
            log, clock, options.model_budget_bytes, options.keep_alive_seconds, self._prefixes.forget
        )
        self._admission = AdmissionQueue(options.max_rows, options.cache_budget_bytes, self._prefixes)
        self._tally = EngineCounters()
        self._wired_limit: int | None = None
        """The process's limit before this engine raised it; None where there is none to raise."""
        self._scheduler = Scheduler(log, self._admission, self._prefixes, self._tally, self._residency.release)

    def lease_now(self, wanted: tuple[WantedModel, ...]) -> tuple[PooledModel, ...] | None:
        """Lease models that are in memory already, from any thread; None when one is not."""
        return self._residency.lease_now(wanted)

    def ask(self, request: LoadRequest) -> None:
        """Have models loaded and leased."""
        self._residency.ask(request)

    def release(self, residents: tuple[PooledModel, ...]) -> None:
        """Give leases back that no job took over."""
        self._residency.release(residents)

    def start(self, job: Job) -> None:
        """Compute a job; its leases are given back when it ends."""
        if self._wired_limit is None:
            self._wired_limit = _wire()
        self._scheduler.add(job)

    def cancel(self, job: Job) -> None:
        """End a job."""
        self._scheduler.cancel(job)

    def unload(self, model: ModelHandle | None) -> tuple[ModelHandle, ...]:
        """Free idle models and return which went."""
        gone = self._residency.unload(model)
        mx.clear_cache()
        malloc.give_back()
        return gone

    @property
    def running(self) -> int:
        """Answers being computed; may be asked from any thread."""
        return self._scheduler.running

    def state(self) -> EngineState:
        """Return how it is doing."""
        handles = (resident.model.handle for resident in self._residency.models)
        return EngineState(
            responding=True,
            running=self._scheduler.running,
            waiting=self._admission.waiting + self._residency.waiting,
            models=tuple(sorted(handles, key=lambda handle: handle.name)),
            prompt_tokens=self._tally.prompt_tokens,
            cached_tokens=self._tally.cached_tokens,
            generated_tokens=self._tally.generated_tokens,
            ended=self._tally.ended,
            failed=self._tally.failed,
            prefix_cache_bytes=self._prefixes.size_bytes,
            active_bytes=mx.get_active_memory(),
            fault_seconds=None if self._failed_at is None else self._clock.monotonic() - self._failed_at,
        )

    def turn(self, interrupted: Callable[[], bool]) -> bool:
        """Do one small piece of work; return whether there is more to do at once."""
        answering = self._scheduler.running > 0
        self._residency.turn()
        # Answers that end make room for a model that waits; other room comes with what is posted, or with time.
        busy = self._scheduler.turn(interrupted) or (answering and self._residency.waiting > 0)
        if not busy:
            self._rest()
        return busy

    def idle_seconds(self) -> float | None:
        """Return how long the thread may sleep."""
        resting = None if self._rest_at is None else max(0.0, self._rest_at - self._clock.monotonic())
        due = [seconds for seconds in (resting, self._residency.idle_seconds()) if seconds is not None]
        return min(due, default=None)

    def fail_all(self, error: Exception) -> None:
        """End every answer with an error, and forget what they computed."""
        self._failed_at = self._clock.monotonic()
        self._rest_at = self._failed_at + _SECONDS_BETWEEN_RESTS
        self._scheduler.end_all(ExecutionError(f"The engine failed ({type(error).__name__})."))
        self._prefixes.shrink(0)

    def close(self) -> None:
        """End every answer and unload every model."""
        self._scheduler.end_all()
        self._residency.close()
        self._prefixes.shrink(0)
        if self._wired_limit is not None:
            mx.synchronize()
            mx.set_wired_limit(self._wired_limit)

    def _rest(self) -> None:
        """Give memory back once that is due; nothing but work, posted or due, makes the thread take a turn."""
        now = self._clock.monotonic()
        if self._rest_at is None:
            self._rest_at = now + _SECONDS_BETWEEN_RESTS
        elif now >= self._rest_at:
            malloc.give_back()
            self._rest_at = None


def _wire() -> int | None:
    """Let the GPU keep models in memory, as mlx-lm does while it generates; return the limit that held before."""
    from mlx_lm.utils import maybe_set_recommended_wired_limit

    limit: int | None = maybe_set_recommended_wired_limit()
    return limit
