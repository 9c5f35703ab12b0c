"""Port: the log."""

from abc import abstractmethod
from typing import Protocol


class EventLog(Protocol):
    """Structured log of what happened, for operators. Never receives a prompt, an answer or a token.

    Adapters redact what slips through: tokens, credentials and the user's home directory.
    """

    @abstractmethod
    def debug(self, event: str, **fields: object) -> None:
        """Record a detail for whoever investigates."""

    @abstractmethod
    def info(self, event: str, **fields: object) -> None:
        """Record that something normal happened."""

    @abstractmethod
    def warning(self, event: str, **fields: object) -> None:
        """Record something that a person may want to change."""

    @abstractmethod
    def error(self, event: str, **fields: object) -> None:
        """Record a failure."""
