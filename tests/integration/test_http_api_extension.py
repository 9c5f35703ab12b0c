"""The extension point for HTTP APIs, with an API of other frames, keep-alive lines and error bodies."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from doubles.text_generator import InMemoryTextGenerator, Token
from serving.parts import CHAT_MODEL, Parts
from serving.running import RunningServer, eventually, read_all, unchunked
from serving.toy_api import MEDIA_TYPE, PATH, toy_api

from mlxk.domain.errors import ExecutionError
from mlxk.domain.generation.request import GenerationRequest
from mlxk.entrypoints.settings import ServerSettings

BODY = {"model": CHAT_MODEL, "text": "one two"}


def server(tokens: Sequence[Token], step_seconds: float = 0.0, **settings: Any) -> RunningServer:
    """Return a server with the toy API and a scripted generator."""

    def answer(request: GenerationRequest) -> Sequence[Token]:
        return tokens

    generator = InMemoryTextGenerator(answer, step_seconds)
    return RunningServer(Parts(generator, ServerSettings(**settings), keep_alive_seconds=0.05, apis=(toy_api,)))


def lines_of(response: bytes) -> list[Any]:
    """Return the documents of a streamed response, without its keep-alive lines."""
    head, _, body = response.partition(b"\r\n\r\n")
    assert f"Content-Type: {MEDIA_TYPE}".encode() in head
    return [json.loads(each) for each in unchunked(body).splitlines() if each]


def whole(server: RunningServer, body: Any, headers: str = "") -> tuple[int, str, list[Any]]:
    """Return status, head and documents of a response that is not streamed."""
    response = read_all(server.raw(PATH, body, extra=f"Connection: close\r\n{headers}"))
    head, _, data = response.partition(b"\r\n\r\n")
    assert f"Content-Type: {MEDIA_TYPE}".encode() in head
    return int(head.split()[1]), head.decode(), [json.loads(each) for each in data.splitlines()]


def test_a_stream_and_a_whole_response_have_the_same_lines() -> None:
    with server(("a", "b")) as it:
        streamed = lines_of(read_all(it.raw(PATH, BODY)))
        assert whole(it, {**BODY, "whole": True})[::2] == (200, streamed)
    assert streamed == [
        {"model": CHAT_MODEL},
        {"text": "a"},
        {"text": "b"},
        {"end": "stop"},
        {"tokens": 2},
    ]


def test_silence_is_filled_with_the_keep_alive_line_of_the_api() -> None:
    with server(("a",), step_seconds=0.3) as it:
        body = unchunked(read_all(it.raw(PATH, BODY)).partition(b"\r\n\r\n")[2])
    assert b"}\n\n" in body


def test_an_error_in_a_stream_is_a_line_of_the_api() -> None:
    with server(("a", ExecutionError("it failed"))) as it:
        assert lines_of(read_all(it.raw(PATH, BODY)))[1:] == [{"text": "a"}, {"failed": "execution_error"}]


@pytest.mark.parametrize(
    ("body", "headers", "status", "code"),
    [
        ({**BODY, "text": ""}, "", 400, "validation_error"),
        ({**BODY, "model": "no/such"}, "", 404, "model_not_found"),
        (BODY, "Origin: https://evil.example\r\n", 403, "forbidden_origin"),
        ({**BODY, "whole": True}, "", 500, "execution_error"),
    ],
)
def test_every_error_before_the_first_byte_has_the_body_of_the_api(
    body: dict[str, Any], headers: str, status: int, code: str
) -> None:
    with server((ExecutionError("it failed"),)) as it:
        assert whole(it, body, headers)[::2] == (status, [{"no": code}])


def test_other_paths_keep_the_error_body_of_the_server() -> None:
    with server(()) as it:
        assert it.post("/v1/chat/completions", {})[2]["error"]["code"] == "validation_error"
        assert it.get("/toy/nothing")[2]["error"]["code"] == "not_found"


@pytest.mark.parametrize("whole", [True, False])
def test_a_disconnect_cancels_the_generation(whole: bool) -> None:
    with server((" word",) * 100_000, step_seconds=0.002) as it:
        connection = it.raw(PATH, {**BODY, "whole": whole})
        assert eventually(lambda: it.parts.generator.state(0.1).running == 1)
        connection.close()
        assert eventually(lambda: it.parts.generator.state(0.1).running == 0)


def test_a_full_queue_is_refused_for_every_api() -> None:
    with server((" word",) * 100_000, step_seconds=0.002, max_streams=1, max_queue=0) as it:
        first = it.raw(PATH, BODY)
        assert eventually(lambda: it.parts.generator.state(0.1).running == 1)
        status, head, lines = whole(it, BODY)
        first.close()
    assert (status, lines) == (429, [{"no": "queue_full"}])
    assert "Retry-After: 1" in head
