"""Port: telling someone how far a long operation is."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Protocol


class Progress(Protocol):
    """Listens to one operation. All calls come from the thread that runs the operation."""

    @abstractmethod
    def begin(self, activity: str, sizes: Mapping[str, int]) -> None:
        """Learn what is to be done; called again when the next part of the work begins.

        Args:
            activity: What is done, as a word such as ``Downloading``.
            sizes: Name of every item to its size in bytes.
        """

    @abstractmethod
    def advance(self, done: Mapping[str, int]) -> None:
        """Learn how far it is.

        Args:
            done: Name of every item that has begun to the bytes of it that are done; a number may also fall, when an
                item has to begin anew.
        """

    @abstractmethod
    def end(self) -> None:
        """Learn that this part of the work is over, whether it succeeded or not."""

    @abstractmethod
    def note(self, message: str) -> None:
        """Learn something worth a line, such as that the work waits for another process."""
