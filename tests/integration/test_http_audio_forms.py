"""What is wrong with a form that brings a recording: named by its field, before anything is heard or sent."""

import typing
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai.types.audio import TranslationCreateParams
from openai.types.audio.transcription_create_params import (
    TranscriptionCreateParamsNonStreaming,
    TranscriptionCreateParamsStreaming,
)
from serving.forms import BOUNDARY, FORM, FormPart, encoded_form, post_form, uploads_left_behind
from serving.parts import SPEECH_MODEL, Parts
from serving.running import RunningServer

from mlxk.entrypoints.http.openai.audio.request import KNOWN, UNSUPPORTED

SOUND = ("hello.wav", b"RIFF....WAVE")


@pytest.fixture
def server() -> Iterator[RunningServer]:
    with RunningServer(Parts()) as running:
        yield running


@pytest.mark.parametrize(
    ("parts", "status", "message"),
    [
        ([("model", SPEECH_MODEL)], 400, "file: is required"),
        ([("file", SOUND)], 400, "model: is required"),
        ([("file", SOUND), ("file", SOUND), ("model", SPEECH_MODEL)], 400, "only one file"),
        ([("file", ("a.wav", b"")), ("model", SPEECH_MODEL)], 400, "Empty audio file"),
        ([("file", SOUND), ("model", SPEECH_MODEL), ("response_format", "xml")], 400, "response_format"),
        ([("file", SOUND), ("model", SPEECH_MODEL), ("temperature", "warm")], 400, "temperature"),
        ([("file", SOUND), ("model", SPEECH_MODEL), ("temperature", "7")], 400, "temperature"),
        ([("file", SOUND), ("model", SPEECH_MODEL), ("stream", "perhaps")], 400, "stream"),
        ([("file", SOUND), ("model", SPEECH_MODEL), ("stream", "true"), ("response_format", "srt")], 400, "stream"),
        ([("file", SOUND), ("model", SPEECH_MODEL), ("timestamp_granularities[]", "word")], 400, "verbose_json"),
        ([("file", SOUND), ("model", SPEECH_MODEL), ("include[]", "logprobs")], 400, "include: is not supported"),
        ([("file", SOUND), ("model", SPEECH_MODEL), ("include", "[" * 5000)], 400, "include: is not supported"),
        ([("file", SOUND), ("model", SPEECH_MODEL), ("model", SPEECH_MODEL)], 400, "more than once"),
        ([("file", SOUND), ("model", SPEECH_MODEL), ("prompt", "x" * 70_000)], 413, "field"),
        ([("file", SOUND), ("model", SPEECH_MODEL), *[("x", "y")] * 70], 413, "more than 32 fields"),
    ],
)
def test_what_is_wrong_with_a_form_is_named(
    parts: list[FormPart], status: int, message: str, server: RunningServer
) -> None:
    answered, body = post_form(server, "/v1/audio/transcriptions", parts)
    assert (answered, message in body["error"]["message"]) == (status, True), body
    assert uploads_left_behind() == []


@pytest.mark.parametrize(
    ("more", "status", "param"),
    [
        ([("temperature", "7")], 400, "temperature"),
        ([("temperature", "nan")], 400, "temperature"),
        ([("language", "d$")], 400, "language"),
        ([("prompt", "x" * 5000)], 400, "prompt"),
        ([("prompt", "x" * 70_000)], 413, "prompt"),
        ([("file", SOUND)], 400, "file"),
        ([("languages[]", "en")], 400, "languages"),
        ([("keywords[]", "Ada"), ("keywords[]", "Grace")], 400, "keywords"),
        ([("include[]", "logprobs"), ("include[]", "")], 400, "include"),
    ],
)
def test_the_field_of_a_form_that_is_at_fault_is_named_for_programs(
    more: list[FormPart], status: int, param: str, server: RunningServer
) -> None:
    answered, body = post_form(server, "/v1/audio/transcriptions", [("file", SOUND), ("model", SPEECH_MODEL), *more])
    error = body["error"]
    assert (answered, error["param"]) == (status, param), body
    assert [problem["param"] for problem in error["detail"]["problems"]] == [param]
    assert error["message"].startswith(f"{param}: ")
    assert server.parts.transcriber.requests == []


def test_a_field_that_is_no_text_is_named(server: RunningServer) -> None:
    form = encoded_form([("file", SOUND), ("model", SPEECH_MODEL), ("prompt", "caf<>")]).replace(b"<>", b"\xe9")
    status, _, body = server.request("POST", "/v1/audio/transcriptions", form, {"Content-Type": FORM})
    assert (status, body["error"]["message"], body["error"]["param"]) == (400, "prompt: is not UTF-8 text", "prompt")
    assert uploads_left_behind() == []


def test_an_empty_file_is_named_by_its_field(server: RunningServer) -> None:
    _, body = post_form(server, "/v1/audio/transcriptions", [("file", ("a.wav", b"")), ("model", SPEECH_MODEL)])
    assert body["error"]["param"] == "file"


