"""Model leases: using a model other than for text generation, on the owner thread.

The engine's model pool loads, keeps and unloads such models like text models; between two calls the engine continues to
generate.
"""

import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

import attrs

from mlxk.adapters.mlx.engine.engine import Engine, OwnerThread
from mlxk.adapters.mlx.engine.model_pool import LoadRequest, WantedModel
from mlxk.adapters.mlx.library_imports import ExceptionSummary, failed
from mlxk.application.ports.system import EventLog
from mlxk.domain.errors import ExecutionError, MlxkError

_LOOK_SECONDS = 0.005
"""Time between two checks for waiting work."""

T = TypeVar("T")
M = TypeVar("M")


@attrs.frozen
class _Failure:
    """An error on the owner thread without its traceback, which would keep arrays alive."""

    error: MlxkError


class ModelLease(Generic[M]):
    """A loaded model that stays in memory until the lease is returned.

    Args:
        thread: The owner thread.
        model: The loader's result; may be used inside ``call`` only.
        log: Receives failures.
        turns: Those of every lease; its own when not given.
    """

    def __init__(self, thread: OwnerThread[Engine], model: M, log: EventLog, turns: "Turns | None" = None) -> None:
        self.model = model
        self._thread = thread
        self._log = log
        self._turns = turns or Turns()
        self._seconds = 0.0
        """Duration of the last call."""

    def call(self, work: Callable[[], T]) -> T:
        """Run a function on the owner thread and return its result; it should take no more than a second or so.

        The result must hold nothing of MLX.

        Raises:
            MlxkError: Raised by the function; any other exception becomes an ``ExecutionError``.
        """
        reply: queue.SimpleQueue[T | _Failure] = queue.SimpleQueue()
        self._thread.post(lambda _: reply.put(self._outcome(work)))
        outcome = reply.get()
        if isinstance(outcome, _Failure):
            raise outcome.error
        return outcome

    def call_in_turn(self, work: Callable[[], T]) -> T:
        """Run a function as ``call`` does that may take many seconds, when it is this lease's turn.

        Before it whatever else waits for the owner thread is served: sequences, loads and short calls get at least as
        much time as the last such function took, of whichever lease. So several recordings at once leave the others
        the same half of the time as one.
        """
        with self._turns.take():
            until = self._turns.ended + self._turns.seconds
            while time.monotonic() < until and self.others_wait:
                time.sleep(_LOOK_SECONDS)
            began = time.monotonic()
            try:
                return self.call(work)
            finally:
                self._turns.ended = time.monotonic()
                self._turns.seconds = self._turns.ended - began

    @property
    def others_wait(self) -> bool:
        """Whether anything waits for the owner thread, or is being generated on it."""
        engine = self._thread.worker
        return self._thread.has_posted or (engine is not None and engine.running + engine.waiting > 0)

    def yield_to_generation(self) -> None:
        """Wait while sequences are computed, at most as long as the last call took: each side gets half of the time."""
        end = time.monotonic() + self._seconds
        while time.monotonic() < end and self._engine_is_busy():
            time.sleep(min(0.01, self._seconds))

    def _engine_is_busy(self) -> bool:
        engine = self._thread.worker
        return engine is not None and engine.running > 0

    def _outcome(self, work: Callable[[], T]) -> T | _Failure:
        began = time.monotonic()
        try:
            return work()
        except MlxkError as error:
            return _Failure(error.with_traceback(None))
        except Exception as error:  # noqa: BLE001 - boundary: the caller must get an outcome in any case
            summary = ExceptionSummary.of(error)
            self._log.warning("a call on a leased model failed", error=summary.kind, where=summary.place)
            return _Failure(failed(error, "Running the model").with_traceback(None))
        finally:
            self._seconds = time.monotonic() - began


class Turns:
    """Who may keep the owner thread for many seconds: one lease at a time, in the order in which they asked."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queue: deque[threading.Event] = deque()
        self.ended = 0.0
        """When the last turn ended, by the monotonic clock; changed by the holder of a turn only."""
        self.seconds = 0.0
        """How long the last turn took."""

    @property
    def waiting(self) -> tuple[threading.Event, ...]:
        """The one that has its turn, and those that wait for theirs."""
        with self._lock:
            return tuple(self._queue)

    @contextlib.contextmanager
    def take(self) -> Iterator[None]:
        """Wait for a turn, and have it for the length of the block."""
        mine = threading.Event()
        with self._lock:
            self._queue.append(mine)
            self._queue[0].set()
        try:
            mine.wait()
            yield
        finally:
            with self._lock:
                self._queue.remove(mine)
                if self._queue:
                    self._queue[0].set()


class ModelLeases:
    """Leases models that are used on the owner thread.

    Args:
        thread: The owner thread.
        log: Receives failures.
    """

    def __init__(self, thread: OwnerThread[Engine], log: EventLog) -> None:
        self._thread = thread
        self._log = log
        self._turns = Turns()

    @contextlib.contextmanager
    def lease(self, wanted: WantedModel, kind: type[M]) -> Iterator[ModelLease[M]]:
        """Lease a model for the length of the block, loading it if it is not loaded.

        Args:
            wanted: The model and its loader.
            kind: The type of the loader's result.

        Raises:
            MlxkError: It cannot be loaded.
        """
        request = LoadRequest((wanted,))
        self._thread.post(lambda engine: engine.load(request))
        models = request.wait()
        try:
            model: object = models[0].model
            if not isinstance(model, kind):
                raise TypeError(f"the loader returned a {type(model).__name__}, not a {kind.__name__}")
            yield ModelLease(self._thread, model, self._log, self._turns)
        finally:
            # A closed engine has unloaded everything already.
            with contextlib.suppress(ExecutionError):
                self._thread.post(lambda engine: engine.release(models))

    @contextlib.contextmanager
    def loaded(self, wanted: Sequence[WantedModel], kind: type[M]) -> Iterator[M | None]:
        """Lease the first of some models that is loaded, for the length of the block; never load one, never wait.

        Args:
            wanted: A model, by each of its loaders.
            kind: The type of the loaders' result.

        Yields:
            The model, for what may be used on any thread; None when none is loaded.
        """
        engine = self._thread.worker
        found = None if engine is None else next(filter(None, (engine.lease_now((each,)) for each in wanted)), None)
        if found is None:
            yield None
            return
        try:
            model: object = found[0].model
            yield model if isinstance(model, kind) else None
        finally:
            # On its thread, which may wait for the lease to end.
            with contextlib.suppress(ExecutionError):
                self._thread.post(lambda engine: engine.release(found))
