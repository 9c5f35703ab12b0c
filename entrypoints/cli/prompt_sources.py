"""The prompt of ``mlxk run``: words, files and standard input, and the media that the words name.

Whether standard input is joined to a prompt in words depends on its type, never on time: a slow pipe must not be
dropped, and a shell loop over the lines of a file must keep its lines. Its size is bounded, so that an endless pipe
ends in an error and not in exhausted memory.
"""

import argparse
import contextlib
import fcntl
import os
import select
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import attrs

from mlxk.domain.errors import StorageError, UsageError, ValidationError
from mlxk.domain.generation.video import MAX_VIDEO_BYTES
from mlxk.domain.models.model import Capability, ModelDescription
from mlxk.domain.text import lines_of
from mlxk.entrypoints.cli import input_files
from mlxk.entrypoints.cli.command import CommandContext
from mlxk.entrypoints.cli.generation_arguments import (
    CONVERSATIONS_ONLY,
    WITHOUT_IMAGES,
    take_audio_prompt,
    take_image_prompt,
)
from mlxk.entrypoints.cli.input_files import NamedFile, labelled, read_files
from mlxk.entrypoints.cli.output import Output
from mlxk.entrypoints.cli.render.formatting import counted

if TYPE_CHECKING:
    from mlxk.entrypoints.container import Container


PIPE_WORD = "-"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the prompt's words and the flags of its other sources."""
    parser.add_argument(
        "words",
        nargs="*",
        default=[],  # else argparse calls it required
        metavar="PROMPT",
        help="the prompt; piped text stands before it; '-' reads standard input in any case",
    )
    parser.add_argument("--prompt", metavar="TEXT", help="the prompt, instead of words")
    parser.add_argument(
        "--file", action="append", default=[], metavar="FILE", help="put this text before the prompt; repeatable"
    )
    parser.add_argument(
        "--no-stdin", action="store_true", help="do not read standard input, as in a loop that reads from a pipe"
    )
    parser.add_argument(
        "--attach",
        action=argparse.BooleanOptionalAction,
        help="show the model images, clips and sound that the prompt names (yes), or not",
    )


@attrs.frozen
class PromptSources:
    """The prompt and, for the first message of a chat, its media."""

    prompt: str
    """Standard input, files and words, in this order, with blank lines between them."""
    media: tuple[NamedFile, ...] = ()
    """In a chat, media that the words name; otherwise these are added to ``--image``, ``--video`` and ``--audio``."""


def read(
    arguments: argparse.Namespace, context: CommandContext, container: "Container", output: Output
) -> PromptSources:
    """Return the prompt of a command line; outside of a chat, add the media that its words name to their flags.

    Notes on standard error name what was joined or attached.

    Raises:
        UsageError: The prompt is given twice.
        MlxkError: A file or standard input cannot be read, or the model cannot be found.
    """
    typed = _typed(arguments, container)
    words, media = _attach(arguments, typed, container, output) if typed else ("", ())
    if not arguments.chat:
        arguments.image = [*(arguments.image or ()), *(each.path for each in media if each.is_image)] or None
        arguments.video = [*(arguments.video or ()), *(each.path for each in media if each.is_video)] or None
        arguments.audio = [*(arguments.audio or ()), *(each.path for each in media if each.is_recording)] or None
        media = ()
    files = labelled(read_files([path for path in arguments.file if path != PIPE_WORD], "--file"))
    has_prompt = bool(words or files or arguments.image or arguments.video or arguments.audio or media)
    piped = _piped(arguments, has_prompt, context, output)
    prompt = "\n\n".join(part for part in (piped, *files, words) if part.strip()) or words or piped
    if not prompt.strip() and _reads_always(arguments):
        raise ValidationError("standard input is empty, so there is no prompt")
    return PromptSources(prompt, media)


