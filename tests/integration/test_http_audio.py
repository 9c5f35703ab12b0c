"""Speech and vectors over HTTP: the OpenAI SDK, every format, every refusal, and nothing left behind."""

import base64
import json
import struct
import threading
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from serving.forms import BOUNDARY, FormPart, post_form, uploads_left_behind
from serving.parts import (
    CHAT_MODEL,
    EMBEDDING_MODEL,
    ENGLISH_SPEECH_MODEL,
    SPEECH_MODEL,
    SPOKEN,
    Parts,
)
from serving.running import RunningServer, eventually

from mlxk.domain.errors import ValidationError
from mlxk.domain.transcription import Segment, SpeechTask, Transcript
from mlxk.entrypoints.http.requests.media import MAX_UPLOAD_BYTES
from mlxk.entrypoints.http.server.server import ServerLimits
from mlxk.entrypoints.settings import ServerSettings

pytestmark = pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # the SDK's word on translations

SOUND = ("hello.wav", b"RIFF....WAVE")


@pytest.fixture
def server() -> Iterator[RunningServer]:
    with RunningServer(Parts()) as running:
        yield running


@pytest.fixture
def sdk(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
        yield client


@pytest.mark.parametrize("model", [CHAT_MODEL, EMBEDDING_MODEL])
def test_a_page_that_was_refused_a_transcription_can_tell_that_a_chat_is_the_way(
    model: str, sdk: openai.OpenAI
) -> None:
    with pytest.raises(openai.UnprocessableEntityError) as refusal:
        sdk.audio.transcriptions.create(model=model, file=SOUND, response_format="json", temperature=0)
    message = refusal.value.body["message"]  # type: ignore[index]
    assert "not a" in message
    assert "transcription" in message
    assert refusal.value.response.headers["X-Request-ID"]


def test_json_and_text(sdk: openai.OpenAI) -> None:
    answer = sdk.audio.transcriptions.create(model=SPEECH_MODEL, file=SOUND)
    assert answer.text == SPOKEN.text
    assert answer.usage is not None
    assert answer.usage.type == "duration"
    assert answer.usage.seconds == SPOKEN.seconds
    assert sdk.audio.transcriptions.create(model=SPEECH_MODEL, file=SOUND, response_format="text") == f"{SPOKEN.text}\n"


def test_verbose_json_has_duration_language_segments_and_words(sdk: openai.OpenAI) -> None:
    answer = sdk.audio.transcriptions.create(
        model=SPEECH_MODEL,
        file=SOUND,
        response_format="verbose_json",
        timestamp_granularities=["segment", "word"],
    )
    assert (answer.task, answer.duration, answer.language) == ("transcribe", 3.0, "en")  # type: ignore[attr-defined]
    assert answer.segments is not None
    assert [(each.id, each.start, each.end) for each in answer.segments] == [(0, 0.0, 1.25), (1, 1.5, 2.75)]
    assert all(isinstance(each.avg_logprob, float) and each.tokens == [] for each in answer.segments)
    assert answer.words is not None
    assert [each.word for each in answer.words] == ["Hello", "there.", "How", "are you?"]


def test_only_what_is_asked_for_is_timed(sdk: openai.OpenAI) -> None:
    words = sdk.audio.transcriptions.create(
        model=SPEECH_MODEL, file=SOUND, response_format="verbose_json", timestamp_granularities=["word"]
    )
    assert words.segments is None
    assert words.words is not None
    usual = sdk.audio.transcriptions.create(model=SPEECH_MODEL, file=SOUND, response_format="verbose_json")
    assert usual.words is None
    assert usual.segments is not None


def test_a_model_that_times_no_words_is_not_asked_for_them(server: RunningServer) -> None:
    server.parts.transcriber.hear(Transcript("Hello.", 1.0, "en", (Segment("Hello.", 0.0, 1.0),)))
    fields: list[FormPart] = [("file", SOUND), ("model", SPEECH_MODEL), ("response_format", "verbose_json")]
    status, body = post_form(server, "/v1/audio/transcriptions", [*fields, ("timestamp_granularities[]", "word")])
    assert (status, body["error"]["param"]) == (422, "timestamp_granularities")
    assert body["error"]["message"] == f"timestamp_granularities: model '{SPEECH_MODEL}' times no words"
    assert post_form(server, "/v1/audio/transcriptions", fields)[0] == 200


def test_subtitles(sdk: openai.OpenAI) -> None:
    srt = sdk.audio.transcriptions.create(model=SPEECH_MODEL, file=SOUND, response_format="srt")
    assert srt.startswith("1\n00:00:00,000 --> 00:00:01,250\nHello there.\n\n2\n")
    vtt = sdk.audio.transcriptions.create(model=SPEECH_MODEL, file=SOUND, response_format="vtt")
    assert vtt.startswith("WEBVTT\n\n00:00:00.000 --> ")


def test_a_stream_tells_what_is_heard_and_ends_with_all_of_it(sdk: openai.OpenAI) -> None:
    events = list(sdk.audio.transcriptions.create(model=SPEECH_MODEL, file=SOUND, stream=True))
    assert "".join(event.delta for event in events if event.type == "transcript.text.delta") == SPOKEN.text
    assert events[-1].type == "transcript.text.done"
    assert events[-1].text == SPOKEN.text


def test_translation_asks_for_english(server: RunningServer, sdk: openai.OpenAI) -> None:
    answer = sdk.audio.translations.create(model=SPEECH_MODEL, file=SOUND, prompt="names", temperature=0.2)
    assert answer.text == SPOKEN.text
    (request,) = server.parts.transcriber.requests
    settings = request.settings
    assert (settings.task, settings.hint, settings.temperature) == (SpeechTask.TRANSLATE, "names", 0.2)
    verbose = sdk.audio.translations.create(model=SPEECH_MODEL, file=SOUND, response_format="verbose_json")
    assert verbose.task == "translate"  # type: ignore[attr-defined]


def test_settings_reach_the_model_and_nothing_is_invented(server: RunningServer, sdk: openai.OpenAI) -> None:
    sdk.audio.transcriptions.create(model=SPEECH_MODEL, file=SOUND)
    sdk.audio.transcriptions.create(model=SPEECH_MODEL, file=SOUND, language="de", prompt="Ada", temperature=0.5)
    plain, told = (request.settings for request in server.parts.transcriber.requests)
    assert (plain.language, plain.hint, plain.temperature, plain.words) == (None, None, 0.0, False)
    assert (told.language, told.hint, told.temperature) == ("de", "Ada", 0.5)


def test_a_model_that_only_writes_is_refused_by_its_name(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.UnprocessableEntityError, match=f"'{CHAT_MODEL}' does not support audio"):
        sdk.audio.transcriptions.create(model=CHAT_MODEL, file=SOUND)


def test_a_model_for_english_only_does_not_translate(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.UnprocessableEntityError, match="audio-translate-en"):
        sdk.audio.translations.create(model=ENGLISH_SPEECH_MODEL, file=SOUND)


def test_an_unknown_model_is_not_found(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        sdk.audio.transcriptions.create(model="org/nowhere", file=SOUND)
    assert caught.value.param == "model"


def test_a_file_may_be_larger_than_other_bodies_but_not_without_limit() -> None:
    parts = Parts(settings=ServerSettings(max_body_mib=1))
    with RunningServer(parts, ServerLimits(max_body_bytes=MAX_UPLOAD_BYTES)) as server:
        large = ("large.wav", bytes(2 * 2**20))
        assert post_form(server, "/v1/audio/transcriptions", [("file", large), ("model", SPEECH_MODEL)])[0] == 200
        too_large = ("huge.wav", bytes(50_000_001))
        status, body = post_form(server, "/v1/audio/transcriptions", [("file", too_large), ("model", SPEECH_MODEL)])
        assert (status, body["error"]["type"]) == (413, "payload_too_large")
        padding = json.dumps({"model": CHAT_MODEL, "prompt": "x" * 2 * 2**20}).encode()
        assert server.request("POST", "/v1/completions", padding, {"Content-Type": "application/json"})[0] == 413
    assert uploads_left_behind() == []


def test_unknown_fields_are_reported(server: RunningServer) -> None:
    lines = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="model"\r\n\r\n{SPEECH_MODEL}\r\n'
    lines += f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="mood"\r\n\r\ngood\r\n'
    lines += (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\nRIFF\r\n--{BOUNDARY}--'
    )
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    status, answered, _ = server.request("POST", "/v1/audio/transcriptions", lines.encode(), headers)
    assert (status, answered["x-mlxk-ignored-fields"]) == (200, "mood")


def test_a_client_that_goes_away_ends_the_work_and_leaves_no_file(server: RunningServer) -> None:
    body = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\nRIFF\r\n'
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="model"\r\n\r\n{SPEECH_MODEL}\r\n'
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="stream"\r\n\r\ntrue\r\n--{BOUNDARY}--\r\n'
    ).encode()
    connection = server.connect()
    head = f"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    connection.sendall(f"{head}Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n".encode() + body)
    assert connection.recv(12) == b"HTTP/1.1 200"
    connection.close()
    assert eventually(lambda: server.parts.transcriber.requests and not uploads_left_behind())
    assert eventually(lambda: server.parts.application._limit.admitted == 0)


@pytest.mark.parametrize("stream", ["true", "false"])
def test_a_recording_that_cannot_be_transcribed_releases_its_slot_and_its_file(
    server: RunningServer, stream: str
) -> None:
    server.parts.transcriber.refuse_everything()
    fields = [("file", SOUND), ("model", SPEECH_MODEL), ("stream", stream)]
    assert post_form(server, "/v1/audio/transcriptions", fields)[0] == 400
    assert server.parts.application._limit.admitted == 0
    assert uploads_left_behind() == []


def test_a_recording_for_a_model_that_does_not_fit_releases_its_slot_and_its_file() -> None:
    with RunningServer(Parts(settings=ServerSettings(strict_memory=True), budget=1)) as server:
        status, body = post_form(server, "/v1/audio/transcriptions", [("file", SOUND), ("model", SPEECH_MODEL)])
        assert (status, body["error"]["type"]) == (507, "insufficient_memory")
        assert server.parts.application._limit.admitted == 0
    assert uploads_left_behind() == []


def test_more_recordings_than_there_is_room_for_are_sent_away(server: RunningServer) -> None:
    admission = server.parts.application._limit
    leave = admission.enter(admission.capacity)
    try:
        status, body = post_form(server, "/v1/audio/transcriptions", [("file", SOUND), ("model", SPEECH_MODEL)])
    finally:
        leave()
    assert (status, body["error"]["type"]) == (429, "queue_full")
    assert uploads_left_behind() == []


def test_many_recordings_at_once_are_all_heard(server: RunningServer) -> None:
    found: list[int] = []

    def ask() -> None:
        found.append(post_form(server, "/v1/audio/transcriptions", [("file", SOUND), ("model", SPEECH_MODEL)])[0])

    threads = [threading.Thread(target=ask) for _ in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [200] * 24
    assert uploads_left_behind() == []


def test_vectors_as_numbers_and_in_base64_are_the_same(server: RunningServer, sdk: openai.OpenAI) -> None:
    numbers = sdk.embeddings.create(model=EMBEDDING_MODEL, input=["one", "two"], encoding_format="float")
    decoded = sdk.embeddings.create(model=EMBEDDING_MODEL, input=["one", "two"])
    for mine, other in zip(numbers.data, decoded.data, strict=True):
        assert mine.embedding == pytest.approx(other.embedding, rel=1e-6)
        assert mine.index == other.index
    status, _, raw = server.post(
        "/v1/embeddings", {"model": EMBEDDING_MODEL, "input": "one", "encoding_format": "base64"}
    )
    data = base64.b64decode(raw["data"][0]["embedding"])
    assert list(struct.unpack(f"<{len(data) // 4}f", data)) == pytest.approx(numbers.data[0].embedding, rel=1e-6)
    assert status == 200


@pytest.mark.parametrize(
    ("foreign", "own"),
    [
        ({"output_dimension": 4}, {"dimensions": 4}),
        ({"truncation": True}, {"truncate": True}),
        ({"truncate": "END"}, {"truncate": True}),
        ({"truncate": "none"}, {"truncate": False}),
        ({"embedding_type": "base64"}, {"encoding_format": "base64"}),
        ({"task": "retrieval.query"}, {"input_type": "query"}),
        ({"output_dtype": "float"}, {}),
    ],
    ids=str,
)
def test_the_names_of_other_servers_mean_the_same(foreign: Any, own: Any, server: RunningServer) -> None:
    body = {"model": EMBEDDING_MODEL, "input": ["two", "texts"]}
    status, headers, found = server.post("/v1/embeddings", {**body, **foreign})
    assert (status, found) == (200, server.post("/v1/embeddings", {**body, **own})[2])
    assert "x-mlxk-ignored-fields" not in headers


@pytest.mark.parametrize(
    ("field", "value"),
    [("embedding_type", "binary"), ("output_dtype", "int8"), ("output_dimension", 0), ("truncate", "START")],
)
def test_what_the_vectors_would_not_be_is_refused_by_the_name_that_was_sent(
    field: str, value: Any, server: RunningServer
) -> None:
    status, _, found = server.post("/v1/embeddings", {"model": EMBEDDING_MODEL, "input": "two", field: value})
    assert (status, found["error"]["param"]) == (400, field)


def test_vectors_say_what_they_are_of(server: RunningServer, sdk: openai.OpenAI) -> None:
    answer = sdk.embeddings.create(model="encoder", input="one two three", user="ada")
    assert (answer.model, answer.object) == (EMBEDDING_MODEL, "list")
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (3, 3)
    _, _, raw = server.post("/v1/embeddings", {"model": "encoder", "input": "one"})
    assert raw["system_fingerprint"] == "aaaaaaaa.cpu"


@pytest.mark.parametrize("inputs", ["word " * 600, ["one", "word " * 600], [[1], [2] * 600]])
def test_an_input_that_is_truncated_is_named_in_the_header_and_the_body(server: RunningServer, inputs: Any) -> None:
    body = {"model": EMBEDDING_MODEL, "input": inputs}
    status, headers, answer = server.post("/v1/embeddings", {**body, "truncate": True})
    index = 0 if isinstance(inputs, str) else 1
    assert (status, headers["x-mlxk-adaptations"]) == (200, "inputs-truncated")
    assert answer["truncated"] == [{"index": index, "tokens": 600, "kept": 512}]
    status, headers, answer = server.post(
        "/v1/embeddings", {"model": EMBEDDING_MODEL, "input": "one", "truncate": True}
    )
    assert (status, "x-mlxk-adaptations" in headers, "truncated" in answer) == (200, False, False)
    for refuse in ({}, {"truncate": False}, {"truncate": None}):
        status, _, answer = server.post("/v1/embeddings", {**body, **refuse})
        assert (status, answer["error"]["type"]) == (400, "context_length_exceeded")
        assert "600 tokens" in answer["error"]["message"]
        assert '"truncate": true' in answer["error"]["hint"]


def test_tokens_dimensions_and_queries_reach_the_model(server: RunningServer, sdk: openai.OpenAI) -> None:
    sdk.embeddings.create(model=EMBEDDING_MODEL, input=[1, 2, 3], dimensions=4)
    sdk.embeddings.create(
        model=EMBEDDING_MODEL,
        input=[[1], [2, 3]],
        extra_body={"input_type": "query", "instruct": "find", "truncate": True},
    )
    one, two = server.parts.embedder.requests
    assert (one.inputs, one.settings.dimensions) == (((1, 2, 3),), 4)
    assert (two.inputs, two.settings.kind.value) == (((1,), (2, 3)), "query")
    assert (two.settings.instruction, two.settings.truncate) == ("find", True)


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"input": "one"}, 400, "model"),
        ({"model": EMBEDDING_MODEL}, 400, "input"),
        ({"model": EMBEDDING_MODEL, "input": ""}, 400, "input"),
        ({"model": EMBEDDING_MODEL, "input": []}, 400, "input"),
        ({"model": EMBEDDING_MODEL, "input": ["a", ""]}, 400, "input[1]"),
        ({"model": EMBEDDING_MODEL, "input": ["a", 1]}, 400, "input[1]"),
        ({"model": EMBEDDING_MODEL, "input": {"words": "a"}}, 400, "input"),
        ({"model": EMBEDDING_MODEL, "input": [True]}, 400, "input"),
        ({"model": EMBEDDING_MODEL, "input": "a", "encoding_format": "hex"}, 400, "encoding_format"),
        ({"model": EMBEDDING_MODEL, "input": "a", "input_type": "song"}, 400, "input_type"),
        ({"model": EMBEDDING_MODEL, "input": "a", "instruct": "find"}, 400, "instruct"),
        ({"model": EMBEDDING_MODEL, "input": "a", "dimensions": 0}, 400, "dimensions"),
        ({"model": CHAT_MODEL, "input": "a"}, 422, "model"),
        ({"model": "org/nowhere", "input": "a"}, 404, "model"),
        ({"model": EMBEDDING_MODEL, "input": "word " * 600}, 400, "input"),
    ],
)
def test_what_is_wrong_with_a_request_for_vectors_is_named(
    body: dict[str, object], status: int, param: str | None, server: RunningServer
) -> None:
    answered, _, document = server.post("/v1/embeddings", body)
    assert (answered, document["error"]["param"]) == (status, param), document


