"""The machine's clocks."""

import datetime
import time

from mlxk.application.ports.clock import Clock


class SystemClock(Clock):
    """The wall clock in UTC and the monotonic clock."""

    def now(self) -> datetime.datetime:
        """Return the current time, in UTC."""
        return datetime.datetime.now(datetime.UTC)

    def monotonic(self) -> float:
        """Return seconds that only grow."""
        return time.monotonic()
