"""The event log on structlog: one line per event on standard error, as text or as JSON, redacted.

Fields of the JSON form: ``ts`` (Unix seconds), ``level``, ``msg``, then those of the event. structlog's global
configuration is not changed, so that several logs may exist.

Redaction removes values by key (credentials, prompts, completions) and by pattern (tokens in text, the user's home
directory).
"""

import contextlib
import json
import re
import sys
import time
from collections.abc import Mapping, MutableMapping
from typing import Any, TextIO

import structlog

from mlxk.application.ports.system import EventLog

REDACTED = "[REDACTED]"

_SECRET_KEYS = frozenset(
    {
        "api_key",
        "authorization",
        "content",
        "cookie",
        "messages",
        "password",
        "prompt",
        "response",
        "secret",
        "text",
        "token",
    }
)
_SECRETS = re.compile(r"hf_[A-Za-z0-9]{8,}|sk-[A-Za-z0-9_-]{8,}|(?<=Bearer )\S+", re.IGNORECASE)
MAX_DEPTH = 8


class Redactor:
    """A structlog processor that removes secrets from events.

    Args:
        home: The user's home directory, written as ``~``; empty to leave it.
    """

    def __init__(self, home: str) -> None:
        self._home = home.rstrip("/")

    def __call__(self, logger: object, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """Return the event with every secret replaced."""
        return {key: self._value(key, value, 0) for key, value in event.items()}

    def _value(self, key: str, value: object, depth: int) -> object:
        if key.lower() in _SECRET_KEYS:
            return REDACTED
        if isinstance(value, str):
            return self.clean(value)
        if isinstance(value, (bool, int, float, type(None))):
            return value
        if depth >= MAX_DEPTH:
            return REDACTED
        if isinstance(value, dict):
            return {str(name): self._value(str(name), item, depth + 1) for name, item in value.items()}
        if isinstance(value, (list, tuple, set, frozenset)):
            return [self._value("", item, depth + 1) for item in value]
        return self.clean(str(value))

    def clean(self, text: str) -> str:
        """Return a text without tokens and with the home directory shortened."""
        text = _SECRETS.sub(REDACTED, text)
        if self._home:
            text = text.replace(f"{self._home}/", "~/")
            text = "~" if text == self._home else text
        return text


_SEVERITY = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_SHORT = {"debug": "DEBUG", "info": "INFO", "warning": "WARN", "error": "ERROR"}


class StructlogEventLog(EventLog):
    """Logs to a stream.

    Args:
        level: The lowest severity that is written: debug, info, warning or error.
        as_json: Whether a line is a JSON object.
        home: The user's home directory, written as ``~``.
        stream: Where to write; standard error when None.
    """

    def __init__(self, *, level: str, as_json: bool, home: str = "", stream: TextIO | None = None) -> None:
        self._threshold = _SEVERITY[level]
        self._logger = structlog.wrap_logger(
            structlog.WriteLogger(sys.stderr if stream is None else stream),
            processors=[_stamp, Redactor(home), _as_json if as_json else _as_text],
            wrapper_class=structlog.BoundLogger,
            context_class=dict,
            cache_logger_on_first_use=True,
        )

    def debug(self, event: str, **fields: object) -> None:
        self._record("debug", event, fields)

    def info(self, event: str, **fields: object) -> None:
        self._record("info", event, fields)

    def warning(self, event: str, **fields: object) -> None:
        self._record("warning", event, fields)

    def error(self, event: str, **fields: object) -> None:
        self._record("error", event, fields)

    def _record(self, method: str, event: str, fields: Mapping[str, object]) -> None:
        if _SEVERITY[method] >= self._threshold:
            with contextlib.suppress(OSError):  # a log that cannot be written must not fail anything else
                getattr(self._logger, method)(event, **fields)


def _stamp(logger: object, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    message = event.pop("event")
    return {"ts": round(time.time(), 3), "level": _SHORT[method], "msg": message, **event}


def _as_json(logger: object, method: str, event: MutableMapping[str, Any]) -> str:
    return json.dumps(event, default=str)


def _as_text(logger: object, method: str, event: MutableMapping[str, Any]) -> str:
    fields = " ".join(f"{key}={value}" for key, value in event.items() if key not in {"ts", "level", "msg"})
    return f"[{event['level']}] {event['msg']}" + (f" ({fields})" if fields else "")
