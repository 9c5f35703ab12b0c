"""``mlxk say`` with a voice in memory: where the sound goes, in which form, and what is read and said."""

import contextlib
import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import attrs
import pytest
from dependency_injector import providers
from doubles.sound_encoder import InMemorySoundEncoder
from doubles.speech_synthesizer import RATE, InMemorySpeechSynthesizer
from models.tiny_voices import build_qwen3_tts

from mlxk.domain.errors import ExecutionError
from mlxk.domain.synthesis import MAX_CHARACTERS, WAV_HEADER_BYTES, wav_header
from mlxk.entrypoints.cli.command import CommandContext
from mlxk.entrypoints.cli.program import run
from mlxk.entrypoints.container import Container, build
from mlxk.entrypoints.settings import Settings, read_settings

pytestmark = pytest.mark.mlx

PCM_BYTES = 2 * int(6 * 0.01 * RATE)
"""Of the six characters of ``Hello.``."""


@pytest.fixture(scope="module")
def voices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("voices")
    build_qwen3_tts(folder / "speaker")
    return folder


@attrs.define
class Program:
    """The command line with a voice and an encoder in memory, in an empty folder."""

    voices: Path
    folder: Path
    synthesizer: InMemorySpeechSynthesizer = attrs.Factory(lambda: InMemorySpeechSynthesizer(takes_instructions=True))
    encoder: InMemorySoundEncoder = attrs.Factory(lambda: InMemorySoundEncoder({"mp3"}))
    said: str = ""
    """What the last command printed on standard error."""

    def __call__(self, *arguments: str, stdin: bytes = b"", stdout: TextIO | None = None) -> tuple[int, bytes]:
        """Run ``say``; return its status and what it printed, unless standard output is given."""
        settings = read_settings({"HOME": str(self.folder), "MLXK_WORKSPACE_HOME": str(self.voices)})
        context = CommandContext(settings, build=self._build, serve=lambda *_: 1)
        printed, said = io.BytesIO(), io.StringIO()
        stream = io.TextIOWrapper(printed, encoding="utf-8") if stdout is None else stdout
        with (
            contextlib.chdir(self.folder),
            contextlib.redirect_stdout(stream),
            contextlib.redirect_stderr(said),
            reading(stdin),
        ):
            status = run(("say", *arguments), context)
        self.said = said.getvalue()
        if stdout is None:
            stream.flush()
        return status, printed.getvalue()

    def _build(self, settings: Settings, *_: Any) -> Container:
        container = build(settings)
        container.adapters.speech_synthesizer.override(providers.Object(self.synthesizer))
        container.adapters.sound_encoder.override(providers.Object(self.encoder))
        return container

    @property
    def spoken(self) -> str:
        """The text of the one request."""
        (request,) = self.synthesizer.requests
        return request.text


@contextlib.contextmanager
def reading(content: bytes) -> Iterator[None]:
    """Make bytes the standard input of this process."""
    kept = sys.stdin
    sys.stdin = io.TextIOWrapper(io.BytesIO(content))
    try:
        yield
    finally:
        sys.stdin = kept


@pytest.fixture
def say(voices: Path, tmp_path: Path) -> Program:
    return Program(voices, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "size", "beginning"),
    [
        (("-o", "out.wav"), WAV_HEADER_BYTES + PCM_BYTES, wav_header(RATE, PCM_BYTES)),
        (("-o", "out.pcm"), PCM_BYTES, b""),
        (("-o", "out"), WAV_HEADER_BYTES + PCM_BYTES, wav_header(RATE, PCM_BYTES)),
        (("-o", "OUT.MP3"), len("mp3 22050 ") + PCM_BYTES, b"mp3 22050 "),
        (("-o", "out.wav", "--format", "mp3"), len("mp3 22050 ") + PCM_BYTES, b"mp3 22050 "),
        (("-o", "out.ogg", "--format", "pcm"), PCM_BYTES, b""),
    ],
)
def test_the_form_is_that_of_the_flag_or_of_the_name(
    say: Program, arguments: tuple[str, ...], size: int, beginning: bytes
) -> None:
    assert say("speaker", "Hello.", *arguments) == (0, b"")
    content = (say.folder / arguments[1]).read_bytes()
    assert (len(content), content.startswith(beginning)) == (size, True)
    assert say.said == f"0.1 s of sound: {arguments[1]}\n"
    assert [path.name for path in say.folder.iterdir()] == [arguments[1]]


def test_a_pipe_gets_a_wav_without_its_length_as_it_is_spoken(say: Program) -> None:
    reading_end, writing_end = os.pipe()
    with open(reading_end, "rb") as reader:
        with open(writing_end, "w") as writer:
            assert say("speaker", "Hello.", stdout=writer)[0] == 0
        assert reader.read()[:WAV_HEADER_BYTES] == wav_header(RATE)
    assert say.said == ""


