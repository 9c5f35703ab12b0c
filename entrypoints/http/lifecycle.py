"""How far the server is in its life, and how much it may be asked to do at once."""

import threading
from collections.abc import Callable

from mlxk.domain.errors import QueueFullError, ServerShutdownError, ValidationError


class ServerLifecycle:
    """Starting, ready, draining: what the probes say, and whether new work is taken."""

    def __init__(self) -> None:
        self.preloaded = False
        """Whether the models to preload are in memory, or there are none."""
        self.draining = False
        self.aborted = False
        """Whether what is still in progress is to be given up."""

    @property
    def ready(self) -> bool:
        """Whether requests can be answered without waiting for a model to be loaded first."""
        return self.preloaded and not self.draining

    def require_open(self) -> None:
        """Refuse new work while the server drains.

        Raises:
            ServerShutdownError: It does.
        """
        if self.draining:
            raise ServerShutdownError("The server is shutting down.", hint="Send the request again in a moment.")


class ConcurrencyLimit:
    """Counts the answers in progress and in the queue, and refuses more than there is room for.

    Args:
        running: Answers computed at the same time.
        waiting: Answers that may queue behind them.
    """

    def __init__(self, running: int, waiting: int) -> None:
        self.capacity = running + waiting
        self.admitted = 0
        self._lock = threading.Lock()

    def enter(self, count: int, field: str = "n") -> Callable[[], None]:
        """Admit some answers; return what gives their places back, which may be called more than once.

        Args:
            count: How many.
            field: The field of the request that asks for so many.

        Raises:
            ValidationError: There is never room for so many.
            QueueFullError: There is no room now.
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
        given_back = threading.Lock()

        def leave() -> None:
            if given_back.acquire(blocking=False):
                with self._lock:
                    self.admitted -= count

        return leave
