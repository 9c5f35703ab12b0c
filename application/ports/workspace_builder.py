"""Port: making a workspace, so that it is either not there or complete."""

import enum
from abc import abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

import attrs

from mlxk.domain.models.model import ModelHandle


class CopyMethod(enum.Enum):
    """How a file came into a workspace."""

    CLONED = "cloned"
    """It shares its blocks with the source until one of them is changed."""
    COPIED = "copied"
    KEPT = "kept"
    """An earlier run that did not finish had brought it."""


@attrs.frozen
class Provenance:
    """Where a workspace comes from, as its record will say."""

    operation: str
    """The verb that made it: clone or convert."""
    source_repo: str | None = None
    source_revision: str | None = None
    mode: str | None = None
    """What convert did."""
    bits: int | None = None
    group_size: int | None = None

    @property
    def identity(self) -> str:
        """A text that is the same for two runs only when they make the same workspace."""
        return "|".join(str(value) for value in attrs.astuple(self))


class WorkspaceDraft(Protocol):
    """A workspace that is being made, beside its place and under another name."""

    @property
    @abstractmethod
    def directory(self) -> str:
        """Return where it is, absolute; whoever makes the workspace may write there."""

    @abstractmethod
    def take(self, source: str, path: str, tell: Callable[[int], None]) -> CopyMethod:
        """Bring one file here, links followed.

        Args:
            source: The directory it comes from.
            path: The file, relative to both directories.
            tell: Called with the bytes that are done.

        Raises:
            StorageError: It cannot be read, or the disk refuses.
        """

    @abstractmethod
    def write(self, path: str, content: bytes) -> None:
        """Write one file, relative to the draft.

        Raises:
            StorageError: The disk refuses.
        """

    @abstractmethod
    def publish(self) -> ModelHandle:
        """Record where it comes from and what is in it, and move it to its place in one step.

        Raises:
            StorageError: The disk refuses, or something else has taken its place meanwhile.
        """


class WorkspaceBuilder(Protocol):
    """Makes workspaces. Nothing of one is visible at its place before all of it is."""

    @abstractmethod
    def place(self, target: str | None, name: str) -> str:
        """Return the absolute directory a target means, after making sure that a workspace can be made there.

        Args:
            target: What the user typed: a path, or a bare name in the workspace home if there is one; None means the
                workspace home.
            name: What the workspace is called when only the home is known.

        Raises:
            ValidationError: Something is there already, its parent is not, it lies in the model cache, or nothing was
                typed and there is no workspace home.
            StorageError: Its parent cannot be written to.
        """

    @abstractmethod
    def draft(
        self, place: str, provenance: Provenance, *, keep_unfinished: bool
    ) -> AbstractContextManager[WorkspaceDraft]:
        """Open the draft of a workspace for the length of a ``with`` block.

        Args:
            place: As ``place`` returned it.
            provenance: Where it comes from. What an earlier run with the same provenance left is used again.
            keep_unfinished: Whether to keep what there is when the block fails, so that a later run can go on.

        Raises:
            LocksPresentError: Another process is making a workspace at the same place.
            ValidationError: Something that is no draft has the draft's name.
            StorageError: The disk refuses.
        """
