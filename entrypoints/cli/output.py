"""Terminal input and output: results on standard output, messages on standard error, questions, exit statuses.

Writes the JSON envelope; the modules in ``render`` convert values to JSON and text.
"""

import contextlib
import errno
import io
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, TextIO

from mlxk.application.ports.system import Confirmation
from mlxk.domain.errors import MlxkError, StorageError
from mlxk.entrypoints.cli.render.formatting import printable
from mlxk.entrypoints.wording import command_line_error

DONE = 0
FAILED = 1
USAGE = 2
PORT_IN_USE = 3
INTERRUPTED = 130
CLOSED_PIPE = 141
"""128 + SIGPIPE, as a shell reports a process that a closed pipe ended; scripts ignore it."""

EXIT_STATUS: dict[str, int] = {
    "usage_error": USAGE,
    "validation_error": FAILED,
    "model_not_found": FAILED,
    "ambiguous_match": FAILED,
    "hash_not_found": FAILED,
    "storage_error": FAILED,
    "model_unhealthy": FAILED,
    "incompatible_model": FAILED,
    "untrusted_model_code": FAILED,
    "backend_not_installed": FAILED,
    "capability_not_supported": FAILED,
    "context_length_exceeded": FAILED,
    "insufficient_memory": FAILED,
    "queue_full": FAILED,
    "feature_disabled": FAILED,
    "access_denied": FAILED,
    "network_error": FAILED,
    "download_failed": FAILED,
    "upload_failed": FAILED,
    "requires_confirmation": FAILED,
    "locks_present": FAILED,
    "workspace_model": FAILED,
    "secrets_found": FAILED,
    "conversion_failed": FAILED,
    "execution_error": FAILED,
    "interrupted": INTERRUPTED,
    "parameter_not_supported": FAILED,
    "not_found": FAILED,
    "method_not_allowed": FAILED,
    "unsupported_media_type": FAILED,
    "payload_too_large": FAILED,
    "request_timeout": FAILED,
    "unauthorized": FAILED,
    "forbidden_origin": FAILED,
    "server_shutdown": FAILED,
    "rank_lost": FAILED,
    "port_in_use": PORT_IN_USE,
    "internal_error": FAILED,
}


def exit_status(error: MlxkError) -> int:
    """Return the exit status of an error."""
    return EXIT_STATUS[error.code]


BOLD, DIM, RED, YELLOW, RESET = "\x1b[1m", "\x1b[2m", "\x1b[31m", "\x1b[33m", "\x1b[0m"

YES, NO = frozenset({"y", "yes"}), frozenset({"n", "no"})


