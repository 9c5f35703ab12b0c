"""Removal of models, revisions and waste from the hub cache; no link is followed out of it."""

import contextlib
import errno
import os
import shutil
import stat
from pathlib import Path

import attrs

from mlxk.adapters.huggingface.layout import (
    STAGING,
    ModelFolder,
    entries,
    linked_blob,
    linked_parts,
    own_entries,
    references_to,
    shared_target,
    snapshots_of,
)
from mlxk.adapters.huggingface.locks import lock_files, remove_lock_files
from mlxk.application.ports.model_cache import Removal
from mlxk.domain.errors import StorageError
from mlxk.domain.models.disk_usage import Waste

_ATTEMPTS = 3
"""Attempts to remove a directory into which another program writes."""


@attrs.define
class _Usage:
    """The contents of some snapshots."""

    blobs: set[str] = attrs.field(factory=set)
    """Names of the blobs they link to."""
    plain_bytes: int = 0
    """Size of the files that are not links, as on file systems without links."""


def plan_removal(folder: ModelFolder, revision: str | None) -> Removal | None:
    """Return the removal of a model or revision, or None when it is not cached.

    Raises:
        OSError: The model cannot be read.
        StorageError: The model is a link to another place, from which no revision is removed.
    """
    present = sorted(snapshot for _, snapshot in snapshots_of(folder))
    if os.path.islink(folder.directory) and revision is None:
        locks, target = len(lock_files(folder)), os.path.join(folder.root, os.readlink(folder.directory))
        return Removal(folder.name, tuple(present), True, 0, locks, link_to=os.path.normpath(target))
    if not os.path.isdir(folder.directory) or (revision is not None and revision not in present):
        return None
    if revision is None or (present == [revision] and not os.path.islink(folder.directory)):
        size, locks = _model_bytes(folder), len(lock_files(folder))
        return Removal(folder.name, tuple(present), True, size, locks, linked_parts=linked_parts(folder))
    if os.path.islink(folder.directory) or os.path.islink(folder.snapshots):
        raise StorageError(
            f"'{folder.name}' is a link to another place, from which no revision is removed",
            hint="Remove the whole model here, which removes the link, or the revision at the other place.",
        )
    blobs = _unshared_blobs(folder, revision)
    size = _usage(folder, [revision]).plain_bytes + sum(_blob_bytes(folder, name) for name in blobs)
    return Removal(folder.name, (revision,), False, size)


def execute_removal(folder: ModelFolder, planned: Removal) -> None:
    """Execute a removal; missing files are ignored.

    Raises:
        OSError: A file cannot be deleted.
    """
    if planned.link_to is not None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(folder.directory)
        remove_lock_files(folder)
    elif planned.all_revisions:
        _remove_model(folder)
    else:
        for revision in planned.revisions:
            _remove_revision(folder, revision)


def execute_pruning(folder: ModelFolder, waste: Waste) -> None:
    """Remove waste; missing files are ignored.

    Raises:
        OSError: A file cannot be deleted.
    """
    if waste.whole:
        _remove_model(folder)
        return
    for revision in waste.revisions:
        _remove_revision(folder, revision)
    for name in (*waste.partial, *waste.orphaned):
        if name == STAGING:
            _remove_tree(f"{folder.directory}/{STAGING}")
        elif not os.path.islink(folder.blobs):
            _remove_blob(folder, name)


def _remove_model(folder: ModelFolder) -> None:
    # References first: an interrupted removal leaves no reference to an incomplete snapshot.
    for part in (folder.references, folder.snapshots, folder.trees, folder.negative_cache):
        _remove_tree(part)
    for name in own_entries(folder.blobs):
        _remove_blob(folder, name)
    _remove_tree(folder.directory)
    remove_lock_files(folder)


def _remove_revision(folder: ModelFolder, revision: str) -> None:
    blobs = _unshared_blobs(folder, revision)
    for reference in references_to(folder, revision):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(reference)
    _remove_tree(folder.snapshot(revision))
    if not os.path.islink(folder.trees):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(folder.tree(revision))
    if not os.path.islink(folder.negative_cache):
        _remove_tree(f"{folder.negative_cache}/{revision}")
    for name in sorted(blobs):
        _remove_blob(folder, name)


def _unshared_blobs(folder: ModelFolder, revision: str) -> set[str]:
    """Return the blobs that no other snapshot links to."""
    if os.path.islink(folder.blobs):
        return set()
    others = [name for name in entries(folder.snapshots) if name != revision]
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
                blob = linked_blob(path, blobs)
                if blob is not None:
                    usage.blobs.add(blob)
    return usage


def _remove_blob(folder: ModelFolder, name: str) -> None:
    path = folder.blob(name)
    shared = shared_target(folder, path)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    if shared:
        from huggingface_hub.utils import _shared_blobs

        _shared_blobs.sweep_shared_blob(shared, cache_dir=folder.root)


def _blob_bytes(folder: ModelFolder, name: str) -> int:
    """Return the bytes that removing a blob frees: 0 while another model shares it."""
    path = folder.blob(name)
    shared = shared_target(folder, path)
    if shared:
        from huggingface_hub.utils import _shared_blobs

        return _shared_blobs.expected_shared_blob_freed_size(
            shared, blob_paths_to_delete={Path(path)}, cache_dir=folder.root
        )
    with contextlib.suppress(OSError):
        return os.lstat(path).st_size
    return 0


def _model_bytes(folder: ModelFolder) -> int:
    """Return the size of a model's regular files, and of shared blobs that its removal frees."""
    links = (name for name in own_entries(folder.blobs) if os.path.islink(folder.blob(name)))
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
    for retries in reversed(range(_ATTEMPTS)):
        try:
            return shutil.rmtree(path, onerror=_unless_gone)
        except OSError as error:  # Finder may write .DS_Store meanwhile
            if error.errno != errno.ENOTEMPTY or not retries:
                raise


def _unless_gone(_: object, path: str, failure: tuple[type[BaseException], BaseException, object]) -> None:
    """Ignore missing files: on some macOS disks, deleting a file also deletes its companion ``._NAME``."""
    if not isinstance(failure[1], FileNotFoundError):
        raise failure[1]
