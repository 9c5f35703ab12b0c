"""``run --audio`` and ``embed`` at the command line, on in-memory models: what is printed, and what is refused."""

import contextlib
import io
import json
import os
import re
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import attrs
import pytest
from dependency_injector import providers
from doubles.speech_transcriber import InMemorySpeechTranscriber
from doubles.text_embedder import InMemoryTextEmbedder
from models.tiny_embedding import build_bert

from mlxk.domain.transcription import Segment, SpeechTask, TimedWord, Transcript, TranscriptEvent, TranscriptionRequest
from mlxk.entrypoints.cli.command import CommandContext
from mlxk.entrypoints.cli.program import run
from mlxk.entrypoints.container import Container, build
from mlxk.entrypoints.settings import Settings, read_settings

WORDS = (TimedWord(" Hello", 0.0, 0.5, 0.75), TimedWord(" there.", 0.5, 1.0))
SAID = Transcript(
    "Hello there. Bye.", 2.5, "en", (Segment(" Hello there.", 0.0, 1.0, WORDS), Segment(" Bye.", 1.5, 2.0))
)


@attrs.frozen
class Done:
    """What a command printed."""

    status: int
    out: str
    err: str


class Program:
    """The command line on in-memory models."""

    def __init__(self, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.home = home
        self.transcriber = InMemorySpeechTranscriber(default=SAID)
        self.embedder = InMemoryTextEmbedder(dimensions=4)
        self._capsys = capsys

    def __call__(self, *arguments: str, **variables: str) -> Done:
        """Run a command; keyword arguments are environment variables."""
        settings = read_settings({"HOME": str(self.home), **variables})
        with open(os.devnull) as null:
            context = CommandContext(settings, build=self._build, serve=lambda *_: 1, standard_input=null.fileno())
            status = run(arguments, context)
        printed = self._capsys.readouterr()
        return Done(status, printed.out, printed.err)

    def _build(self, settings: Settings, *_: Any) -> Container:
        container = build(settings)
        container.adapters.speech_transcriber.override(providers.Object(self.transcriber))
        container.adapters.text_embedder.override(providers.Object(self.embedder))
        return container


@pytest.fixture
def mlxk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Program:
    return Program(tmp_path, capsys)


@pytest.fixture
def bert(tmp_path: Path) -> str:
    return build_bert(tmp_path / "bert").directory


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    """Put something on standard input."""

    def put(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    return put


def test_the_text_goes_to_standard_output_and_nothing_else_does(mlxk: Program) -> None:
    done = mlxk("run", "demo-speech", "--audio", "clip.wav")
    assert (done.status, done.out, done.err) == (0, "Hello there. Bye.\n", "")


def test_a_table_of_segments_follows_when_the_variable_asks_for_it(mlxk: Program) -> None:
    done = mlxk("run", "demo-speech", "--audio", "clip.wav", MLXK2_AUDIO_SEGMENTS="1")
    text, _, table = done.out.partition("\n\n")
    assert text == "Hello there. Bye."
    assert table.startswith("<details>\n<summary>Audio Segments (2 segments)</summary>\n")
    assert "| 1.50s | 2.00s | Bye. |" in table
    assert table.endswith("</details>\n")


@pytest.mark.parametrize(
    ("written_as", "beginning"),
    [("srt", "1\n00:00:00,000"), ("vtt", "WEBVTT\n\n00:00"), ("text", "Hello there. Bye.\n")],
)
def test_formats(written_as: str, beginning: str, mlxk: Program) -> None:
    done = mlxk("run", "demo-speech", "--audio", "clip.wav", "--format", written_as)
    assert done.status == 0
    assert done.out.startswith(beginning)


def test_json_holds_segments_and_words_with_and_without_the_envelope(mlxk: Program) -> None:
    plain = json.loads(mlxk("run", "demo-speech", "--audio", "clip.wav", "--words", "--format", "json").out)
    envelope = json.loads(mlxk("run", "demo-speech", "--audio", "clip.wav", "--words", "--json").out)
    assert envelope["data"]["transcript"] == plain
    assert envelope["data"]["response"] == plain["text"] == SAID.text
    assert plain["duration_seconds"] == 2.5
    assert plain["segments"][0]["words"][0] == {"word": "Hello", "start": 0.0, "end": 0.5, "probability": 0.75}
    assert plain["segments"][1] == {"start": 1.5, "end": 2.0, "text": "Bye."}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("table", [False, True])
def test_on_a_terminal_segments_are_printed_as_they_come(mlxk: Program, table: bool) -> None:
    shown = Terminal()
    with contextlib.redirect_stdout(shown):
        done = mlxk("run", "demo-speech", "--audio", "clip.wav", MLXK2_AUDIO_SEGMENTS="1" if table else "")
    text, _, rest = shown.getvalue().partition("\n")
    assert (done.status, text) == (0, "Hello there. Bye.")
    assert rest.startswith("\n<details>") if table else not rest


class Interrupted(InMemorySpeechTranscriber):
    """Is interrupted after the first segment."""

    def transcribe(self, request: TranscriptionRequest) -> Generator[TranscriptEvent, None, None]:
        yield next(super().transcribe(request))
        raise KeyboardInterrupt


def test_an_interrupt_prints_what_was_heard(mlxk: Program) -> None:
    mlxk.transcriber = Interrupted(default=SAID)
    done = mlxk("run", "demo-speech", "--audio", "clip.wav")
    assert (done.status, done.out, done.err) == (130, "Hello there.\n", "run: Error: interrupted\n")
    error = json.loads(mlxk("run", "demo-speech", "--audio", "clip.wav", "--json").out)["error"]
    assert (error["type"], error["detail"]) == ("interrupted", {"response": "Hello there."})
    shown = Terminal()
    with contextlib.redirect_stdout(shown):
        assert mlxk("run", "demo-speech", "--audio", "clip.wav").status == 130
    assert shown.getvalue() == "Hello there.\n"


def test_who_spoke_is_in_json_and_how_long_it_took_is_said(mlxk: Program) -> None:
    said = attrs.evolve(SAID, segments=(Segment(" Hello there.", 0.0, 1.0, speaker="A"), Segment(" Bye.", 1.5, 2.0)))
    mlxk.transcriber = InMemorySpeechTranscriber(default=said)
    done = mlxk("run", "demo-speech", "--audio", "clip.wav", "--format", "json")
    assert json.loads(done.out)["segments"] == [
        {"start": 0.0, "end": 1.0, "text": "Hello there.", "speaker": "A"},
        {"start": 1.5, "end": 2.0, "text": "Bye."},
    ]
    done = mlxk("run", "demo-speech", "--audio", "clip.wav", "--verbose")
    assert re.match(r"\[2\.5 s of sound in \d+\.\d s\]\n", done.err)


def test_settings_reach_the_model_and_a_prompt_is_a_hint_only_when_given(mlxk: Program) -> None:
    mlxk("run", "demo-speech", "--audio", "clip.wav")
    mlxk("run", "demo-speech", "Ada", "Grace", "--audio", "clip.wav", "--language", "en", "--temperature", "0.5")
    mlxk("run", "demo-speech", "--audio", "clip.wav", "Ada Grace")
    plain, told, trailing = (request.settings for request in mlxk.transcriber.requests)
    assert (plain.hint, plain.language, plain.temperature, plain.task) == (None, None, 0.0, SpeechTask.TRANSCRIBE)
    assert (told.hint, told.language, told.temperature) == ("Ada Grace", "en", 0.5)
    assert trailing.hint == "Ada Grace"


def test_a_sample_of_a_built_in_model_is_named_by_model_and_file(mlxk: Program) -> None:
    mlxk("run", "demo-speech", "--audio", "demo-speech/hello.wav")
    (request,) = mlxk.transcriber.requests
    assert Path(request.path).is_file()
    assert request.name == "demo-speech/hello.wav"


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("--translate",), 2, "--translate requires --audio FILE."),
        (("--language", "de"), 2, "--language requires --audio FILE."),
        (("--audio", "a.wav", "--translate", "de"), 2, "--translate only supports English target ('en'); got 'de'."),
        (("--audio", "a.wav", "--translate"), 1, "does not support speech translation"),
        (("--audio", "a.wav", "--json", "--format", "srt"), 2, "--json and --format exclude each other"),
        (("--audio", "a.wav", "--top-p", "0.5"), 2, "--top-p does not apply to --audio"),
        (("--audio", "a.wav", "--system", "x"), 2, "--system does not apply to --audio"),
        (("--audio", "a.wav", "--image", "a.png"), 2, "--image does not apply to --audio"),
        (("--audio", "a.wav", "--audio", "b.wav", "hint"), 2, "Multiple audio files not supported."),
        (("--audio", "a.wav", "--temperature", "3"), 1, "temperature must be at least 0 and at most 1"),
        (("--audio", "a.wav", "--language", "3d"), 1, "language must be a code"),
    ],
)
def test_what_makes_no_sense_is_refused_by_its_flag(
    arguments: tuple[str, ...], status: int, message: str, mlxk: Program
) -> None:
    done = mlxk("run", "demo-speech", *arguments)
    assert (done.status, message in done.err + done.out) == (status, True), done
    assert mlxk.transcriber.requests == []


