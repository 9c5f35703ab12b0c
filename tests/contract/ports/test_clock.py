"""The contract of the clock, held by every adapter."""

import datetime

import pytest
from doubles.clock import InMemoryClock

from mlxk.adapters.system import SystemClock
from mlxk.application.ports.system import Clock


@pytest.fixture(params=["system", "in_memory"])
def clock(request: pytest.FixtureRequest) -> Clock:
    return SystemClock() if request.param == "system" else InMemoryClock()


class TestClock:
    def test_the_time_is_utc(self, clock: Clock) -> None:
        assert clock.now().utcoffset() == datetime.timedelta(0)

    def test_time_never_runs_backwards(self, clock: Clock) -> None:
        before = clock.monotonic()
        assert clock.monotonic() >= before


def test_the_system_clock_agrees_with_the_machine() -> None:
    difference = SystemClock().now() - datetime.datetime.now(datetime.UTC)
    assert abs(difference) < datetime.timedelta(seconds=5)


def test_the_in_memory_clock_moves_only_when_told() -> None:
    clock = InMemoryClock()
    start = clock.now()
    assert clock.now() == start
    clock.advance(90)
    assert clock.now() - start == datetime.timedelta(seconds=90)
    assert clock.monotonic() == 90
