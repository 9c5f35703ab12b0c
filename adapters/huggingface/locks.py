"""Locks of the cache: ours for an entire model, and those of every client for single blobs.

All are advisory locks of the kernel (flock) on files below ``.locks``. They end with the process, so that a stale file
locks nothing. Our lock files record the process id and the activity of the holder. Each process that uses a model locks
a file of its own, and a process that asks them to unload the model locks a further one.
"""

import contextlib
import errno
import fcntl
import os
import sys
import time
from collections.abc import Callable, Iterator

from mlxk.adapters.huggingface.layout import MODEL_LOCK, RETURN_LOCK, USE_SUFFIX, ModelFolder
from mlxk.application.ports.model_cache import LockHolder, in_use
from mlxk.domain.errors import StorageError

POLL_SECONDS = 0.1

UNSUPPORTED = frozenset({errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP})
"""Errors of file systems without locks, such as some network drives."""

_HELD = frozenset({errno.EAGAIN, errno.EACCES, errno.EWOULDBLOCK})
_READ_ONLY = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
_MAX_NOTE_BYTES = 200


@contextlib.contextmanager
def reserve_model(folder: ModelFolder, activity: str, wait: Callable[[LockHolder], None] | None) -> Iterator[None]:
    """Hold our lock on a model; a read-only cache, or one without lock support, is not locked.

    Raises:
        LocksPresentError: Another process holds it and ``wait`` is None.
        StorageError: The lock file cannot be created.
    """
    descriptor = _acquire(folder, wait)
    if descriptor is None:
        yield
        return
    try:
        _write_holder(descriptor, f"{os.getpid()} {activity}\n")
        yield
    finally:
        _write_holder(descriptor, "")
        if not os.path.isdir(folder.directory):
            _remove_model_lock(folder)  # nothing was downloaded, or the model was removed
        os.close(descriptor)


def _acquire(folder: ModelFolder, wait: Callable[[LockHolder], None] | None) -> int | None:
    """Return a descriptor that holds our lock; None in a read-only cache, where a later write fails anyway."""
    try:
        return _wait_for_lock(folder, wait)
    except OSError as error:
        if error.errno in _READ_ONLY:
            return None
        raise StorageError(
            f"the model cache cannot be written to: {error.strerror}", hint="HF_HOME or HF_HUB_CACHE says where it is."
        ) from error


def _wait_for_lock(folder: ModelFolder, wait: Callable[[LockHolder], None] | None) -> int:
    """Return a descriptor that holds our lock on a model."""
    path, reported = f"{folder.locks}/{MODEL_LOCK}", False
    while True:
        os.makedirs(folder.locks, exist_ok=True)
        try:
            descriptor = try_lock(path, create=True)
        except FileNotFoundError:
            continue  # another process has just removed the directory
        if descriptor is not None:
            return descriptor
        holder = _recorded_holder(path)
        if wait is None:
            raise in_use(folder.name, (holder,))
        if not reported:
            wait(holder)
            reported = True
        time.sleep(POLL_SECONDS)


def _write_holder(descriptor: int, text: str) -> None:
    """Write a holder into our lock file; a file of another user stays as it is."""
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode(), 0)


def _remove_model_lock(folder: ModelFolder) -> None:
    """Delete our lock file while holding it; a process that has it open sees that it is unlinked, and retries."""
    with contextlib.suppress(OSError):
        os.unlink(f"{folder.locks}/{MODEL_LOCK}")
    with contextlib.suppress(OSError):
        os.rmdir(folder.locks)


@contextlib.contextmanager
def use_model(folder: ModelFolder, activity: str) -> Iterator[None]:
    """Mark a model as used by this process; without effect in a read-only cache, or one without lock support."""
    path = f"{folder.locks}/{os.getpid()}{USE_SUFFIX}"
    descriptor = None
    with contextlib.suppress(OSError):
        descriptor = _shared_lock(folder, path)
        _write_holder(descriptor, f"{os.getpid()} {activity}\n")
    try:
        yield
    finally:
        if descriptor is not None:
            with contextlib.suppress(OSError):  # this process uses it more than once
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(path)
            os.close(descriptor)