def test_models_of_every_kind_are_listed_with_what_they_can_do(sdk: openai.OpenAI) -> None:
    listed = {model.id: model.capabilities for model in sdk.models.list()}  # type: ignore[attr-defined]
    assert listed[SPEECH_MODEL] == ["audio", "audio-translate-en"]
    assert listed[ENGLISH_SPEECH_MODEL] == ["audio"]
    assert listed[EMBEDDING_MODEL] == ["embeddings"]


def test_text_is_not_asked_of_models_that_do_not_write_it(sdk: openai.OpenAI) -> None:
    for model in (SPEECH_MODEL, EMBEDDING_MODEL):
        with pytest.raises(openai.UnprocessableEntityError, match="does not generate text"):
            sdk.completions.create(model=model, prompt="hello")


def test_vectors_may_come_from_another_server() -> None:
    with RunningServer(Parts()) as backend:
        settings = ServerSettings(embed_backend=f"{backend.url}/v1")
        with RunningServer(Parts(settings=settings)) as front:
            body = {"model": EMBEDDING_MODEL, "input": "one two"}
            assert front.post("/v1/embeddings", body)[2] == backend.post("/v1/embeddings", body)[2]
            status, _, refused = front.post("/v1/embeddings", {"model": EMBEDDING_MODEL, "input": ""})
            assert (status, refused["error"]["param"]) == (400, "input")
            assert front.parts.embedder.requests == []
    with RunningServer(Parts(settings=settings)) as alone:
        status, _, gone = alone.post("/v1/embeddings", body)
    assert (status, gone["error"]["type"], gone["error"]["retryable"]) == (502, "network_error", True)


def test_a_server_for_one_model_answers_with_it_whatever_is_named() -> None:
    with RunningServer(Parts(settings=ServerSettings(embed_model=EMBEDDING_MODEL))) as server:
        status, _, answer = server.post("/v1/embeddings", {"model": "text-embedding-3-small", "input": "one"})
    assert (status, answer["model"]) == (200, EMBEDDING_MODEL)


@pytest.mark.parametrize("address", ["localhost:8001", "ftp://host", "http://", "http://host:port"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ValidationError, match="--embed-backend must be an http"):
        ServerSettings(embed_backend=address).validate()
