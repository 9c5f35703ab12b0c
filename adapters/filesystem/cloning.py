"""Copying a file so that it takes no space until it is changed, where the file system can.

macOS: clonefile(2). Linux: the FICLONE request of btrfs, XFS and their like. Elsewhere, and across file systems, the
bytes are copied. Whatever the way, the copy appears under its name only when it is complete.
"""

import contextlib
import errno
import os
import stat
import sys
from collections.abc import Callable

from mlxk.application.ports.workspace_builder import CopyMethod

READ_BYTES = 8 * 1024 * 1024

COPY_SUFFIX = ".mlxk-copy"
"""What a copy is called while it is made."""

_FICLONE = 0x40049409
_CANNOT_CLONE = frozenset(
    {
        errno.EOPNOTSUPP,
        errno.ENOTSUP,
        errno.EXDEV,
        errno.EINVAL,
        errno.ENOSYS,
        errno.ENOTTY,
        errno.EPERM,
        errno.ETXTBSY,
    }
)
"""Answers of systems that cannot clone this file to that place; a full disk is none of them."""


def copy_file(source: str, target: str, tell: Callable[[int], None]) -> CopyMethod:
    """Copy a file, links followed; a complete copy of an earlier run, by size and time, is kept.

    Args:
        source: An existing file.
        target: Where the copy goes; its directory exists.
        tell: Called with the bytes that are done.

    Raises:
        OSError: It cannot be copied; there is then nothing at the target, or what was there before.
    """
    origin = os.path.realpath(source)
    status = os.stat(origin)
    if _is_same(target, status):
        tell(status.st_size)
        return CopyMethod.KEPT
    temporary = target + COPY_SUFFIX
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    method = CopyMethod.CLONED
    try:
        _clone(origin, temporary)
    except OSError as error:
        if error.errno not in _CANNOT_CLONE:
            raise
        method = CopyMethod.COPIED
        _copy(origin, temporary, tell)
    # The store that models share keeps its files read-only; a workspace is there to be edited.
    os.chmod(temporary, stat.S_IMODE(status.st_mode) | stat.S_IRUSR | stat.S_IWUSR)
    os.utime(temporary, ns=(status.st_atime_ns, status.st_mtime_ns))
    os.replace(temporary, target)
    tell(status.st_size)
    return method


def _is_same(target: str, status: os.stat_result) -> bool:
    try:
        there = os.lstat(target)
    except OSError:
        return False
    alike = (there.st_size, there.st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    return stat.S_ISREG(there.st_mode) and alike


def _clone(source: str, target: str) -> None:
    if sys.platform == "darwin":
        _clone_on_macos(source, target)
    elif sys.platform == "linux":
        _clone_on_linux(source, target)
    else:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))


def _clone_on_linux(source: str, target: str) -> None:
    import fcntl  # noqa: PLC0415 - not there on every system

    with open(source, "rb") as origin, open(target, "wb") as clone:
        fcntl.ioctl(clone.fileno(), _FICLONE, origin.fileno())


def _clone_on_macos(source: str, target: str) -> None:
    import ctypes  # noqa: PLC0415 - only this system needs it

    library = ctypes.CDLL(None, use_errno=True)
    if library.clonefile(os.fsencode(source), os.fsencode(target), 0):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _copy(source: str, target: str, tell: Callable[[int], None]) -> None:
    buffer, done = memoryview(bytearray(READ_BYTES)), 0
    with open(source, "rb", buffering=0) as origin, open(target, "wb", buffering=0) as copy:
        while count := origin.readinto(buffer):
            view = buffer[:count]
            while view:
                view = view[copy.write(view) :]
            done += count
            tell(done)
        os.fsync(copy.fileno())