@pytest.mark.parametrize("stream", ["true", "false"])
def test_a_file_that_is_no_sound_is_refused_by_its_field_before_anything_is_sent(
    stream: str, server: RunningServer
) -> None:
    server.parts.transcriber.refuse_everything()
    parts: list[FormPart] = [("file", SOUND), ("model", SPEECH_MODEL), ("stream", stream)]
    status, body = post_form(server, "/v1/audio/transcriptions", parts)
    assert (status, body["error"]["param"]) == (400, "file")
    assert uploads_left_behind() == []


def test_no_field_of_a_form_that_openai_documents_is_forgotten() -> None:
    kinds = (TranscriptionCreateParamsNonStreaming, TranscriptionCreateParamsStreaming, TranslationCreateParams)
    documented = {name for kind in kinds for name in typing.get_type_hints(kind)}
    assert documented == KNOWN | set(UNSUPPORTED)


def test_the_media_type_of_a_form_may_be_written_in_any_case(server: RunningServer) -> None:
    part = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="model"\r\n\r\n{SPEECH_MODEL}\r\n--{BOUNDARY}--\r\n'
    headers = {"Content-Type": f"Multipart/Form-Data; Boundary={BOUNDARY}"}
    status, _, body = server.request("POST", "/v1/audio/transcriptions", part.encode(), headers)
    assert (status, body["error"]["param"]) == (400, "file")


def test_a_form_without_a_boundary_is_told_so(server: RunningServer) -> None:
    headers = {"Content-Type": "multipart/form-data"}
    status, _, body = server.request("POST", "/v1/audio/transcriptions", b"x", headers)
    assert (status, "boundary" in body["error"]["message"]) == (400, True)


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({"Content-Type": "application/json"}, b"{}", 415),
        ({"Content-Type": f"multipart/form-data-x; boundary={BOUNDARY}"}, b"x", 415),
        ({"Content-Type": "multipart/form-data"}, b"x", 400),
        ({"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}, b"--b0und", 400),
        ({"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}, b"", 400),
    ],
)
def test_a_body_that_is_no_form_is_refused(
    headers: dict[str, str], body: bytes, status: int, server: RunningServer
) -> None:
    answered, _, document = server.request("POST", "/v1/audio/transcriptions", body, headers)
    assert (answered, document["status"]) == (status, "error")
    assert uploads_left_behind() == []


SPOKEN = {"text": "Hello there. How are you?", "usage": {"type": "duration", "seconds": 3.0}}
HELLO = ("hello.flac", (Path(__file__).parents[1] / "sounds" / "hello.flac").read_bytes())


@pytest.mark.parametrize(
    "fields",
    [
        [("timestamp_granularities[]", "word"), ("timestamp_granularities[]", "segment")],
        [("timestamp_granularities", "word"), ("timestamp_granularities", "segment")],
        [("timestamp_granularities[0]", "word"), ("timestamp_granularities[1]", "segment")],
        [("timestamp_granularities", "word,segment")],
        [("timestamp_granularities[]", "word, segment")],
        [("timestamp_granularities", '["word", "segment"]')],
        [("timestamp_granularities[]", '["word"]'), ("timestamp_granularities[]", "Segment")],
    ],
    ids=lambda fields: "&".join(f"{name}={value}" for name, value in fields),
)
def test_an_array_may_be_spelt_as_clients_do(fields: list[FormPart], server: RunningServer) -> None:
    form = [("file", HELLO), ("model", SPEECH_MODEL), ("response_format", "verbose_json"), *fields]
    status, body = post_form(server, "/v1/audio/transcriptions", form)
    assert (status, "words" in body, "segments" in body) == (200, True, True), body


@pytest.mark.parametrize("value", ["word,sentence", '["word", "x"]', "[word]", '{"a": 1}', "7"])
def test_an_entry_of_an_array_that_is_not_known_is_named(value: str, server: RunningServer) -> None:
    form = [("file", HELLO), ("model", SPEECH_MODEL), ("response_format", "verbose_json")]
    status, body = post_form(server, "/v1/audio/transcriptions", [*form, ("timestamp_granularities", value)])
    assert (status, body["error"]["param"]) == (400, "timestamp_granularities")


@pytest.mark.parametrize("value", ["", " ", "null", "undefined", "None", "[]"])
@pytest.mark.parametrize(
    "name",
    ["language", "temperature", "response_format", "stream", "timestamp_granularities[]", "include[]", "languages",
     "known_speaker_names[]", "chunking_strategy", "prompt"],
)  # fmt: skip
def test_a_field_of_a_form_that_asks_for_nothing_counts_as_absent(name: str, value: str, server: RunningServer) -> None:
    parts = [("file", HELLO), ("model", SPEECH_MODEL), (name, value)]
    status, body = post_form(server, "/v1/audio/transcriptions", parts)
    assert (status, body) == (200, SPOKEN)


@pytest.mark.parametrize(
    ("name", "value"),
    [("language", "auto"), ("language", "AUTO"), ("response_format", "JSON"), ("stream", "no"), ("stream", "False")],
)
def test_common_spellings_of_values_are_understood(name: str, value: str, server: RunningServer) -> None:
    parts = [("file", HELLO), ("model", SPEECH_MODEL), (name, value)]
    assert post_form(server, "/v1/audio/transcriptions", parts)[1] == SPOKEN
