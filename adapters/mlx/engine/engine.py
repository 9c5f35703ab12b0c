"""The engine: models, queued and running sequences, and counters, on the one thread that owns MLX.

Arrays, streams and random state of MLX belong to the thread that created them. So one thread loads, computes and frees;
all other threads post work to it and receive plain Python values.
"""

import atexit
import contextlib
import gc
import queue
import threading
from abc import abstractmethod
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, Protocol, TypeVar

import attrs
import mlx.core as mx
from mlx_lm.utils import maybe_set_recommended_wired_limit

from mlxk.adapters.mlx import blas
from mlxk.adapters.mlx.engine.admission import AdmissionQueue
from mlxk.adapters.mlx.engine.disk_tier import DiskTier
from mlxk.adapters.mlx.engine.model_pool import Hold, Judge, LoadRequest, ModelPool, WantedModel
from mlxk.adapters.mlx.engine.prefiller import EngineCounters
from mlxk.adapters.mlx.engine.prefix_cache import PrefixCache
from mlxk.adapters.mlx.engine.scheduler import Scheduler
from mlxk.adapters.mlx.engine.sequence import Sequence
from mlxk.adapters.mlx.engine.working_memory import WorkingMemory
from mlxk.adapters.mlx.library_imports import ExceptionSummary, exhaustion, failed
from mlxk.adapters.mlx.loading.text_model import PooledModel
from mlxk.adapters.mlx.memory import EngineLimits, return_freed_memory
from mlxk.application.ports.system import Clock, EventLog
from mlxk.application.ports.text_generator import EngineState, ResidentModel
from mlxk.domain.errors import ExecutionError, MlxkError
from mlxk.domain.models.model import ModelHandle


class Worker(Protocol):
    """The work of the owner thread."""

    @abstractmethod
    def step(self, interrupted: Callable[[], bool]) -> bool:
        """Do one small unit of work; return whether there is more to do at once.

        Args:
            interrupted: Returns whether work was posted meanwhile.
        """

    @abstractmethod
    def idle_seconds(self) -> float | None:
        """Return how long the thread may sleep without work; None to sleep until work is posted."""

    @abstractmethod
    def fail_all(self, error: Exception) -> None:
        """End everything that runs with an error, after a step raised an unexpected exception."""

    @abstractmethod
    def close(self) -> None:
        """End everything that runs and free it."""


T = TypeVar("T")
W = TypeVar("W", bound=Worker)
Work = Callable[[W], None]


