"""Port: changing the model cache: reserving a model, seeing who else works on it, removing it."""

from abc import abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

import attrs

from mlxk.domain.errors import LocksPresentError


@attrs.frozen
class LockHolder:
    """Another process that is working on a model."""

    process: int | None
    """Its id; None when the system does not tell."""
    activity: str
    """What it does, in words that follow "which is"."""

    def __str__(self) -> str:
        who = f"process {self.process}" if self.process else "another process"
        return f"{who}, which is {self.activity}"


def in_use(name: str, holders: tuple[LockHolder, ...]) -> LocksPresentError:
    """Return the error that says who works on a model."""
    processes = [holder.process for holder in holders if holder.process]
    stop = f", or stop process {processes[0]}" if processes else ""
    return LocksPresentError(
        f"'{name}' is in use by {holders[0]}",
        hint=f"Wait until it is done{stop}.",
        detail={"processes": processes} if processes else None,
    )


@attrs.frozen
class Removal:
    """What removing a model, or revisions of it, takes away."""

    name: str
    """``org/name``."""
    revisions: tuple[str, ...]
    """Snapshots that go, sorted; empty for a download that never finished a file."""
    whole: bool
    """Whether nothing of the model stays."""
    size_bytes: int
    """What the disk gets back: the sizes of all files that only these revisions use."""
    lock_files: int = 0
    """Lock files that nobody holds and that go as well."""

    @property
    def label(self) -> str:
        """What goes, for people: the name, with the revision when only that goes."""
        return self.name if self.whole else f"{self.name}@{self.revisions[0][:12]}"


class CacheEditor(Protocol):
    """Writes to the model cache. Two processes never write to the same model at once."""

    @abstractmethod
    def reserve(
        self, name: str, activity: str, wait: Callable[[LockHolder], None] | None = None
    ) -> AbstractContextManager[None]:
        """Keep other processes of ours off a model for the length of a ``with`` block.

        Args:
            name: ``org/name``; it need not be cached.
            activity: What will be done, for those who have to wait.
            wait: Called once when somebody else has it; entering the block then waits. None means not to wait.

        Raises:
            LocksPresentError: Somebody else has it and ``wait`` is None.
            StorageError: The cache cannot be written to.
        """

    @abstractmethod
    def holders(self, name: str) -> tuple[LockHolder, ...]:
        """Return who works on files of a model right now, whichever program it is, ourselves excepted."""

    @abstractmethod
    def free_bytes(self) -> int | None:
        """Return how much the disk of the cache can still take; None when it does not tell."""

    @abstractmethod
    def plan_removal(self, name: str, revision: str | None = None) -> Removal | None:
        """Return what a removal would take away, or None when the model is not cached.

        Args:
            name: ``org/name``.
            revision: The directory name of a snapshot; None means the whole model.

        Raises:
            StorageError: The cache cannot be read.
        """

    @abstractmethod
    def remove(self, planned: Removal) -> None:
        """Take away what was planned; what is gone already is no failure. Call it inside ``reserve``.

        Raises:
            StorageError: A file cannot be removed; the model is then damaged, and removing it again continues.
        """
