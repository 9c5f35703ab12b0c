"""Ports: where models are found by name, and the cache of those downloaded from the hub."""

import contextlib
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable
from contextlib import AbstractContextManager
from typing import Protocol

import attrs

from mlxk.application.ports.system import Progress
from mlxk.domain.errors import Advice, LocksPresentError
from mlxk.domain.models.disk_usage import ModelUsage, Waste
from mlxk.domain.models.model import ModelHandle, Origin


class ModelSource(Protocol):
    """A source of models: the cache, the workspace home, or the built-in models. Every call reads the disk."""

    @abstractmethod
    def names(self) -> Iterable[str]:
        """Return the names of all models, sorted; empty when the source does not exist.

        Raises:
            StorageError: The source exists but cannot be read.
        """

    @abstractmethod
    def find(self, name: str) -> ModelHandle | None:
        """Return the handle of the model of exactly this name, or None.

        Raises:
            StorageError: The source exists but cannot be read.
        """


@attrs.frozen
class ManifestEntry:
    """One file of a revision as the hub listed it when it was downloaded."""

    path: str
    """Relative to the snapshot, with ``/`` between parts."""
    size_bytes: int
    digest: str | None
    """64 hexadecimal digits: sha256 of the content; 40: git's sha1 of it as a blob; None: not recorded."""


@attrs.frozen
class LockHolder:
    """Another process that works on a model."""

    process: int | None
    """Process id; None when the system does not report it."""
    activity: str
    """Participle phrase, such as ``downloading it``."""

    def __str__(self) -> str:
        process = f"process {self.process}" if self.process else "another process"
        return f"{process}, which is {self.activity}"


def used_by(holders: tuple[LockHolder, ...]) -> str:
    """Return the clause that names the processes that work on a model."""
    return f"in use by {', and by '.join(map(str, holders))}"


def in_use(name: str, holders: tuple[LockHolder, ...], hint: Advice | None = None) -> LocksPresentError:
    """Return the error that names the processes that work on a model; its hint is to wait, unless another is given."""
    processes = [holder.process for holder in holders if holder.process]
    stop = f", or stop process {processes[0]}" if processes else ""
    return LocksPresentError(
        f"'{name}' is {used_by(holders)}",
        hint=hint or f"Wait until it is done{stop}.",
        detail={"processes": processes} if processes else None,
    )


@attrs.frozen
class Removal:
    """The revisions of one model to remove, and the space that frees."""

    name: str
    """``org/name``."""
    revisions: tuple[str, ...]
    """Snapshots to remove, sorted; empty for a download that never completed a file."""
    all_revisions: bool
    """Whether the model is removed entirely."""
    size_bytes: int
    """Space freed: the sizes of the files that no other revision uses."""
    lock_files: int = 0
    """Stale lock files that are removed as well."""
    link_to: str | None = None
    """Where the model's folder leads when it is a link: only the link is removed, and nothing there."""
    linked_parts: tuple[str, ...] = ()
    """Parts of the model's folder that are links; only the links are removed, sorted."""

    @property
    def label(self) -> str:
        """The name, with the abbreviated revision unless all are removed."""
        return self.name if self.all_revisions else f"{self.name}@{self.revisions[0][:12]}"


