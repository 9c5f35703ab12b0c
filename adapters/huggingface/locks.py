"""Who works on a model: our lock over the whole of it, and the locks of all clients on single files.

Both are advisory locks of the kernel (flock) on files below ``.locks``. They end with the process that holds them, so
a file that is merely left behind locks nothing. Our lock file also says who holds it.
"""

import contextlib
import errno
import fcntl
import os
import sys
import time
from collections.abc import Callable, Iterator

from mlxk.adapters.huggingface.layout import MODEL_LOCK, ModelFolder
from mlxk.application.ports.model_cache import LockHolder, in_use
from mlxk.domain.errors import StorageError

POLL_SECONDS = 0.1

_HELD = frozenset({errno.EAGAIN, errno.EACCES, errno.EWOULDBLOCK})
_UNSUPPORTED = frozenset({errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP})
_READ_ONLY = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
_MAX_NOTE_BYTES = 200


@contextlib.contextmanager
def reserve_model(folder: ModelFolder, activity: str, wait: Callable[[LockHolder], None] | None) -> Iterator[None]:
    """Hold our lock over a model; in a cache that we may only read, and without locks, hold nothing.

    Raises:
        LocksPresentError: Somebody else holds it and ``wait`` is None.
        StorageError: The lock file cannot be made.
    """
    descriptor = _acquire(folder, wait)
    if descriptor is None:
        yield
        return
    try:
        _note(descriptor, f"{os.getpid()} {activity}\n")
        yield
    finally:
        _note(descriptor, "")
        if not os.path.isdir(folder.directory):
            _forget(folder)  # nothing came of it, or nothing is left
        os.close(descriptor)


def _acquire(folder: ModelFolder, wait: Callable[[LockHolder], None] | None) -> int | None:
    """Return a descriptor that holds our lock; None where nothing may be written, as whoever tries will be told."""
    try:
        return _wait_for_lock(folder, wait)
    except OSError as error:
        if error.errno in _READ_ONLY:
            return None
        raise StorageError(
            f"the model cache cannot be written to: {error.strerror}", hint="HF_HOME or HF_HUB_CACHE says where it is."
        ) from error


def _wait_for_lock(folder: ModelFolder, wait: Callable[[LockHolder], None] | None) -> int:
    """Return a descriptor that holds our lock over a model."""
    path, told = f"{folder.locks}/{MODEL_LOCK}", False
    while True:
        os.makedirs(folder.locks, exist_ok=True)
        try:
            descriptor = try_lock(path, create=True)
        except FileNotFoundError:
            continue  # somebody has just removed the directory
        if descriptor is not None:
            return descriptor
        holder = _noted(path)
        if wait is None:
            raise in_use(folder.name, (holder,))
        if not told:
            wait(holder)
            told = True
        time.sleep(POLL_SECONDS)


def _note(descriptor: int, text: str) -> None:
    """Say in our lock file who holds it; a file that belongs to somebody else says nothing."""
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode(), 0)


def _forget(folder: ModelFolder) -> None:
    """Remove our lock file, which we hold; those who opened it before see that it has no name, and begin anew."""
    with contextlib.suppress(OSError):
        os.unlink(f"{folder.locks}/{MODEL_LOCK}")
        os.rmdir(folder.locks)


def held_locks(folder: ModelFolder) -> tuple[LockHolder, ...]:
    """Return who else holds a lock on a model, each once; trying a lock holds it for a moment."""
    holders: dict[int | None, LockHolder] = {}
    for name in sorted(lock_files(folder), key=lambda name: name != MODEL_LOCK):  # ours first: it says what is done
        path = f"{folder.locks}/{name}"
        descriptor = None
        with contextlib.suppress(OSError):
            descriptor = try_lock(path, create=False)
            if descriptor is None and os.path.exists(path):
                holder = _noted(path) if name == MODEL_LOCK else _found(path)
                holders.setdefault(holder.process, holder)
        if descriptor is not None:
            os.close(descriptor)
    holders.pop(os.getpid(), None)
    return tuple(holders.values())


def lock_files(folder: ModelFolder) -> list[str]:
    """Return the names of a model's lock files, sorted."""
    try:
        with os.scandir(folder.locks) as entries:
            return sorted(entry.name for entry in entries if entry.name.endswith(".lock"))
    except OSError:
        return []


def remove_lock_files(folder: ModelFolder) -> None:
    """Remove the lock files that nobody holds, each while holding it; ours goes with the reservation."""
    for name in lock_files(folder):
        path = f"{folder.locks}/{name}"
        with contextlib.suppress(OSError):
            descriptor = try_lock(path, create=False) if name != MODEL_LOCK else None
            if descriptor is not None:
                os.unlink(path)
                os.close(descriptor)


def try_lock(path: str, *, create: bool) -> int | None:
    """Return a descriptor that holds the lock, or None when somebody else does or there is no such file.

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
        if error.errno in _UNSUPPORTED:
            return descriptor
        os.close(descriptor)
        if error.errno in _HELD:
            return None
        raise
    if os.fstat(descriptor).st_nlink:
        return descriptor
    os.close(descriptor)  # its file was removed between the two calls, so it keeps nobody out
    return try_lock(path, create=create)


def _open(path: str, flags: int) -> int:
    """Open a lock file; one of another user may be locked as well, though not written."""
    flags |= os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(path, flags | os.O_RDWR, 0o664)
    except PermissionError:
        return os.open(path, flags & ~os.O_CREAT | os.O_RDONLY)


def _noted(path: str) -> LockHolder:
    """Read from our lock file who holds it."""
    try:
        with open(path, "rb") as file:
            process, _, activity = file.read(_MAX_NOTE_BYTES).decode("utf-8", "replace").strip().partition(" ")
    except OSError:
        process, activity = "", ""
    number = int(process) if process.isdigit() else _process_of(path)
    return LockHolder(number, activity if activity.isprintable() and activity else "working on it")


def _found(path: str) -> LockHolder:
    return LockHolder(_process_of(path), "downloading it")


def _process_of(path: str) -> int | None:
    """Ask Linux which process holds a lock; other systems do not tell without privileges."""
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
