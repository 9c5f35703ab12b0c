"""The log on structlog: one line an event on standard error, for people or as JSON, redacted last.

Fields of the JSON form: ``ts`` (Unix seconds), ``level``, ``msg``, then the event's own. Not bound to the process: two
logs may live side by side, and structlog's global configuration is left alone.
"""

import functools
import json
import sys
import time
from collections.abc import Mapping, MutableMapping
from typing import Any, TextIO

from mlxk.adapters.logging.redaction import Redactor
from mlxk.application.ports.event_log import EventLog

_SEVERITY = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_SHORT = {"debug": "DEBUG", "info": "INFO", "warning": "WARN", "error": "ERROR"}


class StructlogEventLog(EventLog):
    """Logs to a stream.

    Args:
        level: The least severe events to write: debug, info, warning or error.
        as_json: Whether a line is a JSON object.
        home: The user's home directory, shown as ``~``.
        stream: Where to write; standard error when None.
    """

    def __init__(self, *, level: str, as_json: bool, home: str = "", stream: TextIO | None = None) -> None:
        self._least = _SEVERITY[level]
        self._stream = sys.stderr if stream is None else stream
        self._processors: list[Any] = [_stamp, Redactor(home), _as_json if as_json else _as_text]

    def debug(self, event: str, **fields: object) -> None:
        """Record a detail."""
        self._record("debug", event, fields)

    def info(self, event: str, **fields: object) -> None:
        """Record something normal."""
        self._record("info", event, fields)

    def warning(self, event: str, **fields: object) -> None:
        """Record something to look at."""
        self._record("warning", event, fields)

    def error(self, event: str, **fields: object) -> None:
        """Record a failure."""
        self._record("error", event, fields)

    def _record(self, method: str, event: str, fields: Mapping[str, object]) -> None:
        if _SEVERITY[method] >= self._least:
            getattr(self._logger, method)(event, **fields)

    @functools.cached_property
    def _logger(self) -> Any:  # noqa: ANN401 - structlog's own type of it
        """The logger, made for the first event to write: importing structlog takes longer than most commands have."""
        from mlxk.adapters.logging.plain_structlog import structlog  # noqa: PLC0415 - see above

        return structlog.wrap_logger(
            structlog.PrintLogger(self._stream),
            processors=self._processors,
            wrapper_class=structlog.BoundLogger,
            context_class=dict,
            cache_logger_on_first_use=True,
        )


def _stamp(logger: object, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    message = event.pop("event")
    return {"ts": round(time.time(), 3), "level": _SHORT[method], "msg": message, **event}


def _as_json(logger: object, method: str, event: MutableMapping[str, Any]) -> str:
    return json.dumps(event, default=str)


def _as_text(logger: object, method: str, event: MutableMapping[str, Any]) -> str:
    fields = " ".join(f"{key}={value}" for key, value in event.items() if key not in {"ts", "level", "msg"})
    return f"[{event['level']}] {event['msg']}" + (f" ({fields})" if fields else "")
