"""The log on structlog: one line an event on standard error, for people or as JSON, redacted last.

Fields of the JSON form: ``ts`` (Unix seconds), ``level``, ``msg``, then the event's own. Not bound to the process: two
logs may live side by side, and structlog's global configuration is left alone.
"""

import json
import sys
import time
from collections.abc import MutableMapping
from typing import Any, TextIO

import structlog

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
        self._logger = structlog.wrap_logger(
            structlog.PrintLogger(sys.stderr if stream is None else stream),
            processors=[_stamp, Redactor(home), _as_json if as_json else _as_text],
            wrapper_class=structlog.make_filtering_bound_logger(_SEVERITY[level]),
            context_class=dict,
            cache_logger_on_first_use=True,
        )

    def debug(self, event: str, **fields: object) -> None:
        """Record a detail."""
        self._logger.debug(event, **fields)

    def info(self, event: str, **fields: object) -> None:
        """Record something normal."""
        self._logger.info(event, **fields)

    def warning(self, event: str, **fields: object) -> None:
        """Record something to look at."""
        self._logger.warning(event, **fields)

    def error(self, event: str, **fields: object) -> None:
        """Record a failure."""
        self._logger.error(event, **fields)


def _stamp(logger: object, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    message = event.pop("event")
    return {"ts": round(time.time(), 3), "level": _SHORT[method], "msg": message, **event}


def _as_json(logger: object, method: str, event: MutableMapping[str, Any]) -> str:
    return json.dumps(event, default=str)


def _as_text(logger: object, method: str, event: MutableMapping[str, Any]) -> str:
    fields = " ".join(f"{key}={value}" for key, value in event.items() if key not in {"ts", "level", "msg"})
    return f"[{event['level']}] {event['msg']}" + (f" ({fields})" if fields else "")
