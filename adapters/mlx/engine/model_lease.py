"""Models on loan: work with a model that is not text generation, on the one thread that touches MLX.

The engine's residency loads, keeps and unloads such models like those it writes text with; between two pieces of work
the engine goes on. Owns how work gets onto the thread and its outcome back; what the work is stands with the borrower.
"""

import contextlib
import queue
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Generic, TypeVar

import attrs

from mlxk.adapters.mlx.engine.owner_thread import OwnerThread
from mlxk.adapters.mlx.exception_summary import ExceptionSummary
from mlxk.application.ports.event_log import EventLog
from mlxk.domain.errors import ExecutionError, MlxkError

if TYPE_CHECKING:
    from mlxk.adapters.mlx.engine.engine import Engine
    from mlxk.adapters.mlx.engine.model_pool import WantedModel


T = TypeVar("T")
M = TypeVar("M")


@attrs.frozen
class _Failure:
    """What went wrong on the owner thread, as plain text: a traceback would keep arrays alive."""

    error: MlxkError


class ModelLease(Generic[M]):
    """A model that stays in memory as long as the loan lasts.

    Args:
        thread: The owner thread.
        model: What the wish's loader made; to be touched inside of ``call`` only.
        log: Hears of failures.
    """

    def __init__(self, thread: "OwnerThread[Engine]", model: M, log: EventLog) -> None:
        self.model = model
        self._thread = thread
        self._log = log
        self._seconds = 0.0

    def call(self, work: Callable[[], T]) -> T:
        """Do a piece of work on the owner thread and wait for it; it should take no more than a second or so.

        What it returns must hold nothing of MLX.

        Raises:
            MlxkError: What the work raised; anything else becomes an ``ExecutionError``.
        """
        reply: queue.SimpleQueue[T | _Failure] = queue.SimpleQueue()
        self._thread.post(lambda _: reply.put(self._outcome(work)))
        outcome = reply.get()
        if isinstance(outcome, _Failure):
            raise outcome.error
        return outcome

    def yield_to_generation(self) -> None:
        """Wait while answers are computed, as long as the last piece of work took: each side gets half of the time."""
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
        except Exception as error:  # noqa: BLE001 - a door: the borrower waits for an outcome, whatever happens
            fault = ExceptionSummary.of(error)
            self._log.warning("work on a lent model failed", error=fault.kind, where=fault.place)
            return _Failure(ExecutionError(f"The model failed ({fault.kind})."))
        finally:
            self._seconds = time.monotonic() - began


class ModelLeases:
    """Lends models that are used on the owner thread.

    Args:
        thread: The owner thread.
        log: Hears of failures.
    """

    def __init__(self, thread: "OwnerThread[Engine]", log: EventLog) -> None:
        self._thread = thread
        self._log = log

    @contextlib.contextmanager
    def lend(self, wanted: "WantedModel", kind: type[M]) -> Iterator[ModelLease[M]]:
        """Have a model in memory for the length of the block, loading it if need be.

        Args:
            wanted: Which, and how to load it.
            kind: What its loader makes.

        Raises:
            MlxkError: Why it cannot be had.
        """
        from mlxk.adapters.mlx.engine.model_pool import LoadRequest

        wish = LoadRequest((wanted,))
        self._thread.post(lambda engine: engine.ask(wish))
        residents = wish.wait()
        try:
            model: object = residents[0].model
            if not isinstance(model, kind):
                raise TypeError(f"the loader made a {type(model).__name__}, not a {kind.__name__}")
            yield ModelLease(self._thread, model, self._log)
        finally:
            # A closed engine has unloaded everything already.
            with contextlib.suppress(ExecutionError):
                self._thread.post(lambda engine: engine.release(residents))