def test_a_model_that_only_writes_does_not_hear(mlxk: Program) -> None:
    done = mlxk("run", "demo", "--audio", "clip.wav")
    assert (done.status, "Model 'demo' does not support audio inputs" in done.err) == (1, True)


def test_a_model_that_hears_says_what_it_needs_when_it_is_asked_to_write(mlxk: Program) -> None:
    done = mlxk("run", "demo-speech", "hello")
    assert (done.status, "Give it a recording: mlxk run --audio FILE" in done.err) == (1, True)


def test_embed_is_switched_off_until_the_variable_is_set(mlxk: Program, bert: str) -> None:
    done = mlxk("embed", bert, "hello")
    assert (done.status, done.out) == (1, "")
    assert "embed requires MLXK2_ENABLE_ALPHA_FEATURES=1" in done.err


def embedded(done: Done) -> list[dict[str, Any]]:
    """Return the records that were printed, a line each."""
    assert done.status == 0, done
    return [json.loads(line) for line in done.out.splitlines()]


def test_a_text_becomes_one_record(mlxk: Program, bert: str) -> None:
    (record,) = embedded(mlxk("embed", bert, "Grüße", MLXK2_ENABLE_ALPHA_FEATURES="1"))
    assert list(record) == ["text", "embedding", "metadata"]
    assert record["text"] == "Grüße"
    assert record["metadata"] == {"model": "bert", "dimensions": 4, "content_hash": None, "device": "cpu"}


