"""Port: time."""

import datetime
from abc import abstractmethod
from typing import Protocol


class Clock(Protocol):
    """Tells the time, so that tests can say what it is."""

    @abstractmethod
    def now(self) -> datetime.datetime:
        """Return the current time, in UTC."""

    @abstractmethod
    def monotonic(self) -> float:
        """Return seconds that only grow, for measuring durations."""
