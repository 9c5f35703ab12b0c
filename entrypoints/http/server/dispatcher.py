"""The threads that run the application, started as they are needed."""

import threading

from waitress.task import Task, ThreadedTaskDispatcher


class Dispatcher(ThreadedTaskDispatcher):  # type: ignore[misc]  # waitress has no types
    """Runs tasks on threads, of which there are never more than were busy at once.

    Every thread keeps memory of its own: a stack, and what the C library sets aside for it.

    Args:
        most: Threads there may be.
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most
        self._adding = threading.Lock()

    def add_task(self, task: Task) -> None:
        """Have a task run as soon as a thread is free, a new one if need be. Callable from any thread."""
        with self._adding:
            with self.lock:
                threads = len(self.threads) - self.stop_count
                wanted = self.active_count + len(self.queue) + 1
            if wanted > threads and threads < self._most:
                self.set_thread_count(threads + 1)
            super().add_task(task)

    def shutdown(self, cancel_pending: bool = True, timeout: float = 5) -> bool:
        """End the threads; no new ones are started."""
        with self._adding:
            self._most = 0
        ended: bool = super().shutdown(cancel_pending, timeout)
        return ended
