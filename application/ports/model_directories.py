"""Ports to model directories: their files, the verification of their content, and editable workspaces."""

import datetime
import enum
from abc import abstractmethod
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Protocol

import attrs

from mlxk.application.ports.model_cache import ManifestEntry, ModelSource
from mlxk.domain.models.model import FileEntry, ModelHandle, Workspace


@attrs.frozen
class FileListing:
    """The files of a model directory at one point in time."""

    files: tuple[FileEntry, ...]
    """Regular files, links followed, sorted by path; files that file managers and network drives leave are omitted."""
    dangling: tuple[str, ...]
    """Dangling links, sorted by path."""
    modified: datetime.datetime
    """Modification time of the directory, UTC."""


class ModelFiles(Protocol):
    """Reads files below a model directory. Links to files are followed, links to directories are not.

    Directories are absolute paths; file paths are relative to them, with ``/`` between parts.
    """

    @abstractmethod
    def list(self, directory: str) -> FileListing:
        """List the files of a model.

        Files that disappear or cannot be accessed meanwhile are omitted; link cycles are not followed.

        Raises:
            StorageError: The directory does not exist or cannot be read.
        """

    @abstractmethod
    def outward_links(self, directory: str) -> tuple[str, ...]:
        """Return the links whose targets are outside the directory, missing, or directories; sorted by path.

        Raises:
            StorageError: The directory does not exist or cannot be read.
        """

    @abstractmethod
    def read(self, directory: str, path: str, limit: int) -> bytes | None:
        """Return the first ``limit`` bytes of one file, or None when it does not exist or cannot be read."""

    @abstractmethod
    def read_end(self, directory: str, path: str, limit: int) -> bytes | None:
        """Return the last ``limit`` bytes of one file, or None when it does not exist or cannot be read."""

    @abstractmethod
    def content_hash(self, directory: str) -> str | None:
        """Return the content hash of a model as workspaces record it; None when a link or a damaged file prevents it.

        Of weight files only the headers count.
        """


@attrs.frozen
class VerificationResult:
    """Result of comparing every file with its recorded digest."""

    checked: int
    """Number of files with a recorded digest."""
    unverifiable: tuple[str, ...]
    """Files without a recorded digest, sorted."""
    damaged: tuple[str, ...]
    """Files that differ from their digest or cannot be read, sorted."""


class ContentVerifier(Protocol):
    """Compares the files of a model with their recorded digests, offline."""

    @abstractmethod
    def verify(self, handle: ModelHandle, progress: Callable[[int, int], None]) -> VerificationResult:
        """Hash every file that has a recorded digest.

        Args:
            handle: A model of any origin; for a workspace the digests come from its record, if it has one.
            progress: Called with the bytes read so far and the total, often enough for a progress bar.

        Raises:
            StorageError: The directory cannot be read.
        """


class CopyMethod(enum.Enum):
    """How a file was added to a workspace."""

    CLONED = "cloned"
    """Copied on write: it shares its blocks with the source until either file changes."""
    COPIED = "copied"
    KEPT = "kept"
    """Present already, from an earlier run that did not finish."""


@attrs.frozen
class Provenance:
    """The origin of a workspace, as recorded in it."""

    operation: str
    """The operation that made it: clone, convert, tune or fuse."""
    source_repo: str | None = None
    source_revision: str | None = None
    mode: str | None = None
    """Mode of a conversion, or method of a training."""
    bits: int | None = None
    group_size: int | None = None
    draft: str | None = None
    """Overrides ``identity``; None derives it from all fields above."""

    @property
    def identity(self) -> str:
        """Key of the unfinished draft: a run continues the draft of an earlier run with an equal identity."""
        return self.draft or "|".join(str(value) for value in attrs.astuple(self))


