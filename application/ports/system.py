"""Ports to the clock, the log, and the user at the terminal."""

import datetime
from abc import abstractmethod
from collections.abc import Mapping
from typing import Protocol


class Clock(Protocol):
    """The system clock."""

    @abstractmethod
    def now(self) -> datetime.datetime:
        """Return the current time, in UTC."""

    @abstractmethod
    def monotonic(self) -> float:
        """Return seconds of a monotonic clock, for measuring durations."""


class EventLog(Protocol):
    """Structured log for operators. Callers must not pass prompts, completions or their tokens.

    Adapters redact access tokens, other credentials and the path of the user's home directory.
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
            sizes: Size in bytes of each item, such as a file.
        """

    @abstractmethod
    def advance(self, done: Mapping[str, int]) -> None:
        """Report the bytes done.

        Args:
            done: Bytes done of every started item; the number decreases when an item is restarted.
        """

    @abstractmethod
    def end(self) -> None:
        """End the phase, after success or failure."""

    @abstractmethod
    def note(self, message: str) -> None:
        """Show one line, such as that the operation waits for another process; allowed outside phases."""


class Confirmation(Protocol):
    """Asks the user at the terminal."""

    @abstractmethod
    def ask(self, facts: tuple[str, ...], question: str, *, default: bool) -> bool | None:
        """Ask a yes-or-no question.

        Args:
            facts: Lines to show before the question.
            question: The question, with its question mark.
            default: The answer when the user types nothing.

        Returns:
            The answer; None when there is no terminal, and nothing was shown.
        """