class Output:
    """Writes results and errors, as text or as JSON.

    Args:
        as_json: Whether the result is one JSON document.
        color: Whether to use colours on terminals.
        stdout: The stream of results; standard output when None.
        stderr: The stream of messages; standard error when None.
    """

    def __init__(
        self, *, as_json: bool, color: bool, stdout: TextIO | None = None, stderr: TextIO | None = None
    ) -> None:
        self.as_json = as_json
        self.one_line = False
        """Whether to write a JSON document on one line, because others precede it."""
        self.undelivered = False
        """Whether standard output could not be written."""
        self.typed_flags: Mapping[str, str] = {}
        """The typed spelling of each flag, by option name, for error messages."""
        self._stderr_failed = False
        self._stdout = sys.stdout if stdout is None else stdout
        self._stderr = sys.stderr if stderr is None else stderr
        self._color = color
        for stream in (self._stdout, self._stderr):
            if isinstance(stream, io.TextIOWrapper):
                # Printing must not fail on file names, which need not be valid Unicode.
                stream.reconfigure(errors="backslashreplace")

    @property
    def interactive(self) -> bool:
        """Whether standard output is a terminal."""
        return self._stdout.isatty()

    def document(self, command: str | None, data: object) -> None:
        """Write the JSON document of a success."""
        self._write_envelope("success", command, data, None)

    def failure(self, command: str | None, error: MlxkError) -> None:
        """Write an error: an envelope on standard output, or a line and a hint on standard error."""
        if self.as_json and not self.undelivered:
            self._write_envelope("error", command, None, error_object(error, self.typed_flags))
            return
        prefix = f"{command}: " if command else ""
        message, hint = command_line_error(error, self.typed_flags)
        self._write_message(f"{prefix}{self.paint('Error:', RED, self._stderr)} {printable(message)}\n")
        for match in error.matches:
            self._write_message(f"  {printable(match)}\n")
        if hint:
            self._write_message(f"{self.paint(printable(hint), DIM, self._stderr)}\n")

    @property
    def width(self) -> int | None:
        """Columns of the terminal; None when standard output is not a terminal."""
        if not self.interactive:
            return None
        try:
            return os.get_terminal_size(self._stdout.fileno()).columns or None
        except OSError:
            return None

    @property
    def shows_progress(self) -> bool:
        """Whether standard error is a terminal and the result is not JSON."""
        return self._stderr.isatty() and not self.as_json

    def dimmed(self, text: str) -> None:
        """Write part of a message to standard error, dimmed, without ending the line."""
        self._write_message(self.paint(text, DIM, self._stderr))

    def prompt(self, text: str) -> None:
        """Write a question to standard error without ending the line."""
        self._write_message(printable(text))

    def text(self, text: str) -> None:
        """Write text to standard output, unchanged, and flush it.

        Raises:
            StorageError: Standard output cannot be written; ``undelivered`` is true from then on.
            BrokenPipeError: The reader closed the pipe.
        """
        try:
            self._stdout.write(text)
            self._stdout.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            self.undelivered = True
            raise StorageError(
                f"standard output cannot be written: {error.strerror}", hint="See whether the disk it goes to is full."
            ) from error

    def line(self, text: str = "") -> None:
        """Write one line of text to standard output."""
        self.text(f"{text}\n")

    def table(self, text: str) -> None:
        """Write a table with its titles in bold."""
        titles, rows = text.split("\n", 1)
        self.line(self.paint(titles, BOLD))
        self.text(rows)

    def note(self, text: str) -> None:
        """Write one message, of one line or several, to standard error."""
        self._write_message("".join(f"{printable(line)}\n" for line in text.split("\n")))

    def paint(self, text: str, style: str, stream: TextIO | None = None) -> str:
        """Return the text in an ANSI style if colours are on and the stream (standard output) is a terminal."""
        target = self._stdout if stream is None else stream
        return f"{style}{text}{RESET}" if self._color and target.isatty() else text

    def _write_message(self, text: str) -> None:
        """Write to standard error. A failed write must not end the command: later messages are dropped."""
        if self._stderr_failed:
            return
        try:
            self._stderr.write(text)
            self._stderr.flush()
        except OSError:
            self._stderr_failed = True
            discard(self._stderr)

    def _write_envelope(self, status: str, command: str | None, data: object, error: object) -> None:
        envelope = {"status": status, "command": command, "data": data, "error": error}
        self.line(json.dumps(envelope, indent=None if self.one_line else 2, allow_nan=False))


def success_line(command: str, data: object) -> str:
    """Return the JSON document of a success on one line, for a stream of documents or a reader that reads one line."""
    return json.dumps({"status": "success", "command": command, "data": data, "error": None}, allow_nan=False)


_READABLE = 0o644
"""Mode of files with plots and sound."""


