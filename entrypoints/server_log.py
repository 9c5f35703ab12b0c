"""The log files of servers without a terminal: made, found and read, also while a server writes."""

import codecs
import os
import re
from typing import BinaryIO

from mlxk.domain.errors import StorageError

MOST_KEPT_BYTES = 8 * 2**20
"""The log of a service that is larger when the service is started is put aside, as the one before it."""

FAILED = "server-failed"
"""The log of the server that could not be started last."""

_NAME = re.compile(r"[A-Za-z0-9-]+\.log")
_OF_PORT = re.compile(r"server-(\d+)\.log")


def path_of(state_folder: str, name: str) -> str:
    """Return the path of a log, such as ``server-8000``."""
    return os.path.join(_folder(state_folder), f"{name}.log")


def _folder(state_folder: str) -> str:
    return os.path.join(state_folder, "logs")


def make(state_folder: str, name: str, *, starts: bool = False) -> str:
    """Make a log file, unless it exists, for its owner only; return its path.

    Args:
        state_folder: See ``Settings.state_folder``.
        name: Such as ``server-8000``.
        starts: Whether its server is started now, so that none is writing to a file that is put aside.

    Raises:
        StorageError: It cannot be written.
    """
    path = path_of(state_folder, name)
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        if starts and os.path.isfile(path) and os.path.getsize(path) > MOST_KEPT_BYTES:
            _put_aside(path)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.fchmod(descriptor, 0o600)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise StorageError(
            f"the log '{path}' cannot be written: {error.strerror}", hint="XDG_STATE_HOME says where logs are kept."
        ) from error
    return path


def make_for_start(state_folder: str) -> str:
    """Make the log of a server that is about to start, and whose port is not known; return its path.

    Raises:
        StorageError: It cannot be written.
    """
    return make(state_folder, f"server-starting-{os.getpid()}")


def rename(path: str, state_folder: str, name: str) -> str:
    """Give a log its name, and put the one before it aside; return its path, the present one if that fails."""
    target = path_of(state_folder, name)
    try:
        if os.path.isfile(target):
            _put_aside(target)
        os.replace(path, target)
    except OSError:
        return path
    return target


def keep_failed(path: str, state_folder: str) -> None:
    """Name the log of a server that could not be started ``FAILED``, or remove it where it says nothing."""
    try:
        says_nothing = os.path.getsize(path) == 0
        if says_nothing:
            os.unlink(path)
    except OSError:
        return
    if not says_nothing:
        rename(path, state_folder, FAILED)


def _put_aside(path: str) -> None:
    os.replace(path, f"{path}.1")


def newest(state_folder: str) -> str | None:
    """Return the path of the log that was written to last; None where there is none."""
    folder = _folder(state_folder)
    try:
        paths = [os.path.join(folder, name) for name in os.listdir(folder) if _NAME.fullmatch(name)]
        return max(paths, key=os.path.getmtime, default=None)
    except OSError:
        return None


def ports(state_folder: str) -> list[int]:
    """Return the ports of the servers that have a log, in order."""
    try:
        found = (_OF_PORT.fullmatch(name) for name in os.listdir(_folder(state_folder)))
        return sorted(int(each[1]) for each in found if each)
    except OSError:
        return []


MOST_READ_BYTES = 8 * 2**20
"""How much of the end of a file is read at first."""

_BLOCK = 2**20
"""Bytes that are read at a time, and the longest line in characters; a longer one is returned in parts."""


class LogReader:
    """A context manager that has a log file open; a file that takes its place is read from its start.

    Args:
        path: Of the log.

    Raises:
        StorageError: It cannot be read.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""
        try:
            self._file = _opened(path)
        except OSError as error:
            raise _unreadable(path, error) from error

    def __enter__(self) -> "LogReader":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def last(self, count: int, *, whole: bool) -> tuple[list[str], bool]:
        """Return the last lines, and whether older ones that were asked for were not read.

        Args:
            count: How many lines.
            whole: Whether to leave a last line without an end to ``further``.

        Raises:
            StorageError: The file cannot be read.
        """
        try:
            size = os.fstat(self._file.fileno()).st_size
            start = max(0, size - MOST_READ_BYTES)
            self._file.seek(start)
            data = self._file.read(size - start)
            if whole:
                data = data[: data.rfind(b"\n") + 1]
            self._file.seek(start + len(data))
        except OSError as error:
            raise _unreadable(self._path, error) from error
        lines = data.decode("utf-8", "replace").removesuffix("\n").split("\n") if data else []
        if start:
            del lines[:1]  # a part of it is before the start
        return lines[len(lines) - min(count, len(lines)) :], start > 0 and count > len(lines)

    def further(self) -> list[str]:
        """Return the lines that have been completed since the last call; there may be more of them.

        Raises:
            StorageError: The file cannot be read.
        """
        try:
            data = self._file.read(_BLOCK)
            if not data:
                return self._of_next_file()
        except OSError as error:
            raise _unreadable(self._path, error) from error
        *lines, self._rest = (self._rest + self._decoder.decode(data)).split("\n")
        if len(self._rest) > _BLOCK:
            lines.append(self._rest)
            self._rest = ""
        return lines

    def _of_next_file(self) -> list[str]:
        """Return what is left of this file where it was replaced or emptied, and go to the start of what is there."""
        own = os.fstat(self._file.fileno())
        try:
            there = os.stat(self._path)
            if os.path.samestat(there, own):
                if own.st_size >= self._file.tell():
                    return []
                self._file.seek(0)
            else:
                following = _opened(self._path)
                self._file.close()
                self._file = following
        except FileNotFoundError:  # it comes back with the next server
            return []
        left, self._rest = self._rest + self._decoder.decode(b"", final=True), ""
        self._decoder.reset()
        return [left] if left else []


def _opened(path: str) -> BinaryIO:
    return open(path, "rb", buffering=0)


def _unreadable(path: str, error: OSError) -> StorageError:
    return StorageError(f"'{path}' cannot be read: {error.strerror}")
