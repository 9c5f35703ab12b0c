"""The owner thread: the only thread that uses MLX.

Arrays, streams and random state of MLX belong to the thread that created them. So one thread loads, computes and frees;
all others post work to it and receive plain Python values. This module has the event loop and its shutdown; the work is
in ``engine``.
"""

import atexit
import contextlib
import gc
import queue
import threading
from abc import abstractmethod
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

import mlx.core as mx

from mlxk.adapters.mlx.exception_summary import ExceptionSummary, exhaustion
from mlxk.application.ports.system import EventLog
from mlxk.domain.errors import ExecutionError


class Worker(Protocol):
    """The work of the owner thread."""

    @abstractmethod
    def step(self, interrupted: Callable[[], bool]) -> bool:
        """Do one small unit of work; return whether there is more to do at once.

        Args:
            interrupted: Whether work was posted meanwhile.
        """

    @abstractmethod
    def idle_seconds(self) -> float | None:
        """Return how long the thread may sleep without work; None: until something is posted."""

    @abstractmethod
    def fail_all(self, error: Exception) -> None:
        """End everything that runs with an error, after a step raised an unexpected exception."""

    @abstractmethod
    def close(self) -> None:
        """End everything that runs and free it."""


W = TypeVar("W", bound=Worker)
Work = Callable[[W], None]


class OwnerThread(Generic[W]):
    """Runs a worker in its own thread, started by the first post.

    ``close`` joins the thread, which frees its MLX streams. It also runs at exit: a thread that is still running then
    aborts the process, since its forced end crashes C++ code.

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
        """Whether anything was posted."""
        return self._thread is not None

    @property
    def has_posted(self) -> bool:
        """Whether work was posted that the thread has not begun."""
        return not self._inbox.empty()

    @property
    def closed(self) -> bool:
        """Whether posting is refused."""
        return self._closed

    def _run(self, worker: W) -> None:
        self._serve(worker)
        # Last statement of the thread: MLX streams that outlive it make the process crash at exit.
        _clear_streams()

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
    with contextlib.suppress(RuntimeError):  # MLX has nothing to free when it could not begin
        mx.clear_cache()
        mx.clear_streams()
