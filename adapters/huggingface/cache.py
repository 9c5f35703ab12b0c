"""The hub cache on disk: lookup of models and revisions, reservation, and removal, which follows no link out of it.

The hub client is not imported to read the cache: one directory scan gives what its ``scan_cache_dir`` takes a hundred
milliseconds for.
"""

import contextlib
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import attrs

from mlxk.adapters.huggingface.layout import (
    ModelFolder,
    is_safe,
    leads_nowhere,
    model_names,
    read_reference,
    read_tree,
    references_to,
    snapshots_of,
)
from mlxk.adapters.huggingface.locks import (
    POLL_SECONDS,
    held_locks,
    is_requested,
    lock_files,
    remove_lock_files,
    reserve_model,
    return_requested,
    use_model,
    users_of,
)
from mlxk.application.ports.model_cache import LockHolder, ManifestEntry, ModelCache, Removal
from mlxk.domain.errors import Advice, Remedy, RevisionNotFoundError, StorageError
from mlxk.domain.models.model import ModelHandle, Origin


class HuggingFaceModelCache(ModelCache):
    """The ``hub`` directory of the Hugging Face cache.

    Args:
        root: The ``hub`` directory; it need not exist.
    """

    def __init__(self, root: str) -> None:
        self._root = os.path.abspath(root)
        self._used: list[ModelHandle] = []
        """The models that this process has in use, each as often as it is."""

    def names(self) -> tuple[str, ...]:
        try:
            return model_names(self._root)
        except FileNotFoundError:
            self._require_connected()
            return ()
        except OSError as error:
            raise _unreadable(error) from error

    def find(self, name: str, revision: str | None = None) -> ModelHandle | None:
        """Return the handle of a cached model; one whose snapshots cannot be read counts as one without snapshots."""
        folder = self._folder(name)
        if not folder.is_valid:
            return None
        chosen = _current(folder) if revision is None else None
        if chosen is None:
            if leads_nowhere(folder.directory):
                return ModelHandle(name, folder.directory, Origin.CACHE, None)
            if not os.path.isdir(folder.directory):
                self._check_readable()
                return None
            chosen = _newest(folder) if revision is None else _named(folder, revision)
        directory = folder.snapshot(chosen) if chosen else folder.directory
        return ModelHandle(name, directory, Origin.CACHE, chosen)

    def manifest(self, handle: ModelHandle) -> tuple[ManifestEntry, ...] | None:
        folder = self._folder(handle.name)
        return read_tree(folder, handle.commit) if folder.is_valid and handle.commit else None

    def unfinished_downloads(self, handle: ModelHandle) -> int:
        folder = self._folder(handle.name)
        if not folder.is_valid:
            return 0
        try:
            with os.scandir(folder.blobs) as entries:
                return sum(entry.name.endswith(".incomplete") for entry in entries)
        except OSError:
            return 0

    def reserve(
        self, name: str, activity: str, wait: Callable[[LockHolder], None] | None = None
    ) -> AbstractContextManager[None]:
        return reserve_model(self._folder(name), activity, wait)

    def holders(self, name: str) -> tuple[LockHolder, ...]:
        return held_locks(self._folder(name))

    @contextlib.contextmanager
    def use(self, handle: ModelHandle, activity: str) -> Iterator[None]:
        if handle.origin is not Origin.CACHE:
            yield
            return
        with use_model(self._folder(handle.name), activity):
            self._used.append(handle)
            try:
                yield
            finally:
                self._used.remove(handle)

    def users(self, name: str) -> tuple[LockHolder, ...]:
        return users_of(self._folder(name))

    def ask_back(self, name: str, seconds: float) -> None:
        folder, end = self._folder(name), time.monotonic() + seconds
        with return_requested(folder):
            while users_of(folder) and time.monotonic() < end:
                time.sleep(POLL_SECONDS)

    def asked_back(self) -> tuple[ModelHandle, ...]:
        return tuple(handle for handle in dict.fromkeys(self._used) if is_requested(self._folder(handle.name)))

    def free_bytes(self) -> int | None:
        existing = self._root
        while not os.path.isdir(existing) and existing != os.path.dirname(existing):
            existing = os.path.dirname(existing)
        try:
            return shutil.disk_usage(existing).free
        except OSError:
            return None

    def plan_removal(self, name: str, revision: str | None = None) -> Removal | None:
        try:
            return _plan_removal(self._folder(name), revision)
        except OSError as error:
            raise _not_removable(error) from error

    def remove(self, planned: Removal) -> None:
        folder = self._folder(planned.name)
        try:
            _remove(folder, planned)
        except OSError as error:
            raise _not_removable(error) from error

    def _folder(self, name: str) -> ModelFolder:
        return ModelFolder(self._root, name)

    def _check_readable(self) -> None:
        try:
            os.scandir(self._root).close()
        except FileNotFoundError:
            self._require_connected()
        except OSError as error:
            raise _unreadable(error) from error

    def _require_connected(self) -> None:
        """Distinguish a cache that does not exist from one on a disk that is not connected.

        Raises:
            StorageError: The cache, or a directory above it, is a link to something absent.
        """
        path = self._root
        while path != os.path.dirname(path):
            if leads_nowhere(path):
                raise StorageError(
                    f"the model cache cannot be read: it is a link to {os.readlink(path)}, which is not there",
                    hint="Connect the disk, or correct the link.",
                )
            path = os.path.dirname(path)


