"""In-memory double of time.

clock = InMemoryClock(datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC))
clock.advance(90)                           # a minute and a half later
"""

import datetime

from mlxk.application.ports.clock import Clock


class InMemoryClock(Clock):
    """A clock that stands still until it is advanced.

    Args:
        now: The time to start from, UTC.
    """

    def __init__(self, now: datetime.datetime = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)) -> None:
        self._start = now
        self._elapsed = 0.0

    def now(self) -> datetime.datetime:
        """Return the start plus what was advanced."""
        return self._start + datetime.timedelta(seconds=self._elapsed)

    def monotonic(self) -> float:
        """Return the seconds advanced so far."""
        return self._elapsed

    def advance(self, seconds: float) -> None:
        """Let time pass.

        Args:
            seconds: How long; not negative.
        """
        self._elapsed += seconds
