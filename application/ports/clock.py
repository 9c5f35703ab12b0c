"""Port: time."""

import datetime
from abc import abstractmethod
from typing import Protocol


class Clock(Protocol):
    """The system clock; tests use one they control."""

    @abstractmethod
    def now(self) -> datetime.datetime:
        """Return the current time, in UTC."""

    @abstractmethod
    def monotonic(self) -> float:
        """Return seconds of a monotonic clock, for measuring durations."""
