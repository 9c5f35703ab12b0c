"""Port: progress of a long operation."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Protocol


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
