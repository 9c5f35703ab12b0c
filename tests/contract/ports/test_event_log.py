"""The contract of the log, held by every adapter."""

import io
import json
from collections.abc import Callable

import pytest
from doubles.event_log import InMemoryEventLog

from mlxk.adapters.logging import StructlogEventLog
from mlxk.application.ports.system import EventLog

Events = Callable[[], list[tuple[str, str]]]
LEVELS = ("debug", "info", "warning", "error")
NAMES = {"DEBUG": "debug", "INFO": "info", "WARN": "warning", "ERROR": "error"}


@pytest.fixture(params=["structlog", "in_memory"])
def log(request: pytest.FixtureRequest) -> tuple[EventLog, Events]:
    """A log that leaves nothing out, and what it recorded: level and event."""
    if request.param == "in_memory":
        kept = InMemoryEventLog()
        return kept, lambda: [(logged.level, logged.event) for logged in kept.events]
    stream = io.StringIO()

    def written() -> list[tuple[str, str]]:
        lines = [json.loads(line) for line in stream.getvalue().splitlines()]
        return [(NAMES[line["level"]], line["msg"]) for line in lines]

    return StructlogEventLog(level="debug", as_json=True, home="/home/ada", stream=stream), written


class TestEventLog:
    def test_events_are_recorded_in_order_each_with_its_level(self, log: tuple[EventLog, Events]) -> None:
        events, recorded = log
        for level in LEVELS:
            getattr(events, level)(f"{level} happened", model="org/m")
        assert recorded() == [(level, f"{level} happened") for level in LEVELS]

    def test_any_value_can_be_a_field(self, log: tuple[EventLog, Events]) -> None:
        events, recorded = log
        events.info("odd", nothing=None, number=1.5, items=(1, "two"), kind=ValueError("x"), raw=b"\xff")
        assert recorded() == [("info", "odd")]


def test_the_in_memory_log_finds_events_by_name() -> None:
    log = InMemoryEventLog()
    log.info("loaded", model="a")
    log.warning("slow")
    log.info("loaded", model="b")
    assert [logged.fields["model"] for logged in log.named("loaded")] == ["a", "b"]
