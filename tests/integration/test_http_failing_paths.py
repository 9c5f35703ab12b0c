"""What is left behind when a request fails half way: nothing runs on, no place stays taken, nothing looks complete."""

import socket
import time
from collections.abc import Sequence
from typing import Any

import pytest
from doubles.text_generator import InMemoryTextGenerator, Token
from serving.parts import BASE_MODEL, CHAT_MODEL, Parts
from serving.running import RunningServer, events_of, eventually, read_all

from mlxk.domain.errors import ExecutionError
from mlxk.domain.generation.request import GenerationRequest
from mlxk.entrypoints.http.ollama.pull import MAX_PULLS
from mlxk.entrypoints.http.server.server import ServerLimits
from mlxk.entrypoints.settings import ServerSettings

CHAT = {"model": CHAT_MODEL, "messages": [{"role": "user", "content": "one two three"}]}
TOO_LONG = "word " * 20


def endless(request: GenerationRequest) -> Sequence[Token]:
    return (" word",) * 100_000


def server(generator: InMemoryTextGenerator, limits: ServerLimits | None = None, **settings: Any) -> RunningServer:
    return RunningServer(Parts(generator, ServerSettings(**settings)), limits)


def running(it: RunningServer) -> int:
    return it.parts.generator.state(0.1).running


def received_until(connection: socket.socket, text: bytes) -> bytes:
    received = b""
    while text not in received:
        received += connection.recv(65536)
    return received


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("prompts", [["one", TOO_LONG], ["one", "two", TOO_LONG]])
def test_a_prompt_that_is_refused_ends_the_answers_to_those_before_it(stream: bool, prompts: list[str]) -> None:
    with server(InMemoryTextGenerator(endless, 0.002, context_length=10)) as it:
        status, _, body = it.post("/v1/completions", {"model": BASE_MODEL, "prompt": prompts, "stream": stream})
        assert (status, body["error"]["type"]) == (400, "context_length_exceeded")
        assert eventually(lambda: running(it) == 0)
        assert [each.cancelled for each in it.parts.generator.streams] == [True] * (len(prompts) - 1)


def test_requests_that_are_refused_by_the_engine_take_no_place() -> None:
    generator = InMemoryTextGenerator(context_length=10)
    with server(generator, max_streams=1, max_queue=0) as it:
        for _ in range(5):
            assert it.post("/v1/completions", {"model": BASE_MODEL, "prompt": TOO_LONG})[0] == 400
        assert it.post("/v1/completions", {"model": BASE_MODEL, "prompt": "one"})[0] == 200


@pytest.mark.parametrize("stream", [True, False])
def test_a_choice_that_fails_ends_the_others(stream: bool) -> None:
    scripts = iter([(" word",) * 100_000, (" word", ExecutionError("It broke.")), (" word",) * 100_000])
    with server(InMemoryTextGenerator(lambda _: next(scripts), 0.002)) as it:
        began = time.monotonic()
        answer = read_all(
            it.raw("/v1/chat/completions", {**CHAT, "n": 3, "stream": stream}, extra="Connection: close\r\n")
        )
        assert b"It broke." in answer
        assert time.monotonic() - began < 10
        assert eventually(lambda: running(it) == 0)


def test_the_time_to_drain_begins_with_the_first_stop_and_ends_with_the_second() -> None:
    with server(InMemoryTextGenerator(endless, 0.002), ServerLimits(drain_seconds=500)) as it:
        began = time.monotonic()
        assert began <= it.server.drained_by <= time.monotonic()
        chat = it.raw("/v1/chat/completions", {**CHAT, "stream": True})
        received_until(chat, b" word")
        it.hurry()
        assert eventually(lambda: it.server.drained_by >= began + 500)
        ends = it.server.drained_by
        assert ends == it.server.drained_by <= time.monotonic() + 500
        it.hurry()
        assert it.server.drained_by <= time.monotonic()
        read_all(chat)


def test_a_stream_that_is_ended_by_the_server_does_not_look_complete() -> None:
    with server(InMemoryTextGenerator(endless, 0.002), ServerLimits(drain_seconds=60)) as it:
        chats = [it.raw("/v1/chat/completions", {**CHAT, "stream": True, "n": n}) for n in (1, 2)]
        prompt = {"model": BASE_MODEL, "prompt": "one", "stream": True, "stream_options": {"include_usage": True}}
        chats.append(it.raw("/v1/completions", prompt))
        begun = [received_until(chat, b" word") for chat in chats]
        it.hurry()
        it.hurry()
        for chat, beginning in zip(chats, begun, strict=True):
            *events, last = events_of(beginning + read_all(chat))
            assert last["error"]["type"] == "server_shutdown"
            choices = [choice for event in events for choice in event["choices"]]
            assert choices
            assert all(choice["finish_reason"] is None for choice in choices)
            assert not any(event.get("usage") for event in events)


class FailingAfterwards(Parts):
    """An application that fails after its resource has returned, before the server has its response."""

    def __init__(self, generator: InMemoryTextGenerator, settings: ServerSettings) -> None:
        super().__init__(generator, settings)
        self.failing = True
        wsgi = self.application.wsgi

        def failing(environment: dict[str, Any], start_response: Any) -> Any:
            body = wsgi(environment, start_response)
            if self.failing:
                raise RuntimeError("it broke")
            return body

        self.application.wsgi = failing


@pytest.mark.parametrize(
    ("path", "body", "places"),
    [("/v1/chat/completions", {**CHAT, "stream": True}, 1), ("/api/pull", {"model": "org/absent"}, MAX_PULLS)],
)
def test_an_application_that_fails_after_a_stream_has_begun_takes_no_place(
    path: str, body: dict[str, Any], places: int
) -> None:
    parts = FailingAfterwards(
        InMemoryTextGenerator(), ServerSettings(max_streams=1, max_queue=0, allow_model_changes=True)
    )
    with RunningServer(parts) as it:
        for _ in range(places):
            assert read_all(it.raw(path, body)).startswith(b"HTTP/1.1 500 ")
        parts.failing = False
        assert eventually(lambda: it.post(path, body)[0] == 200)
        assert all(each.cancelled for each in it.parts.generator.streams[:-1])
