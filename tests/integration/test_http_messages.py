"""The Messages API on a socket: Anthropic's SDK, errors in its words, silence, disconnects, images, counts."""

import base64
import json
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import anthropic
import pytest
from doubles.text_generator import InMemoryTextGenerator, Token
from models.pictures import as_png, noise
from serving.messages import events, put_together
from serving.parts import CHAT_MODEL, EYE, SPEECH_MODEL, VISION, Parts
from serving.running import RunningServer, eventually, read_all

from mlxk.domain.errors import ContextLengthError, ExecutionError, MlxkError, all_error_types
from mlxk.domain.generation.conversation import Conversation, Role
from mlxk.domain.generation.media import DecodedImage
from mlxk.domain.generation.request import GenerationRequest
from mlxk.entrypoints.http.anthropic.renderer import ERROR_STATUSES
from mlxk.entrypoints.http.errors import HTTP_STATUS, RETRY_SECONDS
from mlxk.entrypoints.settings import ServerSettings

PATH = "/v1/messages"
COUNT_PATH = "/v1/messages/count_tokens"
MESSAGES: list[Any] = [{"role": "user", "content": "one two three"}]
BODY = {"model": CHAT_MODEL, "max_tokens": 100, "messages": MESSAGES}
PNG = [base64.b64encode(as_png(noise(seed, 4, 4))).decode() for seed in range(7)]


@pytest.fixture
def server() -> Iterator[RunningServer]:
    """Run a server that echoes."""
    with RunningServer(Parts(models={EYE: VISION})) as running:
        yield running


def scripted(tokens: Sequence[Token], step_seconds: float = 0.0, **settings: Any) -> RunningServer:
    """Return a server whose model says these tokens; its streams bear little silence."""
    generator = InMemoryTextGenerator(lambda _: tokens, step_seconds)
    return RunningServer(Parts(generator, ServerSettings(**settings), keep_alive_seconds=0.05))


def client(server: RunningServer, key: str = "any", retries: int = 0) -> anthropic.Anthropic:
    """Return the SDK's client."""
    return anthropic.Anthropic(base_url=server.url, api_key=key, max_retries=retries)


def test_the_sdk_asks_streams_and_counts(server: RunningServer) -> None:
    with client(server) as sdk:
        message = sdk.messages.create(model=CHAT_MODEL, max_tokens=100, messages=MESSAGES)
        assert [block.type for block in message.content] == ["text"]
        assert (message.content[0].text, message.stop_reason) == ("one two three", "end_turn")  # type: ignore[union-attr]
        assert (message.usage.input_tokens, message.usage.output_tokens) == (3, 3)
        assert message._request_id
        with sdk.messages.stream(model=CHAT_MODEL, max_tokens=100, messages=MESSAGES) as stream:
            assert "".join(stream.text_stream) == "one two three"
            final = stream.get_final_message()
        assert (final.usage, final.stop_reason) == (message.usage, message.stop_reason)
        old = sdk.messages.create(model=CHAT_MODEL, max_tokens=2, messages=MESSAGES, extra_body={"temperature": 0.5})
        assert old.stop_reason == "max_tokens"
        beta = sdk.beta.messages.create(model=CHAT_MODEL, max_tokens=100, messages=MESSAGES, betas=["some-2026-01-01"])
        assert beta.content[0].type == "text"
        assert sdk.messages.count_tokens(model=CHAT_MODEL, messages=MESSAGES).input_tokens > 0


