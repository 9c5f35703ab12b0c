"""The user's own files: bounded reads that never block on a pipe, and atomic writes."""

import contextlib
import errno
import os
import stat
import tempfile

PRIVATE_FILE, PRIVATE_FOLDER = 0o600, 0o700


def read(path: str, most_bytes: int) -> bytes | None:
    """Return the content of a file, at most ``most_bytes + 1`` bytes; None when it does not exist.

    Args:
        path: The file.
        most_bytes: The limit; a longer result tells the caller that the file exceeds it.

    Raises:
        OSError: It cannot be read, or is not a regular file: a pipe might never end.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(mode):
            raise OSError(0, "it is no regular file")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(most_bytes + 1)
    finally:
        os.close(descriptor)


def draft(folder: str, suffix: str, content: bytes, mode: int = PRIVATE_FILE) -> str:
    """Write a new temporary file, flushed to the disk, and return its path.

    Args:
        folder: Its folder, which is created where it is missing.
        suffix: The end of its name.
        content: Its content.
        mode: Its permissions.

    Raises:
        OSError: It cannot be written; a partial file is removed.
    """
    os.makedirs(folder, mode=PRIVATE_FOLDER, exist_ok=True)
    descriptor, path = tempfile.mkstemp(prefix=".mlxk-", suffix=suffix, dir=folder)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
    except BaseException:
        os.unlink(path)
        raise
    return path


def write(path: str, content: bytes, *, replace: bool = True) -> None:
    """Write a file atomically.

    An existing file keeps its mode, a new one gets 0600; a symbolic link stays, and its target is written.

    Raises:
        FileExistsError: The file exists, and ``replace`` is false.
        OSError: It cannot be written; the file is unchanged, and no temporary file is left.
    """
    target = os.path.realpath(path)
    mode = PRIVATE_FILE
    with contextlib.suppress(FileNotFoundError):
        current_mode = os.stat(target).st_mode
        if not stat.S_ISREG(current_mode):
            raise OSError(0, "it is no regular file")
        mode = stat.S_IMODE(current_mode)
    temporary = draft(os.path.dirname(target), os.path.splitext(target)[1], content, mode)
    try:
        if replace:
            os.replace(temporary, target)
        else:
            _rename_exclusively(temporary, target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _rename_exclusively(source: str, target: str) -> None:
    """Give a file a new name, which must not exist; the old name may remain."""
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if os.path.lexists(target):
            raise FileExistsError(target) from None
        os.replace(source, target)