@contextlib.contextmanager
def piped_media(arguments: argparse.Namespace, context: CommandContext, output: Output, *flags: str) -> Iterator[None]:
    """Within the block, replace ``-`` among the values of a flag by a temporary file with standard input.

    Args:
        arguments: The command line, which is changed.
        context: Has standard input.
        output: Where to print that the command waits for input.
        flags: Names of flags that take files.

    Raises:
        UsageError: Another ``-`` reads standard input, too.
        MlxkError: Standard input cannot be read, or is empty.
    """
    dashes = [(flag, index) for flag in flags for index in _dashes(getattr(arguments, flag))]
    if not dashes:
        yield
        return
    flag, index = dashes[0]
    if len(dashes) > 1 or _reads_always(arguments):
        raise UsageError(f"--{flag} {PIPE_WORD} and another '{PIPE_WORD}' exclude each other: both read standard input")
    waiting = f"waiting for standard input, for --{flag}"
    data = StandardInput(context.standard_input).data(waiting, output.note, MAX_VIDEO_BYTES)
    if not data:
        raise ValidationError(f"--{flag}: standard input is empty")
    with tempfile.TemporaryDirectory(prefix="mlxk-input-") as folder:
        path = os.path.join(folder, "standard-input")
        with open(path, "wb") as file:
            file.write(data)
        getattr(arguments, flag)[index] = path
        arguments.no_stdin = True
        yield


def _dashes(values: Sequence[str] | None) -> list[int]:
    """Return the indexes of ``-`` among the values of a flag, except as the last of several: that is the prompt."""
    values = values or ()
    last = len(values) - 1
    return [index for index, value in enumerate(values) if value == PIPE_WORD and not 0 < index == last]


def _typed(arguments: argparse.Namespace, container: "Container") -> list[str]:
    """Return the typed words of the prompt, as the shell passed them.

    Raises:
        UsageError: The prompt is given as words and with ``--prompt``.
    """
    words = [word for word in arguments.words if word != PIPE_WORD]
    if any(words) and arguments.prompt is not None:
        raise UsageError("the prompt is given twice, as words and with --prompt", hint="Give one of them.")
    if arguments.prompt is not None:
        return [str(arguments.prompt)]
    if any(words):
        return words
    return take_audio_prompt(arguments) or take_image_prompt(arguments, container.adapters.built_in_models())


def _attach(
    arguments: argparse.Namespace, typed: Sequence[str], container: "Container", output: Output
) -> tuple[str, tuple[NamedFile, ...]]:
    """Return the words without the attached media that they name, and these media."""
    pieces = [] if arguments.attach is False else input_files.find(typed)
    files = [each for each in pieces if isinstance(each, NamedFile)]
    unrecognized = input_files.unrecognized_media(typed) if pieces else []
    if not files and not unrecognized:
        return " ".join(typed), ()
    description = None
    if unrecognized or any(each.is_media for each in files):
        description = container.use_cases.describe_model()(container.use_cases.resolve_model()(arguments.model))
    if description is not None and input_files.takes_media(description):
        for name, reason in unrecognized:
            output.note(f"[{name} stays words: {reason}]")
    attached = []
    for file in files:
        reason = f"its text is joined by --file {file.typed}"
        if description is not None and file.is_media:
            reason = _refusal(file, arguments, description)
        if reason:
            output.note(f"[{file.typed} stays words: {reason}]")
        elif file not in attached:
            output.note(f"[attached: {file.typed}]")
            attached.append(file)
    return input_files.without_media(pieces, attached) if attached else " ".join(typed), tuple(attached)


def _refusal(file: NamedFile, arguments: argparse.Namespace, description: ModelDescription) -> str:
    """Return why a media file is not attached; empty when it is."""
    kind = "images" if file.is_image else "video" if file.is_video else "sound"
    if not description.can(Capability.AUDIO if file.is_recording else Capability.VISION):
        return f"'{arguments.model}' takes no {kind}"
    if arguments.chat:
        return ""
    excluding = CONVERSATIONS_ONLY if file.is_recording else WITHOUT_IMAGES
    flag = next((flag for name, flag in excluding.items() if getattr(arguments, name)), None)
    return f"{flag} and {kind} exclude each other" if flag else ""


def _reads_always(arguments: argparse.Namespace) -> bool:
    """Whether a ``-`` asks for standard input, whatever it is."""
    return PIPE_WORD in arguments.words or PIPE_WORD in arguments.file


