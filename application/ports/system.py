"""Ports to the system that the program runs on: time, the log, and its user at a terminal."""

import datetime
from abc import abstractmethod
from collections.abc import Mapping
from typing import Protocol


class Clock(Protocol):
    """The system clock; tests use one they control."""

    @abstractmethod
    def now(self) -> datetime.datetime:
        """Return the current time, in UTC."""

    @abstractmethod
    def monotonic(self) -> float:
        """Return seconds of a monotonic clock, for measuring durations."""


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


class Progress(Protocol):
    """Receives the progress of one operation, always on the thread that runs it."""

    @abstractmethod
    def begin(self, activity: str, sizes: Mapping[str, int]) -> None:
        """Start a phase of the operation.

        Args:
            activity: Name of the phase, such as ``Downloading``.
            sizes: Item to its size in bytes.
        """

    @abstractmethod
    def advance(self, done: Mapping[str, int]) -> None:
        """Report the bytes done.

        Args:
            done: Every started item to its bytes done; the number decreases when an item is restarted.
        """

    @abstractmethod
    def end(self) -> None:
        """End the phase, after success or failure."""

    @abstractmethod
    def note(self, message: str) -> None:
        """Show one line, for example that the operation waits for another process."""


class Confirmation(Protocol):
    """Asks the user at the terminal."""

    @abstractmethod
    def ask(self, facts: tuple[str, ...], question: str, *, default: bool) -> bool | None:
        """Ask a yes-or-no question.

        Args:
            facts: Lines to show before the question.
            question: The question, with its question mark.
            default: The meaning of an empty answer.

        Returns:
            The answer. None when there is no terminal; nothing is shown then.
        """
