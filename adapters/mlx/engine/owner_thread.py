"""The one thread that touches MLX.

Arrays, streams and random state of MLX belong to the thread that made them, so one thread loads, computes and frees;
everyone else posts it work and gets plain Python back. It owns the loop and its order of shutting down; what the work
is stands in ``engine``.
"""

import atexit
import queue
import threading
from abc import abstractmethod
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from mlxk.adapters.mlx.exception_summary import ExceptionSummary
from mlxk.application.ports.event_log import EventLog
from mlxk.domain.errors import ExecutionError


class Worker(Protocol):
    """What runs on the owner thread: used there and closed there."""

    @abstractmethod
    def turn(self, interrupted: Callable[[], bool]) -> bool:
        """Do one small piece of work; return whether there is more to do at once.

        Args:
            interrupted: Whether something was posted meanwhile.
        """

    @abstractmethod
    def idle_seconds(self) -> float | None:
        """Return how long the thread may sleep when there is nothing to do; None: until something is posted."""

    @abstractmethod
    def fail_all(self, error: Exception) -> None:
        """End everything that runs with an error; called when a turn failed in a way nobody foresaw."""

    @abstractmethod
    def close(self) -> None:
        """End everything that runs and free it."""


W = TypeVar("W", bound=Worker)
Work = Callable[[W], None]


class OwnerThread(Generic[W]):
    """Runs a worker in a thread of its own, started by the first post.

    Closed, it is joined and leaves no MLX stream behind. A process that forgets to close it does so on its way out: a
    thread that is still between two lines then aborts the process, since C++ does not survive its forced end.

    Args:
        build: Makes the worker, in the thread of the first post; it must not touch MLX yet.
        log: Hears of turns that failed.
    """

    def __init__(self, build: Callable[[], W], log: EventLog) -> None:
        self._build = build
        self._log = log
        self._inbox: queue.SimpleQueue[Work[W] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False
        self.worker: W | None = None
        """What runs; None before the first post."""

    def post(self, work: Work[W]) -> None:
        """Have the worker do something soon; the call does not wait.

        Raises:
            ExecutionError: The thread was closed.
        """
        with self._lock:
            if self._closed:
                raise ExecutionError("The engine is closed.")
            if self._thread is None:
                self.worker = self._build()
                self._thread = threading.Thread(target=self._run, args=(self.worker,), name="mlx-owner", daemon=True)
                self._thread.start()
                atexit.register(self.close)
            self._inbox.put(work)

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
        """Whether anything was ever posted."""
        return self._thread is not None

    @property
    def closed(self) -> bool:
        """Whether nothing can be posted any more."""
        return self._closed

    def _run(self, worker: W) -> None:
        self._serve(worker)
        # The last statement of the thread: whatever it leaves behind of MLX makes the process crash when it exits.
        _clear_streams()

    def _serve(self, worker: W) -> None:
        busy, open_ = False, True
        while open_:
            try:
                open_ = self._do_posted(worker, busy)
                busy = open_ and worker.turn(self._posted)
            except Exception as error:  # noqa: BLE001 - the door of the thread: whatever escapes must not end it
                fault = ExceptionSummary.of(error)
                self._log.error("a turn of the engine failed", error=fault.kind, where=fault.place)
                worker.fail_all(error)
                busy = False
        worker.close()

    def _posted(self) -> bool:
        return not self._inbox.empty()

    def _do_posted(self, worker: W, busy: bool) -> bool:
        """Do what was posted, waiting for something when idle; return False when the thread is to end."""
        try:
            work = self._inbox.get_nowait() if busy else self._inbox.get(timeout=worker.idle_seconds())
            while work is not None:
                work(worker)
                work = self._inbox.get_nowait()
        except queue.Empty:
            return True
        return False


def _clear_streams() -> None:
    """Free what MLX keeps for this thread."""
    import gc

    import mlx.core as mx

    gc.collect()
    mx.clear_cache()
    mx.clear_streams()
