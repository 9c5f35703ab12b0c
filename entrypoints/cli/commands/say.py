"""``mlxk say MODEL TEXT``: speaks a text, into a file or to standard output."""

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, cast

import attrs

from mlxk.domain.errors import BackendNotInstalledError, StorageError, UsageError, ValidationError
from mlxk.domain.synthesis import (
    MAX_CHARACTERS,
    SpeechBegun,
    SpeechEnded,
    SpeechEvent,
    SpokenPart,
    SynthesisSettings,
    VoiceSample,
    chosen_voice,
    wav_header,
)
from mlxk.entrypoints.cli.command import (
    CommandContext,
    add_cpu_argument,
    add_model_argument,
    add_pull_argument,
    computing_settings,
    fetch_absent,
    print_place,
    suggesting_pull,
)
from mlxk.entrypoints.cli.output import DONE, Output, result_file
from mlxk.entrypoints.cli.progress import Spinner
from mlxk.entrypoints.cli.text_files import piped_text

if TYPE_CHECKING:
    from mlxk.application.ports.media import SoundEncoder
    from mlxk.entrypoints.container import Container

FORMATS = ("wav", "mp3", "opus", "aac", "flac", "pcm")
STDIN = "-"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the model, the text, the voice, and the file and format of the sound."""
    add_model_argument(parser)
    parser.add_argument("text", metavar="TEXT", help="what to say; '-' is standard input")
    parser.add_argument("-o", "--output", metavar="FILE", help="the file of sound, such as out.wav")
    parser.add_argument("--voice", metavar="NAME", help="one of the model's voices; 'mlxk show MODEL' lists them")
    parser.add_argument("--speed", type=float, default=1.0, metavar="N", help="0.25 to 4; 2 is twice as fast")
    parser.add_argument("--instructions", metavar="TEXT", help="how to speak, for models that take it")
    parser.add_argument(
        "--clone-voice", metavar="FILE", help="speak in the voice of a recording; only with its speaker's consent"
    )
    parser.add_argument("--clone-text", metavar="TEXT", help="what is said in that recording, word for word")
    parser.add_argument("--format", choices=FORMATS, help="of the sound; by default that of FILE's name, else wav")
    add_pull_argument(parser)
    parser.add_argument("-v", "--verbose", action="store_true", help="say where the sound was computed")
    add_cpu_argument(parser)


def execute(arguments: argparse.Namespace, context: CommandContext, output: Output) -> int:
    """Speak a text."""
    kind = _kind(arguments, output)
    text = _text(arguments)
    sample = _sample(arguments)
    settings = SynthesisSettings(arguments.voice, arguments.speed, arguments.instructions or None, sample=sample)
    container = context.build(computing_settings(arguments, context.settings))
    try:
        encoder = None if kind in ("wav", "pcm") else _encoder(container, kind)
        with suggesting_pull(context.settings):
            fetch_absent((arguments.model,), lambda: container, output, pull=arguments.pull)
            handle = container.use_cases.resolve_model()(arguments.model)
            details = container.use_cases.describe_model().details(handle)
        events = container.use_cases.speak_text()(details, text, settings)
        if sample is not None:
            output.note(f"[the voice of '{sample.name}' is imitated: its speaker must have consented; it is not kept]")
        with contextlib.closing(events), _target(arguments.output) as target:
            spoken = _speak(events, _SoundWriter(target, kind, encoder), settings, output)
        voice = None if sample else chosen_voice(arguments.voice, details.voices, handle.label)
        facts: dict[str, object] = {"model": handle.name, "voice": voice, "cloned": sample is not None, "format": kind}
        _report(arguments.output, output, facts, spoken)
        if arguments.verbose:
            print_place(container, output)
        return DONE
    finally:
        container.adapters.text_generator().close()


def _kind(arguments: argparse.Namespace, output: Output) -> str:
    """Return the format of the sound.

    Raises:
        UsageError: The format is unknown, or the sound would go to a terminal or between JSON.
    """
    suffix = os.path.splitext(arguments.output or "")[1].removeprefix(".").lower()
    if arguments.output is None and output.as_json:
        raise UsageError("--json prints a document on standard output; name a file for the sound with -o FILE")
    if arguments.output is None and output.interactive:
        raise UsageError(
            "sound is not written to a terminal",
            hint='Name a file: mlxk say MODEL "Hello." -o hello.wav; or pass it on: mlxk say MODEL "Hello." | PLAYER',
        )
    if arguments.format is None and suffix not in ("", *FORMATS):
        raise UsageError(f"-o: '{arguments.output}' ends in none of {', '.join(FORMATS)}", hint="Add --format.")
    kind: str = arguments.format or suffix or "wav"
    return kind


def _text(arguments: argparse.Namespace) -> str:
    if arguments.text != STDIN:
        return str(arguments.text)
    text = piped_text(4 * MAX_CHARACTERS)
    if not text.strip():
        raise ValidationError("There is no text: standard input is empty.")
    return text


def _sample(arguments: argparse.Namespace) -> VoiceSample | None:
    """Return the recording whose voice is cloned; None without one.

    Raises:
        UsageError: ``--clone-text`` is given without a recording, or ``--voice`` beside one.
    """
    path = arguments.clone_voice
    if path is None and arguments.clone_text is not None:
        raise UsageError("--clone-text is what is said in the recording of --clone-voice, which is missing")
    if path is not None and arguments.voice is not None:
        raise UsageError("--voice and --clone-voice exclude each other")
    return None if path is None else VoiceSample(path, path, arguments.clone_text)


def _encoder(container: "Container", kind: str) -> "SoundEncoder":
    encoder = container.adapters.sound_encoder()
    problem = encoder.problem(kind)
    if problem is not None:
        raise BackendNotInstalledError(
            f"'{kind}' cannot be made here: {problem}.",
            hint="Install it (macOS: brew install ffmpeg; Debian: apt install ffmpeg), or write wav.",
        )
    return encoder


class _SoundWriter:
    """Writes sound. PCM, and WAV to a pipe, are written as they come; other formats and WAV files at the end.

    Args:
        target: A binary file.
        kind: The format.
        encoder: None for WAV and PCM.
    """

    def __init__(self, target: IO[bytes], kind: str, encoder: "SoundEncoder | None") -> None:
        self._target = target
        self._kind = kind
        self._encoder = encoder
        self._streams = encoder is None and (kind == "pcm" or not target.seekable())
        self._buffer = bytearray()
        self.rate = 0

    def begin(self, rate: int) -> None:
        """Set the sample rate, in Hz, and write the header of a WAV stream."""
        self.rate = rate
        if self._kind == "wav" and self._streams:
            self._write(wav_header(rate))

    def add(self, pcm: bytes) -> None:
        """Write or buffer 16-bit samples."""
        if self._streams:
            self._write(pcm)
        else:
            self._buffer += pcm

    def end(self) -> None:
        """Encode and write the buffered sound."""
        if self._encoder is not None:
            self._write(self._encoder.encode(bytes(self._buffer), self.rate, self._kind))
        elif not self._streams:
            self._write(wav_header(self.rate, len(self._buffer)) + bytes(self._buffer))

    def _write(self, data: bytes) -> None:
        try:
            self._target.write(data)
            self._target.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise StorageError(
                f"the sound cannot be written: {error.strerror}", hint="See whether the disk it goes to is full."
            ) from error


def _target(path: str | None) -> contextlib.AbstractContextManager[IO[bytes]]:
    """Return a context of the file, or of standard output."""
    if path is not None:
        return result_file(path)
    # Taken before a library is loaded: sys.stdout is replaced meanwhile, since libraries print.
    return contextlib.nullcontext(
        cast("IO[bytes]", sys.stdout.buffer) if isinstance(sys.stdout, io.TextIOWrapper) else io.BytesIO()
    )


_NOTES = {
    "instructions-ignored": "[the model takes no instructions; they had no effect]",
    "clone-text-ignored": "[the model does not read what is said in the recording; --clone-text had no effect]",
}


@attrs.frozen
class _Spoken:
    """Facts about the spoken text."""

    ended: SpeechEnded
    rate: int
    pieces: int
    adaptations: tuple[str, ...]


def _speak(events: Iterator[SpeechEvent], sink: _SoundWriter, settings: SynthesisSettings, output: Output) -> _Spoken:
    """Write the sound, and note the options that the model ignores."""
    pieces, ended = 0, SpeechEnded(0.0, 0, 0)
    adaptations: tuple[str, ...] = ()
    with Spinner(output, "speaking"):
        for event in events:
            if isinstance(event, SpeechBegun):
                sink.begin(event.sample_rate)
                if settings.instructions is not None and not event.takes_instructions:
                    adaptations += ("instructions-ignored",)
                if settings.sample is not None and settings.sample.text is not None and not event.takes_sample_text:
                    adaptations += ("clone-text-ignored",)
            elif isinstance(event, SpokenPart):
                sink.add(event.pcm)
                pieces = event.pieces
            else:
                ended = event
        sink.end()
    for each in adaptations:
        output.note(_NOTES[each])
    return _Spoken(ended, sink.rate, pieces, adaptations)


def _report(path: str | None, output: Output, facts: dict[str, object], spoken: _Spoken) -> None:
    if output.as_json:
        document = {
            **facts,
            "file": path,
            "sample_rate": spoken.rate,
            "seconds": round(spoken.ended.seconds, 3),
            "pieces": spoken.pieces,
            "adaptations": list(spoken.adaptations),
        }
        output.document("say", document)
    elif path is not None:
        output.note(f"{spoken.ended.seconds:.1f} s of sound: {path}")