class OwnerThread(Generic[W]):
    """Runs a worker in its own thread, started by the first post.

    ``close`` joins the thread, which frees its MLX streams. It also runs at exit: the interpreter would end a running
    thread by force, which crashes C++ code and aborts the process.

    Args:
        build: Builds the worker, in the thread of the first post; must not use MLX yet.
        log: Receives failed steps.
    """

    def __init__(self, build: Callable[[], W], log: EventLog) -> None:
        self._build = build
        self._log = log
        self._inbox: queue.SimpleQueue[Work[W] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False
        self.worker: W | None = None
        """None before the first post."""

    def post(self, work: Work[W]) -> None:
        """Queue work for the thread; does not wait.

        Raises:
            ExecutionError: The thread was closed.
            InsufficientMemoryError: The process may have no further thread.
        """
        with self._lock:
            if self._closed:
                raise ExecutionError("The engine is closed.")
            if self._thread is None:
                self.worker = self._build()
                thread = threading.Thread(target=self._run, args=(self.worker,), name="mlx-owner", daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:
                    raise exhaustion(error) or ExecutionError("The engine cannot be started.") from error
                self._thread = thread
                atexit.register(self.close)
            self._inbox.put(work)

    def call(self, work: Callable[[W], T], event: str = "a call on the engine failed", action: str = "The engine") -> T:
        """Run a short function on the thread and return its result, which must not hold MLX objects.

        Args:
            work: The function.
            event: The log event of an unexpected exception.
            action: What failed then, for the error's message.

        Raises:
            MlxkError: Raised by ``post`` or the function; other exceptions of the function become an ``MlxkError``.
        """
        reply: Future[T] = Future()

        def answer(worker: W) -> None:
            try:
                reply.set_result(work(worker))
            except MlxkError as error:
                reply.set_exception(error.with_traceback(None))
            except Exception as error:  # noqa: BLE001 - boundary: the caller must get an outcome in any case
                summary = ExceptionSummary.of(error)
                self._log.warning(event, error=summary.kind, where=summary.place)
                reply.set_exception(failed(error, action))

        self.post(answer)
        return reply.result()

    def close(self) -> None:
        """End the worker and join the thread. May be called twice."""
        with self._lock:
            thread, self._closed = self._thread, True
            self._inbox.put(None)
        if thread is not None and thread is not threading.current_thread():
            thread.join()
            atexit.unregister(self.close)

    @property
    def started(self) -> bool:
        """Whether anything was posted yet."""
        return self._thread is not None

    @property
    def has_posted(self) -> bool:
        """Whether posted work is queued."""
        return not self._inbox.empty()

    @property
    def closed(self) -> bool:
        """Whether posting is refused."""
        return self._closed

    def _run(self, worker: W) -> None:
        self._serve(worker)
        _clear_streams()  # the thread's last statement: MLX streams that outlive it crash the process at exit

    def _serve(self, worker: W) -> None:
        busy, running = False, True
        while running:
            try:
                running = self._do_posted(worker, busy)
                busy = running and worker.step(lambda: self.has_posted)
            except Exception as error:  # noqa: BLE001 - boundary: no exception may end the thread
                summary = ExceptionSummary.of(error)
                self._log.error("an engine step failed", error=summary.kind, where=summary.place)
                worker.fail_all(error)
                busy = False
        worker.close()

    def _do_posted(self, worker: W, busy: bool) -> bool:
        """Do the posted work, waiting for some when idle; return False when the thread must end."""
        try:
            work = self._inbox.get_nowait() if busy else self._inbox.get(timeout=worker.idle_seconds())
            while work is not None:
                work(worker)
                work = self._inbox.get_nowait()
        except queue.Empty:
            return True
        return False


def _clear_streams() -> None:
    """Free the streams that MLX keeps for the current thread."""
    gc.collect()
    with contextlib.suppress(RuntimeError):  # raised where MLX could not be initialised
        mx.clear_cache()
        mx.clear_streams()


_SECONDS_BEFORE_TRIM = 0.2
"""Idle time after which free memory is returned to the system, which takes about a millisecond: too long to do after
every short sequence."""


class Engine(Worker):
    """The worker of the owner thread.

    Args:
        log: Receives loads, unloads and failures.
        clock: Times everything.
        limits: Limits of sequences and memory.
        hold: See ``ModelPool``.
        judge: See ``ModelPool``.
        disk: The prefix cache's disk tier; None without one.
    """

    def __init__(
        self,
        log: EventLog,
        clock: Clock,
        limits: EngineLimits,
        hold: Hold = None,
        judge: Judge = None,
        disk: DiskTier | None = None,
    ) -> None:
        self._clock = clock
        self._failed_at: float | None = None
        """When a step last failed and ended every sequence."""
        self._trim_at: float | None = None
        """When to return free memory to the system; None when it was returned and nothing has run since."""
        self._disk = disk
        self.prefixes = PrefixCache(limits.prefix_cache_bytes, None if disk is None else disk.offer)
        self._pool = ModelPool(log, clock, limits, self.prefixes.forget, hold, judge)
        self._memory = WorkingMemory(limits, self.prefixes, clock, log)
        self._admission = AdmissionQueue(limits.max_rows, limits.cache_budget_bytes, self._memory)
        self._counters = EngineCounters()
        self._wired_limit: int | None = None
        """The process's wired-memory limit before this engine raised it; None where there is none."""
        self._scheduler = Scheduler(log, clock, self._admission, self._memory, self._counters, self._pool.release)

    def lease_now(self, wanted: tuple[WantedModel, ...]) -> tuple[PooledModel, ...] | None:
        """Lease models that are loaded already, from any thread; None when one is not."""
        return self._pool.lease_now(wanted)

    def load(self, request: LoadRequest) -> None:
        """Queue a request for models."""
        self._pool.add(request)

    def withdraw(self, request: LoadRequest) -> None:
        """Return the leases of a request that was abandoned."""
        self._pool.withdraw(request)

    def release(self, models: tuple[PooledModel, ...]) -> None:
        """Return leases that no sequence owns."""
        self._pool.release(models)

    def start(self, sequence: Sequence) -> None:
        """Queue a sequence; the engine returns its leases when it ends."""
        if self._wired_limit is None:
            # Wired memory keeps models resident for the GPU, as in mlx-lm during generation.
            self._wired_limit = maybe_set_recommended_wired_limit()
        if self._disk is not None and sequence.fetched is not None:
            self._disk.restore(sequence.fetched, self.prefixes)
            sequence.fetched = None
        self._scheduler.add(sequence)

    def cancel(self, sequence: Sequence) -> None:
        """End a sequence."""
        self._scheduler.cancel(sequence)

    def forget_prompts(self, tenant: str | None) -> None:
        """Delete a tenant's prompts, or all, from the prefix cache and the disk tier."""
        self.prefixes.forget_tenant(tenant)
        if self._disk is not None:
            self._disk.forget(tenant)

    def unload(self, model: ModelHandle | None, *, once_idle: bool = False) -> tuple[ModelHandle, ...]:
        """Unload idle models and return them; see ``ModelPool.unload``."""
        unloaded = self._pool.unload(model, once_idle=once_idle)
        mx.clear_cache()
        return_freed_memory()
        return unloaded

    @property
    def running(self) -> int:
        """Sequences being computed; readable from any thread."""
        return self._scheduler.running

    @property
    def waiting(self) -> int:
        """Sequences and requests for models in a queue; readable from any thread."""
        return self._admission.waiting + self._pool.waiting

    @property
    def resident(self) -> tuple[ModelHandle, ...]:
        """The loaded models; readable from any thread."""
        return tuple(sorted({each.model.handle for each in self._pool.models}, key=lambda handle: handle.name))

    def state(self) -> EngineState:
        """Return the current state for probes and metrics."""
        measured = [each.costs for each in self._pool.models if each.costs.pass_seconds]
        # These counts belong to the loaded models and go with them; only text models have the attribute.
        vision = [getattr(each.model, "vision", None) for each in self._pool.models]
        features = [each.features for each in vision if each is not None]
        return EngineState(
            responding=True,
            running=self._scheduler.running,
            waiting=self.waiting,
            models=self.resident,
            residents=self._residents(),
            prompt_tokens=self._counters.prompt_tokens,
            cached_tokens=self._counters.cached_tokens,
            generated_tokens=self._counters.generated_tokens,
            ended=self._counters.ended,
            failed=self._counters.failed,
            prefix_cache_bytes=self.prefixes.size_bytes,
            prefix_quantizations=self.prefixes.quantizations,
            prefix_quantized_hits=self.prefixes.quantized_hits,
            vision_cache_bytes=sum(each.size_bytes for each in features),
            vision_cache_hits=sum(each.hits for each in features),
            vision_cache_misses=sum(each.computed for each in features),
            active_bytes=mx.get_active_memory(),
            peak_bytes=max(self._counters.peak_bytes, mx.get_peak_memory()),
            step_seconds=max((costs.pass_seconds for costs in measured), default=0.0),
            chunk_tokens=min(map(self._scheduler.shared_chunk, measured), default=0),
            matrix_library=blas.in_use(),
            **{f"memory_{name}": count for name, count in attrs.asdict(self._memory.decisions).items()},
            fault_seconds=None if self._failed_at is None else self._clock.monotonic() - self._failed_at,
        )

    def _residents(self) -> tuple[ResidentModel, ...]:
        return tuple(
            self._resident([each for each in self._pool.models if each.model.handle == handle])
            for handle in self.resident
        )

    def _resident(self, pooled: list[PooledModel]) -> ResidentModel:
        """Summarize the pool's entries of one model: of several loaders, with and without adapters."""
        first = pooled[0].model
        left = [self._pool.seconds_left(each) for each in pooled]
        return ResidentModel(
            first.handle,
            sum(each.model.weight_bytes for each in pooled),
            None if None in left else max(seconds for seconds in left if seconds is not None),
            in_use=any(each.leases > 0 for each in pooled),
            # Speech and embedding models lack the attribute.
            context_length=getattr(first, "context_length", None),
            tokens_per_second=next((each.tokens_per_second for each in pooled if each.tokens_per_second), None),
            widened=any(each.form.widened for each in pooled),
        )

    def step(self, interrupted: Callable[[], bool]) -> bool:
        """Do one scheduler step; return whether there is more to do at once."""
        was_running = self._scheduler.running > 0
        self._pool.step()
        # A sequence that ended may free memory for a queued load request, so the pool needs another step.
        busy = self._scheduler.step(interrupted) or (was_running and self._pool.waiting > 0)
        if self._disk is not None and self._disk.step(busy=busy):
            return True
        if not busy:
            self._trim_when_due()
        return busy

    def idle_seconds(self) -> float | None:
        """Return how long the thread may sleep."""
        until_trim = None if self._trim_at is None else max(0.0, self._trim_at - self._clock.monotonic())
        until_write = None if self._disk is None else self._disk.idle_seconds()
        waits = (until_trim, until_write, self._pool.idle_seconds())
        return min((each for each in waits if each is not None), default=None)

    def fail_all(self, error: Exception) -> None:
        """End every sequence with an error, and drop the prefix cache."""
        self._failed_at = self._clock.monotonic()
        self._trim_at = self._failed_at + _SECONDS_BEFORE_TRIM
        self._scheduler.end_all(failed(error, "The engine"))
        self.prefixes.shrink(0)

    def close(self) -> None:
        """End every sequence and unload every model."""
        self._scheduler.end_all()
        if self._disk is not None:
            self._disk.close()
        self._pool.close()
        self.prefixes.shrink(0)
        if self._wired_limit is not None:
            mx.synchronize()
            mx.set_wired_limit(self._wired_limit)

    def _trim_when_due(self) -> None:
        """Return free memory after ``_SECONDS_BEFORE_TRIM`` of idleness; ``idle_seconds`` wakes the thread for it."""
        now = self._clock.monotonic()
        if self._trim_at is None:
            self._trim_at = now + _SECONDS_BEFORE_TRIM
        elif now >= self._trim_at:
            return_freed_memory()
            self._trim_at = None
