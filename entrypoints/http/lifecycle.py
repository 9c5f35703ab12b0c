"""The lifecycle of the server, and the limit of concurrent completions."""

import threading
from collections.abc import Callable

from mlxk.domain.errors import QueueFullError, ServerShutdownError, ValidationError


class ServerLifecycle:
    """Starting, ready, draining: for the probes, and to refuse new work."""

    def __init__(self) -> None:
        self.preloaded = False
        """Whether the model to preload, if there is one, is in memory."""
        self.draining = False
        self.aborted = False
        """Whether work in progress is cancelled."""

    @property
    def ready(self) -> bool:
        """Whether the server takes requests without loading a model first."""
        return self.preloaded and not self.draining

    def require_open(self) -> None:
        """Refuse new work while the server drains.

        Raises:
            ServerShutdownError: The server drains.
        """
        if self.draining:
            raise ServerShutdownError("The server is shutting down.", hint="Send the request again in a moment.")


class ConcurrencyLimit:
    """Limits the completions in progress and in the queue.

    Args:
        running: Completions generated at the same time.
        waiting: Completions that may wait in the queue.
    """

    def __init__(self, running: int, waiting: int) -> None:
        self.capacity = running + waiting
        self.admitted = 0
        self._lock = threading.Lock()

    def enter(self, count: int, field: str = "n") -> Callable[[], None]:
        """Admit some completions; return the function that releases their slots, which may be called twice.

        Args:
            count: Number of completions.
            field: The field of the request that sets the count.

        Raises:
            ValidationError: The count is above the limit.
            QueueFullError: Too few slots are free.
        """
        if count > self.capacity:
            raise ValidationError.in_field(
                field,
                f"asks for {count} answers; this server takes at most {self.capacity} at once",
                hint="Send several requests. There are n answers to each prompt.",
            )
        with self._lock:
            if self.admitted + count > self.capacity:
                raise QueueFullError("The server is busy: its queue is full.", hint="Try again in a moment.")
            self.admitted += count
        released = threading.Lock()

        def release() -> None:
            if released.acquire(blocking=False):
                with self._lock:
                    self.admitted -= count

        return release