@contextlib.contextmanager
def result_file(path: str) -> Iterator[IO[bytes]]:
    """Yield a temporary file that replaces the file at a path when the block ends without an error.

    Raises:
        StorageError: It cannot be written; a former file at the path is unchanged.
    """
    folder = os.path.dirname(path) or "."
    try:
        if not os.path.isdir(folder):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        if os.path.isdir(path):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        descriptor, draft = tempfile.mkstemp(prefix=".mlxk-", suffix=os.path.splitext(path)[1], dir=folder)
        try:
            with open(descriptor, "wb") as file:
                os.fchmod(descriptor, _READABLE)
                yield file
                file.flush()
                os.fsync(descriptor)
            os.replace(draft, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(draft)
            raise
    except OSError as error:
        raise StorageError(f"'{path}' cannot be written: {error.strerror}") from error


def require_writable(path: str, flag: str) -> None:
    """Check that a file can be written, without creating it.

    Raises:
        StorageError: It is a folder, its folder does not exist, or this user may not write it.
    """
    target = path if os.path.exists(path) else os.path.dirname(path) or "."
    if os.path.isdir(path):
        reason = errno.EISDIR
    elif not os.path.exists(target):
        reason = errno.ENOENT
    elif not os.access(target, os.W_OK):
        reason = errno.EACCES
    else:
        return
    raise StorageError(f"{flag}: '{path}' cannot be written: {os.strerror(reason)}")


class TerminalConfirmation(Confirmation):
    """Asks on standard error and reads the answer from standard input.

    Returns None where either is no terminal, or the output is JSON.

    Args:
        output: Where to ask.
        stdin: Where to read; standard input when None.
    """

    def __init__(self, output: Output, stdin: TextIO | None = None) -> None:
        self._output = output
        self._stdin = sys.stdin if stdin is None else stdin

    def ask(self, facts: tuple[str, ...], question: str, *, default: bool) -> bool | None:
        """Ask until the answer is yes, no or empty, which means the default; an end of input means no."""
        if not (self._output.shows_progress and self._stdin.isatty()):
            return None
        for fact in facts:
            self._output.note(fact)
        while True:
            self._output.prompt(f"{question} [{'Y/n' if default else 'y/N'}]: ")
            line = _line(self._output, self._stdin)
            answer = line.strip().lower()
            if not line or answer in NO:
                return False
            if answer in YES or (not answer and default):
                return True
            if not answer:
                return default


def choose(output: Output, question: str, names: Sequence[str], stdin: TextIO | None = None) -> int | None:
    """Ask for an entry of a numbered list, until the answer is its number, from 1, or its name.

    Args:
        output: Where to ask; the caller has checked that it is a terminal, and printed the list.
        question: Ends with its question mark.
        names: The entries; an empty answer chooses the only one of a list of one.
        stdin: Where to read; standard input when None.

    Returns:
        The index of the name; None at an end of input.
    """
    last = len(names)
    while True:
        output.prompt(f"{question} [1{'' if last == 1 else f'-{last}'}]: ")
        line = _line(output, sys.stdin if stdin is None else stdin)
        answer = line.strip()
        if not line:
            return None
        for valid in (list(names), [str(number) for number in range(1, last + 1)]):
            if answer in valid:
                return valid.index(answer)
        if not answer and last == 1:
            return 0
        output.note(f"Write a number from 1 to {last}, or a name of the list.")


def _line(output: Output, stdin: TextIO) -> str:
    """Read a line; empty at an end of input. Where the user typed no line break, end the line of the question."""
    line = ""
    try:
        line = stdin.readline()
    finally:
        if not line:
            output.note("")
    return line


class AlwaysYes(Confirmation):
    """Answers every question with yes, as ``--yes`` asks."""

    def ask(self, facts: tuple[str, ...], question: str, *, default: bool) -> bool | None:
        return True


def confirmation(output: Output, *, yes: bool) -> Confirmation:
    """Return the confirmation of a command: ``AlwaysYes`` with ``--yes``, else the user at the terminal."""
    return AlwaysYes() if yes else TerminalConfirmation(output)


def discard(stream: TextIO) -> None:
    """Redirect a stream to the null device, so that flushing it at exit does not fail."""
    with open(os.devnull, "w") as null:
        os.dup2(null.fileno(), stream.fileno())


def error_object(error: MlxkError, flags: Mapping[str, str]) -> Mapping[str, object]:
    """Return an error as JSON: type and message, and hint, matches and detail where they are set."""
    message, hint = command_line_error(error, flags)
    optional = {"hint": hint, "matches": list(error.matches), "detail": error.detail}
    return {"type": error.code, "message": message, **{key: value for key, value in optional.items() if value}}
