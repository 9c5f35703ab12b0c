"""Port: the log."""

from abc import abstractmethod
from typing import Protocol


class EventLog(Protocol):
    """Structured log for operators. It must not be given prompts, completions or tokens.

    Adapters also redact access tokens, other credentials and the user's home directory.
    """

    @abstractmethod
    def debug(self, event: str, **fields: object) -> None:
        """Record a detail for troubleshooting."""

    @abstractmethod
    def info(self, event: str, **fields: object) -> None:
        """Record a normal event."""

    @abstractmethod
    def warning(self, event: str, **fields: object) -> None:
        """Record a condition that an operator may want to correct."""

    @abstractmethod
    def error(self, event: str, **fields: object) -> None:
        """Record a failure."""
