"""Reads standard input as text of a prompt, and decides whether it belongs to a prompt that is given in words.

The decision is by what standard input is, never by time: a slow pipe must not be dropped, and a loop over the lines
of a file must keep its lines. Input is bounded, so that an endless pipe ends in an error and not in exhausted memory.
"""

import fcntl
import os
import select
import stat
from collections.abc import Callable

import attrs

from mlxk.domain.errors import StorageError, ValidationError

MAX_INPUT_BYTES = 64 * 1024 * 1024
"""More than any context window (about 16 million tokens), less than any machine's memory."""

SILENCE_SECONDS = 1.0
"""Silence after which the user is told what the program waits for."""

_WAITING = "waiting for standard input; --no-stdin goes without it"
_BLOCK_BYTES = 64 * 1024

Note = Callable[[str], None]
"""Gets a message for the user."""


@attrs.frozen
class StandardInput:
    """The standard input of this process."""

    descriptor: int = 0

    def read(self, note: Note) -> str:
        """Return all of standard input, whatever it is, without a byte-order mark; bytes not in UTF-8 are replaced.

        Args:
            note: Called with a message when bytes were replaced, or when no input arrives for a while.

        Raises:
            StorageError: It cannot be read.
            ValidationError: It is larger than ``MAX_INPUT_BYTES``.
        """
        is_typed = os.isatty(self.descriptor)
        return self._text("waiting for standard input; Ctrl-D ends it" if is_typed else None, note)

    def beside_words(self, note: Note) -> str:
        """Return the text that was piped beside a prompt; empty when standard input is not meant for the prompt.

        A regular file is meant when nothing of it was read, a pipe always. Terminals, sockets and devices are never
        read: programs inherit them, and they need not end.

        Args:
            note: Called with a message when bytes were replaced, when nothing comes for a while, and with the reason
                when something is left unread.

        Raises:
            StorageError: It cannot be read.
            ValidationError: It is larger than ``MAX_INPUT_BYTES``.
        """
        if fcntl.fcntl(self.descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY:
            return ""  # as some programs leave it for those that they start
        kind = os.fstat(self.descriptor)
        if stat.S_ISFIFO(kind.st_mode):
            return self._text(_WAITING, note)
        if stat.S_ISREG(kind.st_mode):
            offset = os.lseek(self.descriptor, 0, os.SEEK_CUR)
            if offset == 0:
                return self._text(_WAITING, note)
            if offset < kind.st_size:
                note("[standard input is a file that was read in part, so it is not joined; '-' reads the rest]")
        elif stat.S_ISSOCK(kind.st_mode):
            note("[standard input is a socket, so it is not joined; '-' reads it]")
        elif not os.isatty(self.descriptor) and not _is_null_device(kind):
            note("[standard input is a device, so it is not joined; '-' reads it]")
        return ""

    def _text(self, waiting: str | None, note: Note) -> str:
        """Return the text; ``waiting`` is said once after a silence, unless it is None."""
        try:
            data = self._bytes(waiting, note)
        except OSError as error:
            raise StorageError(f"standard input cannot be read: {error.strerror}") from error
        text = data.decode("utf-8-sig", errors="replace")
        if "\ufffd" in text and b"\xef\xbf\xbd" not in data:
            note("run: standard input is not valid UTF-8; invalid bytes were replaced")
        return text

    def _bytes(self, waiting: str | None, note: Note) -> bytes:
        data = bytearray()
        while True:
            ready, _, _ = select.select([self.descriptor], [], [], SILENCE_SECONDS if waiting else None)
            if not ready and waiting:
                note(waiting)
                waiting = None
                continue
            try:
                block = os.read(self.descriptor, _BLOCK_BYTES)
            except BlockingIOError:
                continue  # another process reads the same pipe and was first
            if not block:
                return bytes(data)
            data += block
            if len(data) > MAX_INPUT_BYTES:
                raise ValidationError(
                    f"standard input is larger than {MAX_INPUT_BYTES // 1024**2} MiB,"
                    " more than any context window holds"
                )


def _is_null_device(kind: os.stat_result) -> bool:
    return stat.S_ISCHR(kind.st_mode) and kind.st_rdev == os.stat(os.devnull).st_rdev
