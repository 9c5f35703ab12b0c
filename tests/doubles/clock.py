"""In-memory double of the clock.

clock = InMemoryClock(datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC))
clock.advance(90)                           # a minute and a half later
"""

import datetime

import attrs

from mlxk.application.ports.system import Clock


class InMemoryClock(Clock):
    """A clock that moves only when it is advanced.

    Args:
        now: The initial time, UTC.
    """

    def __init__(self, now: datetime.datetime = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)) -> None:
        self._start = now
        self._elapsed = 0.0

    def now(self) -> datetime.datetime:
        return self._start + datetime.timedelta(seconds=self._elapsed)

    def monotonic(self) -> float:
        return self._elapsed

    def advance(self, seconds: float) -> None:
        """Move the clock forward.

        Args:
            seconds: Not negative.
        """
        self._elapsed += seconds


@attrs.define
class TickingClock(Clock):
    """A clock that advances by one second with each reading, so that every engine step takes the same time."""

    ticks: float = 0.0

    def monotonic(self) -> float:
        self.ticks += 1.0
        return self.ticks

    def now(self) -> datetime.datetime:
        return datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
