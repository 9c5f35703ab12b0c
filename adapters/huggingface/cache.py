"""The hub cache on disk: lookup of models and revisions, reservation, and removal.

The hub client is not imported to read the cache: one directory scan gives what its ``scan_cache_dir`` takes a hundred
milliseconds for.
"""

import contextlib
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager

from mlxk.adapters.huggingface import removal
from mlxk.adapters.huggingface.layout import (
    ModelFolder,
    is_safe,
    leads_nowhere,
    model_names,
    read_reference,
    read_tree,
    snapshots_of,
)
from mlxk.adapters.huggingface.locks import (
    held_locks,
    reserve_model,
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

    def use(self, handle: ModelHandle, activity: str) -> AbstractContextManager[None]:
        cached = handle.origin is Origin.CACHE
        return use_model(self._folder(handle.name), activity) if cached else contextlib.nullcontext()

    def users(self, name: str) -> tuple[LockHolder, ...]:
        return users_of(self._folder(name))

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
            return removal.plan_removal(self._folder(name), revision)
        except OSError as error:
            raise _not_removable(error) from error

    def remove(self, planned: Removal) -> None:
        folder = self._folder(planned.name)
        try:
            removal.remove(folder, planned)
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
