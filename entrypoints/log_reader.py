"""Reads a log file that a server is writing: its last lines, and what is appended to it."""

import codecs
import os
from typing import BinaryIO

from mlxk.domain.errors import StorageError

MOST_BYTES = 8 * 2**20
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
            start = max(0, size - MOST_BYTES)
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