def test_both_headers_hold_a_key() -> None:
    with RunningServer(Parts(settings=ServerSettings(api_keys=("right",)))) as server:
        for headers in ({"x-api-key": "right"}, {"Authorization": "Bearer right"}):
            assert server.post(PATH, BODY, **headers)[0] == 200
        for headers in ({}, {"x-api-key": "wrong"}, {"Authorization": "Bearer wrong"}):
            for path in (PATH, COUNT_PATH):
                status, kept, answer = server.post(path, BODY, **headers)
                assert (status, answer["error"]["type"]) == (401, "authentication_error")
                assert kept["request-id"] == answer["request_id"]
        with client(server, "wrong") as sdk, pytest.raises(anthropic.AuthenticationError):
            sdk.messages.create(model=CHAT_MODEL, max_tokens=1, messages=MESSAGES)


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status", "kind"),
    [
        ("POST", PATH, b"", {}, 400, "invalid_request_error"),
        ("POST", PATH, b"{", {}, 400, "invalid_request_error"),
        ("POST", PATH, b"[]", {}, 400, "invalid_request_error"),
        ("POST", PATH, b'{"model": 5}', {}, 400, "invalid_request_error"),
        ("POST", COUNT_PATH, b"{}", {}, 400, "invalid_request_error"),
        ("POST", PATH, json.dumps({**BODY, "model": "no/such"}).encode(), {}, 404, "not_found_error"),
        ("POST", PATH, json.dumps(BODY).encode(), {"Origin": "https://evil.example"}, 403, "permission_error"),
        ("POST", PATH, json.dumps(BODY).encode(), {"Host": "evil.example"}, 403, "permission_error"),
        ("POST", PATH, b"x", {"Content-Type": "multipart/form-data"}, 415, "invalid_request_error"),
        ("POST", PATH, b" " * (2**20 + 1), {}, 413, "request_too_large"),
        ("POST", PATH, b'{"a":' * 70 + b"1" + b"}" * 70, {}, 413, "request_too_large"),
        ("GET", PATH, None, {}, 405, "invalid_request_error"),
        ("DELETE", COUNT_PATH, None, {}, 405, "invalid_request_error"),
        ("POST", f"{PATH}/batches", b"{}", {}, 404, "not_found_error"),
        ("GET", f"{PATH}/batches/x", None, {}, 404, "not_found_error"),
        ("POST", f"{PATH}?beta=true", b"{}", {}, 400, "invalid_request_error"),
    ],
)
def test_every_error_has_the_shape_of_this_api(
    method: str, path: str, body: bytes | None, headers: dict[str, str], status: int, kind: str
) -> None:
    with RunningServer(Parts(settings=ServerSettings(max_body_mib=1))) as server:
        found, kept, answer = server.request(method, path, body, {"Content-Type": "application/json", **headers})
    assert (found, answer["type"], answer["error"]["type"]) == (status, "error", kind)
    assert set(answer) == {"type", "error", "request_id"}
    assert set(answer["error"]) == {"type", "message"}
    assert kept["request-id"] == kept["x-request-id"] == answer["request_id"]


def test_a_version_header_decides_where_a_path_does_not(server: RunningServer) -> None:
    connection = read_all(server.raw("/v1/nothing", extra="anthropic-version: 2023-06-01\r\nConnection: close\r\n"))
    assert json.loads(connection.partition(b"\r\n\r\n")[2])["error"]["type"] == "not_found_error"
    assert server.get("/v1/nothing")[2]["error"]["code"] == "not_found"
    version = {"anthropic-version": "2023-06-01"}
    assert server.post("/v1/chat/completions", {}, **version)[2]["error"]["code"] == "validation_error"


@pytest.mark.parametrize("kind", all_error_types(), ids=[kind.code for kind in all_error_types()])
def test_every_error_class_in_every_way(kind: type[MlxkError]) -> None:
    """Refused before anything is sent, failed in a whole answer, and failed in a stream."""

    def refuse(request: GenerationRequest) -> Sequence[Token]:
        if request.settings.stop:
            return ("some", kind("It failed.", hint="Do this next."))
        raise kind("It failed.", hint="Do this next.")

    expected = ERROR_STATUSES.get(kind.code, HTTP_STATUS[kind.code])
    with RunningServer(Parts(InMemoryTextGenerator(refuse))) as server:
        answers = []
        for fields in ({}, {"stream": True}, {"stop_sequences": ["x"]}):
            data = read_all(server.raw(PATH, {**BODY, **fields}, extra="Connection: close\r\n"))
            head, _, body = data.partition(b"\r\n\r\n")
            assert int(head.split()[1]) == expected
            assert (b"retry-after" in head.lower()) == (kind.code in RETRY_SECONDS)
            answers.append(json.loads(body))
        streamed = read_all(server.raw(PATH, {**BODY, "stream": True, "stop_sequences": ["x"]}))
        answers.append(events(streamed)[-1])
    for answer in answers:
        assert answer["type"] == "error"
        assert answer["error"]["message"] == "It failed. Do this next."
        assert answer["error"]["type"] == answers[0]["error"]["type"]
    if expected < 500:
        assert answers[0]["error"]["type"] not in {"api_error", "overloaded_error"}


