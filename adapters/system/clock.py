"""The system's clocks."""

import datetime
import time

from mlxk.application.ports.clock import Clock


class SystemClock(Clock):
    """The wall clock in UTC and the monotonic clock."""

    def now(self) -> datetime.datetime:
        return datetime.datetime.now(datetime.UTC)

    def monotonic(self) -> float:
        return time.monotonic()
