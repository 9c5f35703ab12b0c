"""Changing the hub cache: locks, who else uses a model, and removal of models and revisions.

Owns the order of removal and what other revisions still need.
"""

import contextlib
import os
import shutil
import stat
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import attrs

from mlxk.adapters.huggingface.layout import ModelFolder
from mlxk.adapters.huggingface.locks import held_locks, lock_files, remove_lock_files, reserve_model
from mlxk.application.ports.cache_editor import CacheEditor, LockHolder, Removal
from mlxk.domain.errors import StorageError


@attrs.define
class _Use:
    """What the snapshots of a model use."""

    blobs: set[str] = attrs.field(factory=set)
    """Names of the contents they link to."""
    plain_bytes: int = 0
    """Bytes of files that are no links, as on file systems without them."""


def plan_removal(folder: ModelFolder, revision: str | None) -> Removal | None:
    """Return what a removal would take away, or None when there is nothing of that name.

    Raises:
        StorageError: The cache cannot be read.
    """
    try:
        here = _names(folder.snapshots)
        if not os.path.isdir(folder.directory) or (revision is not None and revision not in here):
            return None
        whole = revision is None or here == [revision]
        if whole:
            return Removal(folder.name, tuple(here), True, _tree_bytes(folder), len(lock_files(folder)))
        assert revision is not None
        use, goes = _use(folder, [revision]), _only_used_by(folder, revision)
        size = use.plain_bytes + sum(_content_bytes(folder, name) for name in goes)
        return Removal(folder.name, (revision,), False, size)
    except OSError as error:
        raise _refused(error) from error


def remove(folder: ModelFolder, removal: Removal) -> None:
    """Take away what was planned; what is gone already is no failure.

    Raises:
        StorageError: A file cannot be removed.
    """
    try:
        if removal.whole:
            _remove_whole(folder)
        else:
            for revision in removal.revisions:
                _remove_revision(folder, revision)
    except OSError as error:
        raise _refused(error) from error


def _remove_whole(folder: ModelFolder) -> None:
    for part in ("refs", "snapshots", "trees", ".no_exist"):
        _remove_tree(f"{folder.directory}/{part}")
    for name in _names(folder.blobs):
        _remove_content(folder, name)
    _remove_tree(folder.directory)
    remove_lock_files(folder)


def _remove_revision(folder: ModelFolder, revision: str) -> None:
    blobs = _only_used_by(folder, revision)
    for reference in _references_to(folder, revision):
        os.unlink(reference)
    _remove_tree(f"{folder.snapshots}/{revision}")
    for path in (f"{folder.directory}/trees/{revision}.json",):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    _remove_tree(f"{folder.directory}/.no_exist/{revision}")
    for name in sorted(blobs):
        _remove_content(folder, name)


def _only_used_by(folder: ModelFolder, revision: str) -> set[str]:
    others = [name for name in _names(folder.snapshots) if name != revision]
    return _use(folder, [revision]).blobs - _use(folder, others).blobs


def _use(folder: ModelFolder, revisions: list[str]) -> _Use:
    use, blobs = _Use(), os.path.realpath(folder.blobs)
    for revision in revisions:
        for parent, _, names in os.walk(f"{folder.snapshots}/{revision}"):
            for name in names:
                path = f"{parent}/{name}"
                if not os.path.islink(path):
                    use.plain_bytes += os.stat(path).st_size
                    continue
                # The first hop only: a content may itself link into the store that models share.
                target = os.path.join(os.path.realpath(parent), os.readlink(path))
                directory, content = os.path.split(os.path.normpath(target))
                if directory == blobs:
                    use.blobs.add(content)
    return use


def _references_to(folder: ModelFolder, revision: str) -> list[str]:
    found = []
    for parent, _, names in os.walk(f"{folder.directory}/refs"):
        for name in names:
            with contextlib.suppress(OSError), open(f"{parent}/{name}", "rb") as file:
                if file.read(256).strip() == revision.encode():
                    found.append(f"{parent}/{name}")
    return found


def _remove_content(folder: ModelFolder, name: str) -> None:
    path = folder.blob(name)
    shared = _shared_target(folder, path)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    if shared:
        from huggingface_hub.utils import _shared_blobs

        _shared_blobs.sweep_shared_blob(shared, cache_dir=folder.root)


def _content_bytes(folder: ModelFolder, name: str) -> int:
    """Return what removing one content gives back; one that other models share as well gives nothing back."""
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
    """Where a content lives when it is in the store that models share."""
    if not os.path.islink(path):
        return None
    from huggingface_hub.utils import _shared_blobs

    return _shared_blobs.shared_blob_target(path, folder.root)


def _tree_bytes(folder: ModelFolder) -> int:
    """The sizes of all regular files of a model; links themselves take next to nothing."""
    total = sum(_content_bytes(folder, name) for name in _names(folder.blobs) if os.path.islink(folder.blob(name)))
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


def _names(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _refused(error: OSError) -> StorageError:
    where = os.path.basename(str(error.filename or ""))
    return StorageError(
        f"the model cannot be removed: {error.strerror}{f' ({where})' if where else ''}",
        hint="What is left of it can be removed by the same command.",
    )


class HuggingFaceCacheEditor(CacheEditor):
    """Writes to the ``hub`` directory of the Hugging Face cache.

    Args:
        root: The ``hub`` directory; it need not exist.
    """

    def __init__(self, root: str) -> None:
        self._root = os.path.abspath(root)

    def reserve(
        self, name: str, activity: str, wait: Callable[[LockHolder], None] | None = None
    ) -> AbstractContextManager[None]:
        """Keep other processes of ours off a model for the length of a ``with`` block."""
        return reserve_model(self._folder(name), activity, wait)

    def holders(self, name: str) -> tuple[LockHolder, ...]:
        """Return who works on files of a model right now, ourselves excepted."""
        return held_locks(self._folder(name))

    def free_bytes(self) -> int | None:
        """Return how much the disk of the cache can still take."""
        place = self._root
        while not os.path.isdir(place) and place != os.path.dirname(place):
            place = os.path.dirname(place)
        try:
            return shutil.disk_usage(place).free
        except OSError:
            return None

    def plan_removal(self, name: str, revision: str | None = None) -> Removal | None:
        """Return what a removal would take away, or None when the model is not cached."""
        return plan_removal(self._folder(name), revision)

    def remove(self, planned: Removal) -> None:
        """Take away what was planned."""
        remove(self._folder(planned.name), planned)

    def _folder(self, name: str) -> ModelFolder:
        return ModelFolder(self._root, name)