def test_a_full_queue_is_an_overload_that_the_sdk_waits_for() -> None:
    with scripted((" word",) * 100_000, 0.002, max_streams=1, max_queue=0) as server:
        first = server.raw(PATH, {**BODY, "max_tokens": 90_000, "stream": True})
        assert eventually(lambda: server.parts.generator.state(0.1).running == 1)
        status, headers, answer = server.post(PATH, BODY)
        assert (status, answer["error"]["type"], headers["retry-after"]) == (529, "overloaded_error", "1")
        with client(server) as sdk, pytest.raises(anthropic._exceptions.OverloadedError):
            sdk.messages.create(model=CHAT_MODEL, max_tokens=1, messages=MESSAGES)
        threading.Timer(0.3, first.close).start()
        with client(server, retries=5) as sdk:
            assert sdk.messages.create(model=CHAT_MODEL, max_tokens=3, messages=MESSAGES).stop_reason == "max_tokens"


def test_a_count_waits_for_no_answer_and_asks_no_engine() -> None:
    with scripted((" word",) * 100_000, 0.002, max_streams=1, max_queue=0) as server:
        first = server.raw(PATH, {**BODY, "max_tokens": 90_000, "stream": True})
        assert eventually(lambda: server.parts.generator.state(0.1).running == 1)
        for _ in range(3):
            status, _, answer = server.post(f"{COUNT_PATH}?beta=true", {**BODY, "tools": []})
            assert (status, answer["input_tokens"] > 0) == (200, True)
        assert len(server.parts.generator.requests) == 1
        first.close()


def test_a_failure_in_a_stream_is_the_sdks_own_error() -> None:
    with (
        scripted((" one", " two", ExecutionError("it broke"))) as server,
        client(server) as sdk,
        pytest.raises(anthropic.APIStatusError, match="it broke"),
        sdk.messages.stream(model=CHAT_MODEL, max_tokens=9, messages=MESSAGES) as stream,
    ):
        list(stream)


def test_silence_is_filled_with_pings() -> None:
    with scripted(("one", " two"), 0.3) as server:
        found = events(read_all(server.raw(PATH, {**BODY, "stream": True})))
    kinds = [event["type"] for event in found]
    assert kinds[:2] == ["message_start", "ping"]
    assert kinds.count("ping") > 1
    assert put_together(found)["content"] == [{"type": "text", "text": "one two"}]


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_ends_the_answer(stream: bool) -> None:
    with scripted((" word",) * 100_000, 0.002) as server:
        connection = server.raw(PATH, {**BODY, "max_tokens": 90_000, "stream": stream})
        assert eventually(lambda: server.parts.generator.state(0.1).running == 1)
        connection.close()
        assert eventually(lambda: server.parts.generator.state(0.1).running == 0)


@pytest.mark.parametrize(
    ("detail", "words"),
    [
        ({"prompt_tokens": 5000, "context_length": 4096}, "prompt is too long: 5000 tokens > 4096 maximum"),
        ({"prompt_tokens": 4096, "context_length": 4096}, "prompt is too long: 4096 tokens > 4095 maximum"),
        (
            {"counted_tokens": 9000, "counted_characters": 9, "context_length": 4096},
            "prompt is too long: 9000 tokens > 4096 maximum",
        ),
    ],
)
def test_a_prompt_that_is_too_long_has_its_own_words(detail: dict[str, int], words: str) -> None:
    def refuse(request: GenerationRequest) -> Sequence[Token]:
        raise ContextLengthError("Too long.", hint="Shorten it.", detail=detail)

    with RunningServer(Parts(InMemoryTextGenerator(refuse))) as server:
        status, _, answer = server.post(PATH, BODY)
    assert (status, answer["error"]) == (400, {"type": "invalid_request_error", "message": words})


def test_a_model_that_only_listens_is_refused_for_what_it_lacks(server: RunningServer) -> None:
    status, _, answer = server.post(PATH, {**BODY, "model": SPEECH_MODEL})
    assert (status, answer["error"]["type"]) == (400, "invalid_request_error")
    assert "only transcribes" in answer["error"]["message"]