class ModelCache(ModelSource, Protocol):
    """The hub cache. Models without any snapshot are listed as well: they are incomplete downloads.

    Other programs may change the cache at any time. At most one process of this program changes a model at a time.
    """

    @abstractmethod
    def find(self, name: str, revision: str | None = None) -> ModelHandle | None:
        """Return the handle of one cached model, or None when it is not cached.

        Args:
            name: ``org/name``, matched exactly.
            revision: A branch, a tag, a commit or a prefix of one. None means the snapshot that ``refs/main`` points
                to, or the newest one when that is missing. The handle of a model without snapshots has the revision
                None and the model's folder as its directory.

        Raises:
            RevisionNotFoundError: The model is cached but the revision is not, or the prefix is ambiguous;
                ``matches`` lists the cached revisions.
            StorageError: The cache exists but cannot be read.
        """

    @abstractmethod
    def manifest(self, handle: ModelHandle) -> tuple[ManifestEntry, ...] | None:
        """Return the recorded files of a handle's revision, sorted by path; None when there is no record."""

    @abstractmethod
    def unfinished_downloads(self, handle: ModelHandle) -> int:
        """Return the number of partially downloaded files of a model."""

    @abstractmethod
    def reserve(
        self, name: str, activity: str, wait: Callable[[LockHolder], None] | None = None
    ) -> AbstractContextManager[None]:
        """Lock a model against other processes of this program for the length of a ``with`` block.

        Args:
            name: ``org/name``; it need not be cached.
            activity: Shown to processes that wait, such as ``downloading it``.
            wait: Called once when another process holds the lock; entering the block then blocks. None means to fail.

        Raises:
            LocksPresentError: Another process holds the lock and ``wait`` is None.
            StorageError: The cache cannot be written to.
        """

    @abstractmethod
    def holders(self, name: str) -> tuple[LockHolder, ...]:
        """Return the other processes, of any program, that hold locks on files of a model."""

    @abstractmethod
    def use(self, handle: ModelHandle, activity: str) -> AbstractContextManager[None]:
        """Show to other processes, for the length of a ``with`` block, that a cached model is in use.

        Args:
            handle: The model; one that is not in the cache needs no such sign.
            activity: Shown to the other processes, such as ``serving it``.
        """

    @abstractmethod
    def users(self, name: str) -> tuple[LockHolder, ...]:
        """Return the other processes of this program that have a model in use."""

    @abstractmethod
    def ask_back(self, name: str, seconds: float) -> None:
        """Ask the other processes of this program that have a model in use to unload it, and wait until they have.

        Args:
            name: ``org/name``.
            seconds: The most to wait; ``users`` then tells who still has it.
        """

    @abstractmethod
    def asked_back(self) -> tuple[ModelHandle, ...]:
        """Return the models that this process has in use, and that another one asks to be unloaded now."""

    @abstractmethod
    def free_bytes(self) -> int | None:
        """Return the free space of the cache's disk; None when it is unknown."""

    @abstractmethod
    def plan_removal(self, name: str, revision: str | None = None) -> Removal | None:
        """Return the removal of a model or revision, or None when it is not cached.

        Args:
            name: ``org/name``.
            revision: The directory name of a snapshot; None means all of them.

        Raises:
            StorageError: The cache cannot be read.
        """

    @abstractmethod
    def remove(self, planned: Removal) -> None:
        """Execute a removal; files that no longer exist are ignored. Must be called inside ``reserve``.

        Raises:
            StorageError: A file cannot be deleted. The model is then damaged; removing it again continues.
        """

    @abstractmethod
    def usage(self, name: str) -> ModelUsage | None:
        """Return what a model takes on the disk, or None when it is not cached.

        Args:
            name: ``org/name``.

        Raises:
            StorageError: A directory cannot be read.
        """

    @abstractmethod
    def remainder_bytes(self, models: Collection[ModelUsage]) -> int:
        """Return the bytes of the cache that belong to no model, such as lock files and data sets.

        Args:
            models: All of them.

        Raises:
            StorageError: The cache cannot be read.
        """

    @abstractmethod
    def prune(self, waste: Waste) -> None:
        """Remove waste; what no longer exists is ignored. Must be called inside ``reserve``.

        Raises:
            StorageError: A file cannot be deleted; what was removed before stays so.
        """


def reserved(cache: ModelCache, name: str, activity: str, progress: Progress) -> AbstractContextManager[None]:
    """Lock a model of the cache for the length of a ``with`` block, waiting for other processes.

    Args:
        cache: The cache.
        name: ``org/name``; it need not be cached.
        activity: Shown to processes that wait, such as ``pulling it``.
        progress: Gets a note when this process has to wait.

    Raises:
        StorageError: The cache cannot be written to.
    """

    def waiting(holder: LockHolder) -> None:
        progress.note(f"Waiting for {holder}.")

    return cache.reserve(name, activity, waiting)


def reserved_source(
    cache: ModelCache, source: ModelHandle, activity: str, progress: Progress
) -> AbstractContextManager[None]:
    """Lock the source of a copy as ``reserved`` does; one outside the cache has no lock."""
    if source.origin is not Origin.CACHE:
        return contextlib.nullcontext()
    return reserved(cache, source.name, activity, progress)
