"""The log files of background servers: created, rotated, found, and read while a server writes."""

import codecs
import os
import re
from typing import BinaryIO

from mlxk.domain.errors import StorageError

MOST_KEPT_BYTES = 8 * 2**20
"""A larger log is rotated to ``NAME.log.1`` when its service starts; one generation is kept."""

FAILED = "server-failed"
"""Name of the log of the last server that failed to start."""

_NAME = re.compile(r"[A-Za-z0-9-]+\.log")
_PORT_NAME = re.compile(r"server-(\d+)\.log")


def path_of(state_folder: str, name: str) -> str:
    """Return the path of a log, such as ``server-8000``."""
    return os.path.join(_folder(state_folder), f"{name}.log")


def _folder(state_folder: str) -> str:
    return os.path.join(state_folder, "logs")


def make(state_folder: str, name: str, *, starts: bool = False) -> str:
    """Create a log file with mode 0600 unless it exists; return its path.

    Args:
        state_folder: See ``Settings.state_folder``.
        name: Such as ``server-8000``.
        starts: Whether its server is about to start: no process writes to the file then, and a large one is rotated.

    Raises:
        StorageError: It cannot be written.
    """
    path = path_of(state_folder, name)
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        if starts and os.path.isfile(path) and os.path.getsize(path) > MOST_KEPT_BYTES:
            _rotate(path)
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
    """Create the log of a server that is about to start on a port not known yet; return its path.

    Raises:
        StorageError: It cannot be written.
    """
    return make(state_folder, f"server-starting-{os.getpid()}")


def rename(path: str, state_folder: str, name: str) -> str:
    """Rename a log, rotating a file of that name; return the new path, or the old one if that fails."""
    target = path_of(state_folder, name)
    try:
        if os.path.isfile(target):
            _rotate(target)
        os.replace(path, target)
    except OSError:
        return path
    return target


def keep_failed(path: str, state_folder: str) -> None:
    """Rename the log of a server that failed to start to ``FAILED``, or remove it when it is empty."""
    try:
        is_empty = os.path.getsize(path) == 0
        if is_empty:
            os.unlink(path)
    except OSError:
        return
    if not is_empty:
        rename(path, state_folder, FAILED)


def _rotate(path: str) -> None:
    os.replace(path, f"{path}.1")


def newest(state_folder: str) -> str | None:
    """Return the path of the most recently written log; None where there is none."""
    folder = _folder(state_folder)
    try:
        paths = [os.path.join(folder, name) for name in os.listdir(folder) if _NAME.fullmatch(name)]
        return max(paths, key=os.path.getmtime, default=None)
    except OSError:
        return None


def ports(state_folder: str) -> list[int]:
    """Return the ports that have a log, in ascending order."""
    try:
        matches = (_PORT_NAME.fullmatch(name) for name in os.listdir(_folder(state_folder)))
        return sorted(int(match[1]) for match in matches if match)
    except OSError:
        return []


MOST_READ_BYTES = 8 * 2**20
"""How much of the end of a log ``LogReader.last`` reads."""

_BLOCK = 2**20
"""Bytes of one read, and the longest line in characters; a longer line is returned in parts."""


class LogReader:
    """Reads the end of a log file and follows it; a file that replaces it is read from its start. A context manager.

    Args:
        path: Path of the log.

    Raises:
        StorageError: The file cannot be opened.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._partial_line = ""
        try:
            self._file = _opened(path)
        except OSError as error:
            raise _unreadable(path, error) from error

    def __enter__(self) -> "LogReader":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def last(self, count: int, *, whole: bool) -> tuple[list[str], bool]:
        """Return the last lines, and whether the read limit cut off older ones of them.

        Args:
            count: Number of lines.
            whole: Whether to leave an unfinished last line to ``further``.

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
            del lines[:1]  # it may have begun before the part that was read
        return lines[len(lines) - min(count, len(lines)) :], start > 0 and count > len(lines)

    def further(self) -> list[str]:
        """Return lines completed since the last call, from at most one block; an empty list where there are none.

        Raises:
            StorageError: The file cannot be read.
        """
        try:
            data = self._file.read(_BLOCK)
            if not data:
                return self._restarted()
        except OSError as error:
            raise _unreadable(self._path, error) from error
        *lines, self._partial_line = (self._partial_line + self._decoder.decode(data)).split("\n")
        if len(self._partial_line) > _BLOCK:
            lines.append(self._partial_line)
            self._partial_line = ""
        return lines

    def _restarted(self) -> list[str]:
        """Go to the start of a log that was truncated or replaced; return the unfinished line before that, if any."""
        own = os.fstat(self._file.fileno())
        try:
            current = os.stat(self._path)
            if os.path.samestat(current, own):
                if own.st_size >= self._file.tell():
                    return []
                self._file.seek(0)
            else:
                replacement = _opened(self._path)
                self._file.close()
                self._file = replacement
        except FileNotFoundError:  # the next server creates it again
            return []
        line, self._partial_line = self._partial_line + self._decoder.decode(b"", final=True), ""
        self._decoder.reset()
        return [line] if line else []


def _opened(path: str) -> BinaryIO:
    return open(path, "rb", buffering=0)


def _unreadable(path: str, error: OSError) -> StorageError:
    return StorageError(f"'{path}' cannot be read: {error.strerror}")
