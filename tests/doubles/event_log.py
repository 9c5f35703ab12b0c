"""In-memory double of the log.

log = InMemoryEventLog()
log.info("model_loaded", model="demo")
log.events                                  # [LoggedEvent("info", "model_loaded", {"model": "demo"})]
"""

from collections.abc import Mapping

import attrs

from mlxk.application.ports.system import EventLog


@attrs.frozen
class LoggedEvent:
    """One call of the log."""

    level: str
    """debug, info, warning or error."""
    event: str
    fields: Mapping[str, object]


class InMemoryEventLog(EventLog):
    """Keeps every event in ``events``, oldest first."""

    def __init__(self) -> None:
        self.events: list[LoggedEvent] = []

    def debug(self, event: str, **fields: object) -> None:
        self.events.append(LoggedEvent("debug", event, fields))

    def info(self, event: str, **fields: object) -> None:
        self.events.append(LoggedEvent("info", event, fields))

    def warning(self, event: str, **fields: object) -> None:
        self.events.append(LoggedEvent("warning", event, fields))

    def error(self, event: str, **fields: object) -> None:
        self.events.append(LoggedEvent("error", event, fields))

    def named(self, event: str) -> list[LoggedEvent]:
        """Return the events of one name, oldest first."""
        return [logged for logged in self.events if logged.event == event]
