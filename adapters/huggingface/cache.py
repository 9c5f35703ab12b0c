"""The hub cache on disk: lookup of models and revisions, reservation, and removal, which follows no link out of it.

Reading does not import the hub client: one directory scan replaces its ``scan_cache_dir``, which takes 100 ms.
"""

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager

from mlxk.adapters.huggingface.layout import (
    ModelFolder,
    as_spelled_on_disk,
    is_dangling,
    is_safe,
    model_names,
    read_reference,
    read_tree,
    snapshots_of,
)
from mlxk.adapters.huggingface.locks import (
    POLL_SECONDS,
    held_locks,
    is_return_requested,
    reserve_model,
    return_requested,
    use_model,
    users_of,
)
from mlxk.adapters.huggingface.removal import execute_pruning, execute_removal, plan_removal
from mlxk.adapters.huggingface.usage import measure, measure_remainder
from mlxk.application.ports.model_cache import LockHolder, ManifestEntry, ModelCache, Removal
from mlxk.domain.errors import Advice, Remedy, RevisionNotFoundError, StorageError
from mlxk.domain.models.disk_usage import ModelUsage, Waste
from mlxk.domain.models.model import ModelHandle, Origin
from mlxk.domain.models.snapshot import is_litter


class HuggingFaceModelCache(ModelCache):
    """The ``hub`` directory of the Hugging Face cache.

    Args:
        root: The ``hub`` directory; it need not exist.
    """

    def __init__(self, root: str) -> None:
        self._root = os.path.abspath(root)
        self._used: list[ModelHandle] = []
        """The models that this process uses, once per use."""

    def names(self) -> tuple[str, ...]:
        try:
            return model_names(self._root)
        except FileNotFoundError:
            self._require_connected()
            return ()
        except OSError as error:
            raise _unreadable(error) from error

    def find(self, name: str, revision: str | None = None) -> ModelHandle | None:
        """Return the handle of a cached model; unreadable snapshots count as missing."""
        folder = self._folder(name)
        if not folder.is_valid:
            return None
        folder = as_spelled_on_disk(folder)
        name = folder.name
        chosen = _current(folder) if revision is None else None
        if chosen is None:
            if is_dangling(folder.directory):
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
                return sum(entry.name.endswith(".incomplete") and not is_litter(entry.name) for entry in entries)
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
        folder, deadline = self._folder(name), time.monotonic() + seconds
        with return_requested(folder):
            while users_of(folder) and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)

    def asked_back(self) -> tuple[ModelHandle, ...]:
        return tuple(handle for handle in dict.fromkeys(self._used) if is_return_requested(self._folder(handle.name)))

    def free_bytes(self) -> int | None:
        ancestor = self._root
        while not os.path.isdir(ancestor) and ancestor != os.path.dirname(ancestor):
            ancestor = os.path.dirname(ancestor)
        try:
            return shutil.disk_usage(ancestor).free
        except OSError:
            return None

    def plan_removal(self, name: str, revision: str | None = None) -> Removal | None:
        try:
            return plan_removal(self._folder(name), revision)
        except OSError as error:
            raise _not_removable(error) from error

    def remove(self, planned: Removal) -> None:
        folder = self._folder(planned.name)
        try:
            execute_removal(folder, planned)
        except OSError as error:
            raise _not_removable(error) from error

    def usage(self, name: str) -> ModelUsage | None:
        folder = self._folder(name)
        try:
            return measure(folder, _current(folder) or _newest(folder)) if folder.is_valid else None
        except OSError as error:
            raise _unreadable(error) from error

    def remainder_bytes(self, models: Collection[ModelUsage]) -> int:
        counted = {identity for model in models for identity in model.identities}
        try:
            return measure_remainder(self._root, counted, {self._folder(model.name).folder_name for model in models})
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise _unreadable(error) from error

    def prune(self, waste: Waste) -> None:
        try:
            execute_pruning(self._folder(waste.name), waste)
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
            StorageError: The cache, or a directory above it, is a link to a missing target.
        """
        path = self._root
        while path != os.path.dirname(path):
            if is_dangling(path):
                raise StorageError(
                    f"the model cache cannot be read: it is a link to {os.readlink(path)}, which is not there",
                    hint="Connect the disk, or correct the link.",
                )
            path = os.path.dirname(path)


def _unreadable(error: OSError) -> StorageError:
    return StorageError(f"the model cache cannot be read: {error.strerror}", hint=Advice(Remedy.EXAMINE))


def _not_removable(error: OSError) -> StorageError:
    where = os.path.basename(str(error.filename or ""))
    return StorageError(
        f"the model cannot be removed: {error.strerror}{f' ({where})' if where else ''}",
        hint="What is left of it can be removed by the same command.",
    )


def _current(folder: ModelFolder) -> str | None:
    """Return the snapshot that ``refs/main`` points to, if it exists."""
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