def image(data: str, kind: str = "image/png") -> dict[str, Any]:
    """Return an image."""
    return {"type": "image", "source": {"type": "base64", "media_type": kind, "data": data}}


def seen(server: RunningServer, model: str, *messages: Any) -> tuple[list[tuple[Role, list[Any]]], dict[str, str]]:
    """Ask; return roles and parts of the messages that reach the engine, and the headers of the answer."""
    server.parts.generator.requests.clear()
    status, headers, answer = server.post(PATH, {**BODY, "model": model, "messages": [*messages]})
    assert status == 200, answer
    (request,) = server.parts.generator.requests
    assert isinstance(request.prompt, Conversation)
    found = []
    for message in request.prompt.messages:
        parts = message.parts or (message.content,)
        found.append((message.role, ["image" if isinstance(part, DecodedImage) else part for part in parts]))
    return found, headers


def result_of(*content: Any) -> list[Any]:
    """Return a conversation that ends with the result of a call."""
    called = {"type": "tool_use", "id": "toolu_1", "name": "Read", "input": {"path": "a.png"}}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [*content]}
    return [*MESSAGES, {"role": "assistant", "content": [called]}, {"role": "user", "content": [result]}]


def test_an_image_in_a_result_follows_in_a_message_of_the_user(server: RunningServer) -> None:
    found, headers = seen(server, EYE, *result_of(image(PNG[0])))
    *_, result, follows = found
    assert result == (Role.TOOL, ["[The image is in the next message.]"])
    assert follows == (Role.USER, ["[Image in the result of Read:]", "image"])
    assert "x-mlxk-ignored-fields" not in headers
    found, _ = seen(server, EYE, *result_of({"type": "text", "text": "Two:"}, image(PNG[0]), image(PNG[1])))
    assert found[-2:] == [
        (Role.TOOL, ["Two:"]),
        (Role.USER, ["[Image in the result of Read:]", "Image 1:", "image", "Image 2:", "image"]),
    ]


def test_a_model_without_vision_gets_a_note_and_the_header_says_so(server: RunningServer) -> None:
    note = "[An image was left out here: this model takes no images.]"
    found, headers = seen(server, CHAT_MODEL, *result_of(image(PNG[0])))
    assert found[-1] == (Role.TOOL, [note])
    assert headers["x-mlxk-ignored-fields"] == "messages[].content[].content[].source"
    found, headers = seen(server, CHAT_MODEL, {"role": "user", "content": [image(PNG[0])]})
    assert found == [(Role.USER, [note])]
    assert headers["x-mlxk-ignored-fields"] == "messages[].content[].source"


def test_several_images_are_shown_together(server: RunningServer) -> None:
    for count, groups in ((1, [1]), (3, [3]), (5, [5]), (7, [5, 2])):
        found, _ = seen(server, EYE, {"role": "user", "content": [image(PNG[index]) for index in range(count)]})
        assert [parts.count("image") for _, parts in found] == groups
        assert len(server.parts.generator.requests) == 1


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (image("AAAA"), "messages[0].content[0].source.data"),
        (image("no base64!"), "messages[0].content[0].source.data: is not valid base64"),
        (image("SUkqAA==", "image/tiff"), "messages[0].content[0].source.data: is in TIFF"),
        (
            {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}},
            "messages[0].content[0].source.url: is an address, which this server does not read",
        ),
    ],
)
def test_an_image_that_cannot_be_read_is_refused_by_its_place(server: RunningServer, block: Any, message: str) -> None:
    status, _, answer = server.post(PATH, {**BODY, "model": EYE, "messages": [{"role": "user", "content": [block]}]})
    assert (status, answer["error"]["type"]) == (400, "invalid_request_error")
    assert answer["error"]["message"].startswith(message)


def test_a_data_url_is_an_image(server: RunningServer) -> None:
    block = {"type": "image", "source": {"type": "url", "url": f"data:image/png;base64,{PNG[0]}"}}
    assert seen(server, EYE, {"role": "user", "content": [block]})[0] == [(Role.USER, ["image", "Describe the image."])]
