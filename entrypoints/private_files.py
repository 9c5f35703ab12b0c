"""Files of this user: read without waiting for a pipe and within bounds, and written at once or not at all."""

import contextlib
import errno
import os
import stat
import tempfile

PRIVATE_FILE, PRIVATE_FOLDER = 0o600, 0o700


def read(path: str, most_bytes: int) -> bytes | None:
    """Return the content of a file, at most one byte more than asked for; None when it does not exist.

    Args:
        path: The file.
        most_bytes: The largest content; more shows that the file is larger.

    Raises:
        OSError: It cannot be read, or is no regular file: a pipe might never end.
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
    """Write a new file, flush it to the disk, and return its path; the folder is made where it is missing.

    Args:
        folder: Where to write it.
        suffix: The end of its name.
        content: Its content.
        mode: Its permissions.

    Raises:
        OSError: It cannot be written; nothing of it is left.
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
    """Write a file at once. One that is replaced keeps its mode, a new one is for this user only, and a link stays one.

    Raises:
        FileExistsError: The file exists, and is not to be replaced.
        OSError: It cannot be written; the file is as it was, and nothing else is left.
    """
    target = os.path.realpath(path)
    mode = PRIVATE_FILE
    with contextlib.suppress(FileNotFoundError):
        known = os.stat(target).st_mode
        if not stat.S_ISREG(known):
            raise OSError(0, "it is no regular file")
        mode = stat.S_IMODE(known)
    unnamed = draft(os.path.dirname(target), os.path.splitext(target)[1], content, mode)
    try:
        if replace:
            os.replace(unnamed, target)
        else:
            _name(unnamed, target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(unnamed)


def _name(unnamed: str, target: str) -> None:
    """Give a file a name that no other has."""
    try:
        os.link(unnamed, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        if os.path.lexists(target):
            raise FileExistsError(target) from None
        os.replace(unnamed, target)