class WorkspaceDraft(Protocol):
    """An unpublished workspace: a hidden directory beside the target."""

    @property
    @abstractmethod
    def directory(self) -> str:
        """Its directory, absolute. Files may be written there directly; ``keep`` then adds them to the workspace."""

    @abstractmethod
    def copy(self, source: str, path: str, report: Callable[[int], None]) -> CopyMethod:
        """Copy one file, following links.

        Args:
            source: The source directory.
            path: The file, relative to both directories.
            report: Callback with the bytes copied so far.

        Raises:
            StorageError: The file cannot be read or written.
        """

    @abstractmethod
    def write(self, path: str, content: bytes) -> None:
        """Write one file, relative to the draft.

        Raises:
            StorageError: The file cannot be written.
        """

    @abstractmethod
    def keep(self, path: str) -> None:
        """Mark a file of the directory as part of the workspace; leftovers of earlier runs are not published."""

    @abstractmethod
    def publish(self) -> ModelHandle:
        """Record provenance and content hash, and move the directory to the target atomically.

        Raises:
            StorageError: The record cannot be written, or the target exists by now.
        """


class WorkspaceStore(ModelSource, Protocol):
    """Finds, reads and creates workspaces. As a ``ModelSource`` it lists the workspaces of the workspace home."""

    @abstractmethod
    def at(self, path: str) -> ModelHandle | None:
        """Return the handle of the workspace at a path; None when the path holds neither a model nor an adapter.

        Args:
            path: Absolute, relative to the working directory, or starting with ``~/``.
        """

    @abstractmethod
    def below(self, pattern: str) -> Iterable[ModelHandle]:
        """Return the workspaces that an explicit path selects, sorted by path; empty when there are none.

        The path of a workspace selects that workspace; the path of any other directory selects the workspaces directly
        in it; any other path is a prefix (``./gemma-`` selects ``./gemma-3n`` and ``./gemma-4``). ``display_name`` is
        the path relative to the directory searched, or absolute when the pattern was.

        Args:
            pattern: Absolute, relative to the working directory, or starting with ``~/``.

        Raises:
            StorageError: The directory exists but cannot be read.
        """

    @abstractmethod
    def read(self, handle: ModelHandle) -> Workspace:
        """Return the provenance and state of a workspace; without a valid record it counts as unmanaged."""

    @abstractmethod
    def manifest(self, handle: ModelHandle) -> tuple[ManifestEntry, ...] | None:
        """Return the files recorded for a workspace, sorted by path; None when it is not managed.

        A file whose record does not cover every byte (weights, unless recorded with ``deep``) has no digest.
        """

    @abstractmethod
    def recalculate(self, handle: ModelHandle, deep: bool = False) -> Workspace:
        """Record the present content as the clean state and return the new state. Idempotent.

        Args:
            handle: A managed workspace.
            deep: Also record a digest of every byte, tensors included, so that deep verification detects changed
                weights; reads the whole model.

        Raises:
            ValidationError: The workspace is not managed, so there is no record to update; or it has no content hash
                because of a link out of it or damaged weights, which the message names.
            StorageError: A file cannot be read, or the record cannot be written; the old record is then intact.
        """

    @abstractmethod
    def place(self, target: str | None, name: str) -> str:
        """Return the absolute directory of a new workspace after checking that it can be created.

        Args:
            target: A path, or a bare name relative to the workspace home if one is set; None means a directory called
                ``name`` in the workspace home.
            name: Directory name when ``target`` is None.

        Raises:
            ValidationError: The target exists and is not an empty directory, its parent does not exist, it is inside
                the model cache, or there is neither a target nor a workspace home.
            StorageError: The parent is not writable.
        """

    @abstractmethod
    def draft(
        self, place: str, provenance: Provenance, *, keep_unfinished: bool
    ) -> AbstractContextManager[WorkspaceDraft]:
        """Open the draft of a new workspace for the length of a ``with`` block. The target appears only on ``publish``.

        Args:
            place: The target directory, as ``place`` returned it.
            provenance: Origin of the workspace. The draft of an earlier run with the same ``identity`` is continued.
            keep_unfinished: Whether to keep the draft when the block fails, so that a later run can continue; an empty
                draft is never kept.

        Raises:
            LocksPresentError: Another process is making a workspace at the same place.
            ValidationError: Something that is not a draft has the draft's name.
            StorageError: The draft cannot be created or read.
        """