def _unreadable(error: OSError) -> StorageError:
    return StorageError(f"the model cache cannot be read: {error.strerror}")


def _not_removable(error: OSError) -> StorageError:
    where = os.path.basename(str(error.filename or ""))
    return StorageError(
        f"the model cannot be removed: {error.strerror}{f' ({where})' if where else ''}",
        hint="What is left of it can be removed by the same command.",
    )


def _current(folder: ModelFolder) -> str | None:
    """Return the snapshot ``refs/main`` points to, if it exists."""
    commit = read_reference(folder, "main")
    return commit if commit and os.path.isdir(folder.snapshot(commit)) else None


def _newest(folder: ModelFolder) -> str | None:
    dated = sorted(snapshots_of(folder, with_time=True))
    return dated[-1][1] if dated else None


def _named(folder: ModelFolder, revision: str) -> str:
    """Return the snapshot of a branch, a tag, a commit or a commit prefix."""
    present = sorted(snapshot for _, snapshot in snapshots_of(folder))
    if is_safe(revision):
        for exact in (revision, read_reference(folder, revision)):
            if exact in present:
                return exact
    matches = [snapshot for snapshot in present if revision and snapshot.startswith(revision)]
    if len(matches) == 1:
        return matches[0]
    problem = "fits several snapshots" if matches else "is not in the cache"
    fetch = Advice(Remedy.FETCH, {"name": f"{folder.name}@{revision}"})
    raise RevisionNotFoundError(
        f"revision '{revision}' of '{folder.name}' {problem}",
        hint="Give more digits of the commit." if matches else fetch,
        matches=tuple(matches or present),
    )


@attrs.define
class _Usage:
    """The contents of some snapshots."""

    blobs: set[str] = attrs.field(factory=set)
    """Names of the blobs they link to."""
    plain_bytes: int = 0
    """Size of the files that are not links, as on file systems without links."""


def _plan_removal(folder: ModelFolder, revision: str | None) -> Removal | None:
    """Return the removal of a model or revision, or None when it is not cached.

    Raises:
        OSError: The model cannot be read.
        StorageError: The revision is in another place, which a link leads to.
    """
    present = sorted(snapshot for _, snapshot in snapshots_of(folder))
    if os.path.islink(folder.directory) and revision is None:
        locks, target = len(lock_files(folder)), os.path.join(folder.root, os.readlink(folder.directory))
        return Removal(folder.name, tuple(present), True, 0, locks, link_to=os.path.normpath(target))
    if not os.path.isdir(folder.directory) or (revision is not None and revision not in present):
        return None
    if revision is None or (present == [revision] and not os.path.islink(folder.directory)):
        size, locks = _model_bytes(folder), len(lock_files(folder))
        return Removal(folder.name, tuple(present), True, size, locks, linked_parts=_linked_parts(folder))
    if os.path.islink(folder.directory) or os.path.islink(folder.snapshots):
        raise StorageError(
            f"'{folder.name}' is a link to another place, from which no revision is removed",
            hint="Remove the whole model here, which removes the link, or the revision at the other place.",
        )
    blobs = _only_used_by(folder, revision)
    size = _usage(folder, [revision]).plain_bytes + sum(_blob_bytes(folder, name) for name in blobs)
    return Removal(folder.name, (revision,), False, size)


