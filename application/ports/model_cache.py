"""Ports: sources of models by name, and the cache of models downloaded from the hub."""

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
        """Return the handle of the model with exactly this name; None when there is none.

        Raises:
            StorageError: The source exists but cannot be read.
        """


@attrs.frozen
class ManifestEntry:
    """The recorded size and digest of one file of a model."""

    path: str
    """Relative to the model's directory, with ``/`` between parts."""
    size_bytes: int
    digest: str | None
    """64 hexadecimal digits: SHA-256 of the content; 40: its git blob id (SHA-1); None: not recorded."""


@attrs.frozen
class LockHolder:
    """Another process that holds a lock on a model."""

    process: int | None
    """Process id; None when the system does not report it."""
    activity: str
    """What it does, as a participle phrase such as ``downloading it``."""

    def __str__(self) -> str:
        process = f"process {self.process}" if self.process else "another process"
        return f"{process}, which is {self.activity}"


def used_by(holders: tuple[LockHolder, ...]) -> str:
    """Return the clause that names the processes which hold locks on a model."""
    return f"in use by {', and by '.join(map(str, holders))}"


def in_use(name: str, holders: tuple[LockHolder, ...], hint: Advice | None = None) -> LocksPresentError:
    """Return the error that names the processes which hold locks on a model; the default hint is to wait for them."""
    processes = [holder.process for holder in holders if holder.process]
    stop = f", or stop process {processes[0]}" if processes else ""
    return LocksPresentError(
        f"'{name}' is {used_by(holders)}",
        hint=hint or f"Wait until it is done{stop}.",
        detail={"processes": processes} if processes else None,
    )


@attrs.frozen
class Removal:
    """A planned removal of revisions of one model."""

    name: str
    """``org/name``."""
    revisions: tuple[str, ...]
    """Snapshots to remove, sorted; empty for a download that never completed a file."""
    all_revisions: bool
    """Whether the model is removed entirely."""
    size_bytes: int
    """Space freed: the sizes of the files that no other revision uses."""
    lock_files: int = 0
    """Number of stale lock files that are removed as well."""
    link_to: str | None = None
    """The target of the model's folder when that is a symbolic link: only the link is removed, not the target."""
    linked_parts: tuple[str, ...] = ()
    """Symbolic links within the model's folder, sorted; their targets are not removed."""

    @property
    def label(self) -> str:
        """The name, with the abbreviated revision unless all are removed."""
        return self.name if self.all_revisions else f"{self.name}@{self.revisions[0][:12]}"


class ModelCache(ModelSource, Protocol):
    """The hub cache. Its models include incomplete downloads, which have no snapshot.

    Other programs may change the cache at any time. Processes of this program change a model only while they hold its
    lock (``reserve``).
    """

    @abstractmethod
    def find(self, name: str, revision: str | None = None) -> ModelHandle | None:
        """Return the handle of one cached model; None when it is not cached.

        The handle of a model without snapshots has the revision None, and the model's folder as its directory.

        Args:
            name: ``org/name``, matched exactly.
            revision: A branch, a tag, a commit or a prefix of one. None means the snapshot that ``refs/main`` points
                to, or the newest one when that is missing.

        Raises:
            RevisionNotFoundError: The model is cached but the revision is not, or the prefix is ambiguous;
                ``matches`` lists the cached revisions.
            StorageError: The cache exists but cannot be read.
        """

    @abstractmethod
    def manifest(self, handle: ModelHandle) -> tuple[ManifestEntry, ...] | None:
        """Return the files of a revision as the hub listed them, sorted by path; None when that was not recorded."""

    @abstractmethod
    def unfinished_downloads(self, handle: ModelHandle) -> int:
        """Return the number of partially downloaded files of a model."""

    @abstractmethod
    def reserve(
        self, name: str, activity: str, wait: Callable[[LockHolder], None] | None = None
    ) -> AbstractContextManager[None]:
        """Hold the exclusive lock of a model for the length of a ``with`` block.

        The lock excludes other processes of this program only. A cache that is read-only, or on a disk without locks,
        is not locked.

        Args:
            name: ``org/name``; it need not be cached.
            activity: Participle phrase for processes that wait, such as ``downloading it``.
            wait: Called once when another process holds the lock; entering the block then blocks until it is free. None
                means to raise instead.

        Raises:
            LocksPresentError: Another process holds the lock and ``wait`` is None.
            StorageError: The cache cannot be written to.
        """

    @abstractmethod
    def holders(self, name: str) -> tuple[LockHolder, ...]:
        """Return the other processes, of any program, that hold write locks on a model or its files."""

    @abstractmethod
    def use(self, handle: ModelHandle, activity: str) -> AbstractContextManager[None]:
        """Hold a shared use lock on a model for the length of a ``with`` block: its files must not be removed.

        Args:
            handle: The model; nothing is locked for one outside the cache.
            activity: Participle phrase for other processes, such as ``serving it``.
        """

    @abstractmethod
    def users(self, name: str) -> tuple[LockHolder, ...]:
        """Return the other processes of this program that hold a use lock on a model."""

    @abstractmethod
    def ask_back(self, name: str, seconds: float) -> None:
        """Ask the processes that hold a use lock on a model to unload it, and wait until they have.

        Args:
            name: ``org/name``.
            seconds: Timeout; ``users`` returns the processes that still hold a lock after it.
        """

    @abstractmethod
    def asked_back(self) -> tuple[ModelHandle, ...]:
        """Return the models under a use lock of this process which another process is asking to be unloaded."""

    @abstractmethod
    def free_bytes(self) -> int | None:
        """Return the free bytes of the cache's disk; None when unknown."""

    @abstractmethod
    def plan_removal(self, name: str, revision: str | None = None) -> Removal | None:
        """Return the plan to remove a model or one revision of it; None when it is not cached.

        Args:
            name: ``org/name``.
            revision: The directory name of a snapshot; None means all of them.

        Raises:
            StorageError: The cache cannot be read.
        """

    @abstractmethod
    def remove(self, planned: Removal) -> None:
        """Execute a removal; missing files are ignored. Must be called inside ``reserve``.

        Raises:
            StorageError: A file cannot be deleted. The model is then damaged; removing it again continues.
        """

    @abstractmethod
    def usage(self, name: str) -> ModelUsage | None:
        """Return the disk usage of a model; None when it is not cached.

        Args:
            name: ``org/name``.

        Raises:
            StorageError: A directory cannot be read.
        """

    @abstractmethod
    def remainder_bytes(self, models: Collection[ModelUsage]) -> int:
        """Return the bytes of the cache that belong to no model, such as lock files and data sets.

        Args:
            models: The usage of all models of the cache.

        Raises:
            StorageError: The cache cannot be read.
        """

    @abstractmethod
    def prune(self, waste: Waste) -> None:
        """Remove waste; missing files are ignored. Must be called inside ``reserve``.

        Raises:
            StorageError: A file cannot be deleted; files removed before it stay removed.
        """


def reserved(cache: ModelCache, name: str, activity: str, progress: Progress) -> AbstractContextManager[None]:
    """Lock a model of the cache for the length of a ``with`` block, waiting for other processes.

    Args:
        cache: The cache.
        name: ``org/name``; it need not be cached.
        activity: Participle phrase for processes that wait, such as ``pulling it``.
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
    """Lock the source of a copy as ``reserved`` does; a model outside the cache is not locked."""
    if source.origin is not Origin.CACHE:
        return contextlib.nullcontext()
    return reserved(cache, source.name, activity, progress)