def _shared_lock(folder: ModelFolder, path: str) -> int:
    """Return a descriptor with a shared lock on a file, which other uses in this process share.

    Raises:
        OSError: The file cannot be created or locked.
    """
    while True:
        os.makedirs(folder.locks, exist_ok=True)
        descriptor = _open(path, os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        except OSError:
            os.close(descriptor)
            raise
        if os.fstat(descriptor).st_nlink:
            return descriptor
        os.close(descriptor)  # the file was deleted between the two calls


def users_of(folder: ModelFolder) -> tuple[LockHolder, ...]:
    """Return the other processes that use a model, and delete the files of ended ones."""
    return _holders(folder, _lock_names(folder, USE_SUFFIX), stale=os.unlink)


@contextlib.contextmanager
def return_requested(folder: ModelFolder) -> Iterator[None]:
    """Ask the users of a model to unload it, for the duration of the block; without effect like ``use_model``."""
    path, descriptor = f"{folder.locks}/{RETURN_LOCK}", None
    with contextlib.suppress(OSError):
        descriptor = try_lock(path, create=True)
    try:
        yield
    finally:
        if descriptor is not None:
            with contextlib.suppress(OSError):
                os.unlink(path)
            os.close(descriptor)


def is_return_requested(folder: ModelFolder) -> bool:
    """Whether a running process asks for a model to be unloaded; the file of an ended one is deleted."""
    path, descriptor = f"{folder.locks}/{RETURN_LOCK}", None
    if not os.path.exists(path):
        return False
    with contextlib.suppress(OSError):
        descriptor = try_lock(path, create=False)
        if descriptor is None:
            return os.path.exists(path)
        os.unlink(path)
    if descriptor is not None:
        os.close(descriptor)
    return False


def held_locks(folder: ModelFolder) -> tuple[LockHolder, ...]:
    """Return the other processes that hold locks on a model, each once. Probing takes each free lock for a moment."""
    # Ours first, since it records the activity.
    return _holders(folder, sorted(lock_files(folder), key=lambda name: name != MODEL_LOCK))


def _holders(
    folder: ModelFolder, names: list[str], stale: Callable[[str], None] | None = None
) -> tuple[LockHolder, ...]:
    """Return the other processes that hold one of a model's lock files, each once.

    Args:
        folder: The model's folder.
        names: Names of the lock files.
        stale: Called with the path of each file without a holder, while this process holds it.
    """
    holders: dict[int | None, LockHolder] = {}
    for name in names:
        path = f"{folder.locks}/{name}"
        descriptor = None
        with contextlib.suppress(OSError):
            descriptor = try_lock(path, create=False)
            if descriptor is None and os.path.exists(path):
                ours = name == MODEL_LOCK or name.endswith(USE_SUFFIX)
                holder = _recorded_holder(path) if ours else LockHolder(_process_of(path), "downloading it")
                holders.setdefault(holder.process, holder)
            elif descriptor is not None and stale is not None:
                stale(path)
        if descriptor is not None:
            os.close(descriptor)
    holders.pop(os.getpid(), None)
    return tuple(holders.values())


def lock_files(folder: ModelFolder) -> list[str]:
    """Return the names of a model's lock files, sorted; none if their directory is a link."""
    return _lock_names(folder, ".lock")


def _lock_names(folder: ModelFolder, suffix: str) -> list[str]:
    if os.path.islink(folder.locks):
        return []
    try:
        with os.scandir(folder.locks) as entries:
            return sorted(entry.name for entry in entries if entry.name.endswith(suffix))
    except OSError:
        return []


def remove_lock_files(folder: ModelFolder) -> None:
    """Delete the stale lock files, each while holding it; ours is deleted with the reservation."""
    _holders(folder, [name for name in lock_files(folder) if name != MODEL_LOCK], stale=os.unlink)


def try_lock(path: str, *, create: bool) -> int | None:
    """Return a descriptor that holds the lock, or None when another process holds it or the file does not exist.

    Raises:
        OSError: The file cannot be opened.
    """
    try:
        descriptor = _open(path, os.O_CREAT if create else 0)
    except FileNotFoundError:
        if create:
            raise
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in UNSUPPORTED:
            return descriptor
        os.close(descriptor)
        if error.errno in _HELD:
            return None
        raise
    if os.fstat(descriptor).st_nlink:
        return descriptor
    os.close(descriptor)  # the file was deleted between the two calls, so that the lock has no effect
    return try_lock(path, create=create)


def _open(path: str, flags: int) -> int:
    """Open a lock file, read-only if it belongs to another user: that is enough for a lock."""
    flags |= os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(path, flags | os.O_RDWR, 0o664)
    except PermissionError:
        return os.open(path, flags & ~os.O_CREAT | os.O_RDONLY)


def _recorded_holder(path: str) -> LockHolder:
    """Return the holder that our lock file records."""
    try:
        with open(path, "rb") as file:
            process, _, activity = file.read(_MAX_NOTE_BYTES).decode("utf-8", "replace").strip().partition(" ")
    except OSError:
        process, activity = "", ""
    number = int(process) if process.isdecimal() else _process_of(path)
    return LockHolder(number, activity if activity.isprintable() and activity else "working on it")


def _process_of(path: str) -> int | None:
    """Return the process that holds a lock; only Linux reports it without privileges."""
    if sys.platform != "linux":
        return None
    try:
        status = os.stat(path)
        device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
        with open("/proc/locks", encoding="ascii") as table:
            for line in table:
                fields = line.split()
                if len(fields) > 5 and fields[1] == "FLOCK" and fields[5] == device:
                    return int(fields[4])
    except (OSError, ValueError):
        return None
    return None