def _remove(folder: ModelFolder, planned: Removal) -> None:
    """Execute a removal; files that no longer exist are ignored.

    Raises:
        OSError: A file cannot be deleted.
    """
    if planned.link_to is not None:
        os.unlink(folder.directory)
        remove_lock_files(folder)
    elif planned.all_revisions:
        _remove_model(folder)
    else:
        for revision in planned.revisions:
            _remove_revision(folder, revision)


def _remove_model(folder: ModelFolder) -> None:
    # References first: a removal that is interrupted leaves no reference to an incomplete snapshot.
    for part in (folder.references, folder.snapshots, folder.trees, folder.negative_cache):
        _remove_tree(part)
    for name in _own_entries(folder.blobs):
        _remove_blob(folder, name)
    _remove_tree(folder.directory)
    remove_lock_files(folder)


def _remove_revision(folder: ModelFolder, revision: str) -> None:
    blobs = _only_used_by(folder, revision)
    for reference in references_to(folder, revision):
        os.unlink(reference)
    _remove_tree(folder.snapshot(revision))
    if not os.path.islink(folder.trees):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(folder.tree(revision))
    if not os.path.islink(folder.negative_cache):
        _remove_tree(f"{folder.negative_cache}/{revision}")
    for name in sorted(blobs):
        _remove_blob(folder, name)


def _only_used_by(folder: ModelFolder, revision: str) -> set[str]:
    if os.path.islink(folder.blobs):
        return set()
    others = [name for name in _entries(folder.snapshots) if name != revision]
    return _usage(folder, [revision]).blobs - _usage(folder, others).blobs


def _usage(folder: ModelFolder, revisions: list[str]) -> _Usage:
    usage, blobs = _Usage(), os.path.realpath(folder.blobs)
    for revision in revisions:
        linked = os.path.islink(folder.snapshot(revision))
        for parent, _, names in os.walk(folder.snapshot(revision)):
            for name in names:
                path = f"{parent}/{name}"
                if not os.path.islink(path):
                    usage.plain_bytes += 0 if linked else os.stat(path).st_size
                    continue
                # Only the first link is followed: a blob may itself be a link into the shared store.
                target = os.path.join(os.path.realpath(parent), os.readlink(path))
                directory, blob = os.path.split(os.path.normpath(target))
                if directory == blobs:
                    usage.blobs.add(blob)
    return usage


def _remove_blob(folder: ModelFolder, name: str) -> None:
    path = folder.blob(name)
    shared = _shared_target(folder, path)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    if shared:
        from huggingface_hub.utils import _shared_blobs

        _shared_blobs.sweep_shared_blob(shared, cache_dir=folder.root)


def _blob_bytes(folder: ModelFolder, name: str) -> int:
    """Return the bytes that removing a blob frees: none while another model shares it."""
    path = folder.blob(name)
    shared = _shared_target(folder, path)
    if shared:
        from huggingface_hub.utils import _shared_blobs

        return _shared_blobs.expected_shared_blob_freed_size(
            shared, blob_paths_to_delete={Path(path)}, cache_dir=folder.root
        )
    with contextlib.suppress(OSError):
        return os.lstat(path).st_size
    return 0


def _shared_target(folder: ModelFolder, path: str) -> Path | None:
    """Return the path of a blob in the store that models share; None when it is not a link to it."""
    if not os.path.islink(path):
        return None
    from huggingface_hub.utils import _shared_blobs  # removal only: listing must not import the hub client

    return _shared_blobs.shared_blob_target(path, folder.root)


def _model_bytes(folder: ModelFolder) -> int:
    """Return the size of a model's regular files; links take next to nothing."""
    links = (name for name in _own_entries(folder.blobs) if os.path.islink(folder.blob(name)))
    total = sum(_blob_bytes(folder, name) for name in links)
    for parent, _, names in os.walk(folder.directory):
        for name in names:
            status = os.lstat(f"{parent}/{name}")
            total += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return total


def _remove_tree(path: str) -> None:
    if os.path.islink(path):
        os.unlink(path)
        return
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path)


def _linked_parts(folder: ModelFolder) -> tuple[str, ...]:
    """Return the parts of a model's folder that are links to other places."""
    names = ("blobs", "refs", "snapshots", "trees", *(f"snapshots/{name}" for name in _own_entries(folder.snapshots)))
    return tuple(sorted(name for name in names if os.path.islink(f"{folder.directory}/{name}")))


def _own_entries(directory: str) -> list[str]:
    """Return the entries of a directory; none of one that is a link to another place."""
    return [] if os.path.islink(directory) else _entries(directory)


def _entries(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return []