def test_letters_are_printed_as_they_are(mlxk: Program, bert: str) -> None:
    assert '"Grüße"' in mlxk("embed", bert, "Grüße", MLXK2_ENABLE_ALPHA_FEATURES="1").out


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_text_may_come_from_standard_input(
    mlxk: Program, bert: str, stdin: Callable[[bytes], None], mark: str
) -> None:
    stdin(f"{mark}Grüße\n".encode())
    (record,) = embedded(mlxk("embed", bert, "-", MLXK2_ENABLE_ALPHA_FEATURES="1"))
    assert record["text"] == "Grüße"


def test_a_text_of_standard_input_has_a_limit(mlxk: Program, bert: str, stdin: Callable[[bytes], None]) -> None:
    for more in (0, 1):
        stdin(b"x" * (4 * 2**20 + more))
        done = mlxk("embed", bert, "-", MLXK2_ENABLE_ALPHA_FEATURES="1")
        assert (done.err == "embed: Error: standard input is larger than 4 MiB\n") is bool(more)


def test_records_of_a_batch_keep_their_fields_and_their_order(
    mlxk: Program, bert: str, stdin: Callable[[bytes], None]
) -> None:
    lines = [json.dumps({"id": number, "text": f"text {number}", "tags": ["a"]}) for number in range(300)]
    stdin("\n".join([*lines[:150], "", *lines[150:]]).encode())
    records = embedded(mlxk("embed", bert, "--batch", MLXK2_ENABLE_ALPHA_FEATURES="1"))
    assert [(each["id"], each["text"], each["tags"]) for each in records] == [
        (number, f"text {number}", ["a"]) for number in range(300)
    ]
    assert len(mlxk.embedder.requests) == 2


def test_texts_of_a_batch_that_are_truncated_are_named_by_their_number(
    mlxk: Program, bert: str, stdin: Callable[[bytes], None]
) -> None:
    texts = ["word " * 600 if number in {3, 280} else "word" for number in range(300)]
    stdin("\n".join(json.dumps({"text": text}) for text in texts).encode())
    done = mlxk("embed", bert, "--batch", "--truncate", MLXK2_ENABLE_ALPHA_FEATURES="1")
    assert done.err.splitlines() == [
        f"[text {number} was truncated: the vector is of 512 of its 600 tokens]" for number in (4, 281)
    ]
    cut = [index for index, record in enumerate(embedded(done)) if "truncated" in record["metadata"]]
    assert cut == [3, 280]