def _piped(arguments: argparse.Namespace, has_prompt: bool, context: CommandContext, output: Output) -> str:
    """Return the text of standard input that belongs to the prompt; empty for none.

    Args:
        arguments: The command line.
        has_prompt: Whether there is a prompt without it.
        context: Has standard input.
        output: Where to print what was joined.
    """
    if _reads_always(arguments):
        if arguments.no_stdin:
            output.note(f"[--no-stdin has no effect: '{PIPE_WORD}' reads standard input]")
        return StandardInput(context.standard_input).read(output.note)
    if arguments.no_stdin or not context.settings.enable_pipes:
        return ""
    if not has_prompt:
        return "" if sys.stdin.isatty() else StandardInput(context.standard_input).read(output.note)
    text = StandardInput(context.standard_input).beside_words(output.note)
    if text.strip():
        output.note(f"[joined to the prompt: standard input, {counted(len(lines_of(text)), 'line')}]")
    return text


MAX_INPUT_BYTES = 64 * 1024 * 1024
"""More than any context window (about 16 million tokens), less than any machine's memory."""

SILENCE_SECONDS = 1.0
"""Time without input after which a note says what the program waits for."""

_MEDIA_HINT = "Show an image with --image -, a clip with --video -, and give sound with --audio -."

_WAITING = "waiting for standard input; --no-stdin goes without it"
_BLOCK_BYTES = 64 * 1024

Note = Callable[[str], None]
"""Prints a message for the user."""


@attrs.frozen
class StandardInput:
    """The standard input of this process."""

    descriptor: int = 0

    def read(self, note: Note) -> str:
        """Return the text of standard input of any type, without a byte-order mark; bytes not in UTF-8 are replaced.

        Args:
            note: Called with a message when bytes were replaced, or when no input arrives for a while.

        Raises:
            StorageError: It cannot be read.
            ValidationError: It is larger than ``MAX_INPUT_BYTES``, or not text.
        """
        is_terminal = os.isatty(self.descriptor)
        return self._text("waiting for standard input; Ctrl-D ends it" if is_terminal else None, note)

    def beside_words(self, note: Note) -> str:
        """Return the piped text to join to a prompt in words; empty when standard input is not meant for it.

        A pipe is always read, a regular file if nothing of it was read before. Terminals, sockets and devices are never
        read: child processes inherit them, and they need not end.

        Args:
            note: Called with a message when bytes were replaced, when no input arrives for a while, and with the
                reason when a file, a socket or a device is not read.

        Raises:
            StorageError: It cannot be read.
            ValidationError: It is larger than ``MAX_INPUT_BYTES``, or not text.
        """
        if fcntl.fcntl(self.descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY:
            return ""  # some programs start others with a write-only standard input
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
        """Return all of standard input as text; see ``data``."""
        data = self.data(waiting, note)
        text = data.decode("utf-8-sig", errors="replace")
        if "\ufffd" in text and b"\xef\xbf\xbd" not in data:
            if b"\0" in data[:_BLOCK_BYTES]:  # images, sound and clips begin with zero bytes, text has none
                raise ValidationError("standard input is no text", hint=_MEDIA_HINT)
            note("run: standard input is not valid UTF-8; invalid bytes were replaced")
        return text

    def data(self, waiting: str | None, note: Note, most_bytes: int = MAX_INPUT_BYTES) -> bytes:
        """Return all bytes of standard input.

        Args:
            waiting: Message to note once when no input arrives for ``SILENCE_SECONDS``; None for none.
            note: Called with the message.
            most_bytes: Largest size.

        Raises:
            StorageError: It cannot be read.
            ValidationError: It is larger.
        """
        try:
            return self._bytes(waiting, note, most_bytes)
        except OSError as error:
            raise StorageError(f"standard input cannot be read: {error.strerror}") from error

    def _bytes(self, waiting: str | None, note: Note, most_bytes: int) -> bytes:
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
                continue  # another process that reads the same pipe was faster
            if not block:
                return bytes(data)
            data += block
            if len(data) > most_bytes:
                reason = ", more than any context window holds" if most_bytes == MAX_INPUT_BYTES else ""
                raise ValidationError(f"standard input is larger than {most_bytes // 1024**2} MiB{reason}")


def _is_null_device(kind: os.stat_result) -> bool:
    return stat.S_ISCHR(kind.st_mode) and kind.st_rdev == os.stat(os.devnull).st_rdev