def test_a_redirection_to_a_file_gets_a_wav_with_its_length(say: Program) -> None:
    with open(say.folder / "out.wav", "w") as file:
        assert say("speaker", "Hello.", stdout=file)[0] == 0
    assert (say.folder / "out.wav").read_bytes()[:WAV_HEADER_BYTES] == wav_header(RATE, PCM_BYTES)


def test_a_reader_that_leaves_ends_it_in_silence(say: Program) -> None:
    reading_end, writing_end = os.pipe()
    os.close(reading_end)
    with open(writing_end, "w") as writer:
        assert say("speaker", "Hello.", stdout=writer)[0] == 141
    assert say.said == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no full device")
@pytest.mark.parametrize("kind", ["wav", "pcm", "mp3"])
def test_a_full_disk_is_named(say: Program, kind: str) -> None:
    full = open("/dev/full", "w")  # noqa: SIM115 - what could not be written fails once more as it is closed
    assert say("speaker", "Hello.", "--format", kind, stdout=full)[0] == 1
    with contextlib.suppress(OSError):
        full.close()
    assert say.said == (
        "say: Error: the sound cannot be written: No space left on device\nSee whether the disk it goes to is full.\n"
    )


def test_a_failure_leaves_the_former_file(say: Program) -> None:
    (say.folder / "out.wav").write_bytes(b"former")
    say.synthesizer.late_failure = ExecutionError("no memory")
    assert say("speaker", "Hello.", "-o", "out.wav") == (1, b"")
    assert say.said == "say: Error: no memory\n"
    assert (say.folder / "out.wav").read_bytes() == b"former"
    assert [path.name for path in say.folder.iterdir()] == ["out.wav"]


def test_a_terminal_gets_no_sound(say: Program) -> None:
    controller, terminal = os.openpty()
    with open(terminal, "w") as shown, open(controller, "rb"):
        assert say("speaker", "Hello.", stdout=shown)[0] == 2
    assert "say: Error: sound is not written to a terminal\nName a file: mlxk say MODEL" in say.said
    assert say.synthesizer.requests == []


@pytest.mark.parametrize(
    ("stdin", "text"),
    [(b"Hello.", "Hello."), ("\ufeffGrüße.".encode(), "Grüße."), (b"Caf\xe9.", "Caf\ufffd.")],
    ids=["text", "a byte-order mark", "latin 1"],
)
def test_a_text_of_standard_input_is_spoken_without_its_mark(say: Program, stdin: bytes, text: str) -> None:
    assert say("speaker", "-", "-o", "out.wav", stdin=stdin)[0] == 0
    assert say.spoken == text


@pytest.mark.parametrize(
    ("stdin", "said"),
    [
        (b" \n", "There is no text: standard input is empty."),
        (b"\xef\xbb\xbf", "There is no text: standard input is empty."),
        (b"x" * (4 * MAX_CHARACTERS + 1), "standard input is larger than 781 KiB"),
        (b"x" * (MAX_CHARACTERS + 1), "input must have at most 200000 characters (got 200001)"),
    ],
    ids=["blank", "a mark alone", "too many bytes", "too many characters"],
)
def test_what_is_no_text_to_speak_is_refused(say: Program, stdin: bytes, said: str) -> None:
    assert say("speaker", "-", "-o", "out.wav", stdin=stdin) == (1, b"")
    assert say.said.splitlines()[0] == f"say: Error: {said}"
    assert list(say.folder.iterdir()) == []


def test_a_form_without_an_encoder_says_what_to_install(say: Program) -> None:
    assert say("speaker", "Hello.", "-o", "out.flac")[0] == 1
    assert say.said.splitlines() == [
        "say: Error: 'flac' cannot be made here: there is no encoder.",
        "Install it (macOS: brew install ffmpeg; Debian: apt install ffmpeg), or write wav.",
    ]
    assert say.synthesizer.requests == []


def test_what_has_no_effect_is_said_and_a_name_in_any_case_is_a_voice(say: Program) -> None:
    say.synthesizer = InMemorySpeechSynthesizer(takes_instructions=False)
    arguments = ("speaker", "Hello.", "-o", "out.wav", "--voice", "RYAN")
    assert say(*arguments, "--instructions", "Slowly.")[0] == 0
    assert say.said.splitlines()[0] == "[the model takes no instructions; they had no effect]"
    assert say(*arguments, "--instructions", "")[0] == 0
    assert say.said == "0.1 s of sound: out.wav\n"
    status, printed = say(*arguments, "--instructions", "Slowly.", "--json")
    assert (status, json.loads(printed)["data"]) == (
        0,
        {
            "model": str(say.voices / "speaker"),
            **{"voice": "ryan", "cloned": False, "format": "wav", "file": "out.wav"},
            **{"sample_rate": RATE, "seconds": 0.06, "pieces": 1, "adaptations": ["instructions-ignored"]},
        },
    )
