"""Redaction: what must never stand in a log, however it got there.

By key (credentials, prompts, answers) and by pattern (tokens in running text, the user's home directory).
"""

import re
from collections.abc import MutableMapping
from typing import Any

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
    """A structlog processor that removes secrets from an event.

    Args:
        home: The user's home directory, shown as ``~``; empty switches that off.
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