def test_json_holds_all_records(mlxk: Program, bert: str, stdin: Callable[[bytes], None]) -> None:
    stdin(b'{"text": "one"}\n{"text": "two"}\n')
    done = mlxk("embed", bert, "--batch", "--json", MLXK2_ENABLE_ALPHA_FEATURES="1")
    envelope = json.loads(done.out)
    assert (envelope["status"], envelope["command"]) == ("success", "embed")
    assert [record["text"] for record in envelope["data"]["records"]] == ["one", "two"]


def test_queries_and_their_task_reach_the_model(mlxk: Program, bert: str) -> None:
    mlxk("embed", bert, "hello", "--query", "--instruct", "find", "--truncate", MLXK2_ENABLE_ALPHA_FEATURES="1")
    (request,) = mlxk.embedder.requests
    assert (request.settings.kind.value, request.settings.instruction, request.settings.truncate) == (
        "query",
        "find",
        True,
    )


@pytest.mark.parametrize("text", ["hello there", "-"])
def test_the_text_may_stand_after_the_flags(
    text: str, mlxk: Program, bert: str, stdin: Callable[[bytes], None]
) -> None:
    stdin(b"hello there\n")
    done = mlxk("embed", bert, "--query", "--instruct", "find", text, MLXK2_ENABLE_ALPHA_FEATURES="1")
    assert [record["text"] for record in embedded(done)] == ["hello there"]


@pytest.mark.parametrize(
    ("arguments", "data", "status", "message"),
    [
        ((), b"", 2, "embed requires <text> or '-' to read stdin"),
        (("",), b"", 1, "the text is empty"),
        (("-",), b"\n", 1, "the text is empty"),
        (("hello", "--batch"), b"", 2, "--batch reads standard input"),
        (("hello", "--instruct", "find"), b"", 2, "--instruct belongs to --query"),
        (("--batch",), b"\n\n", 1, "No input records found (--batch)"),
        (("--batch",), b'{"text": "a"}\n{"text": ', 1, "Malformed JSONL on line 2"),
        (("--batch",), b"[" * 50_000, 1, "Malformed JSONL on line 1: nested too deeply"),
        (("--batch",), b"[1]\n", 1, "Malformed JSONL on line 1: not an object"),
        (("--batch",), b'{"text": "a", "id": {"k": 1, "k": 2}}\n', 1, 'line 1 has the key "k" twice in one object'),
        (("--batch",), b'{"txt": "a"}\n', 1, "JSONL line 1 missing 'text' field"),
        (("--batch",), b'{"text": ""}\n', 1, "JSONL line 1 missing 'text' field"),
    ],
)
def test_what_is_wrong_with_the_input_of_embed_is_named(
    arguments: tuple[str, ...],
    data: bytes,
    status: int,
    message: str,
    mlxk: Program,
    bert: str,
    stdin: Callable[[bytes], None],
) -> None:
    stdin(data)
    done = mlxk("embed", bert, *arguments, MLXK2_ENABLE_ALPHA_FEATURES="1")
    assert (done.status, message in done.err) == (status, True), done


def test_a_model_that_writes_makes_no_vectors(mlxk: Program) -> None:
    done = mlxk("embed", "demo", "hello", MLXK2_ENABLE_ALPHA_FEATURES="1")
    assert (done.status, "'demo' is not an embedding model" in done.err) == (1, True)


def test_settings_that_are_for_text_do_not_keep_a_recording_from_being_transcribed(mlxk: Program) -> None:
    file = mlxk.home / ".config" / "mlxk" / "config.toml"
    file.parent.mkdir(parents=True)
    file.write_text(
        "[run]\nspecial_tokens_in_content = true\nsystem = 'Rhyme.'\ntemperature = 0.3\nstop = ['x']\nthinking = true\n"
        "[models.ears]\nmodel = 'demo-speech'\nmax_tokens = 3\n"
    )
    assert mlxk("run", "ears", "--audio", "clip.wav").out == "Hello there. Bye.\n"
    refused = mlxk("run", "ears", "--audio", "clip.wav", "--special-tokens-in-content")
    assert (refused.status, "--special-tokens-in-content does not apply" in refused.err) == (2, True)
