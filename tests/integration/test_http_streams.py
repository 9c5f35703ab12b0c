"""Streams on a real socket: who goes early, reads slowly or waits long, and what happens at the end of the server."""

import json
import socket
import struct
import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest
from doubles.text_generator import InMemoryTextGenerator, Token
from serving.parts import BASE_MODEL, BROKEN_MODEL, CHAT_MODEL, OTHER_MODEL, Parts
from serving.running import RunningServer, events_of, eventually, read_all, unchunked

from mlxk.domain.errors import ContextLengthError, ExecutionError
from mlxk.domain.generation.request import GenerationRequest
from mlxk.entrypoints.http.server.server import ServerLimits
from mlxk.entrypoints.settings import ServerSettings

PATH = "/v1/chat/completions"
CHAT = {"model": CHAT_MODEL, "messages": [{"role": "user", "content": "one two three"}]}


def endless(request: GenerationRequest) -> Sequence[Token]:
    """Answer for a long time."""
    return (" word",) * 100_000


def server(
    answers: Any = endless, step_seconds: float = 0.002, limits: ServerLimits | None = None, **settings: Any
) -> RunningServer:
    """Return a server whose answers are scripted."""
    generator = InMemoryTextGenerator(answers, step_seconds)
    return RunningServer(Parts(generator, ServerSettings(**settings), keep_alive_seconds=0.2), limits)


def running(server: RunningServer) -> int:
    """Return how many answers the engine computes."""
    return server.parts.generator.state(0.1).running


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("reset", [True, False])
def test_a_client_that_goes_frees_the_engine_at_once(stream: bool, reset: bool) -> None:
    with server() as it:
        connection = it.raw(PATH, {**CHAT, "stream": stream, "n": 2})
        assert eventually(lambda: running(it) == 2)
        if reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
        assert eventually(lambda: running(it) == 0)
        assert eventually(lambda: it.parts.application._limit.admitted == 0)


@pytest.mark.parametrize("seconds", [0, 0.001, 0.01, 0.05])
def test_a_client_may_go_at_any_moment(seconds: float) -> None:
    with server() as it:
        for stream in (True, False):
            connection = it.raw(PATH, {**CHAT, "stream": stream})
            time.sleep(seconds)
            connection.close()
        assert eventually(lambda: running(it) == 0 and it.parts.application._limit.admitted == 0)
        assert it.post(PATH, {**CHAT, "max_tokens": 2})[0] == 200


def test_a_client_that_goes_while_its_model_is_loaded_is_not_answered() -> None:
    generator = InMemoryTextGenerator(endless, 0.002, load_seconds=0.3)
    with RunningServer(Parts(generator)) as it:
        connection = it.raw(PATH, {**CHAT, "stream": True})
        assert eventually(lambda: it.parts.application._limit.admitted == 1)
        connection.close()
        assert eventually(lambda: len(generator.streams) == 1)
        assert eventually(lambda: running(it) == 0)


def test_headers_and_role_leave_before_the_first_token_and_silence_is_broken() -> None:
    go_on = threading.Event()

    class Late(tuple[Token, ...]):
        def __getitem__(self, place: Any) -> Any:
            go_on.wait(60)
            return super().__getitem__(place)

    with server(lambda _: Late((" word",))) as it:
        connection = it.raw(PATH, {**CHAT, "stream": True, "max_tokens": 1})
        first = b""
        while b'"role":"assistant"' not in first or first.count(b": ping") < 2:
            part = connection.recv(65536)
            assert part, first
            first += part
        assert first.startswith(b"HTTP/1.1 200")
        assert b" word" not in first
        go_on.set()
        assert b" word" in read_all(connection)


def test_a_busy_neighbour_does_not_keep_a_silent_stream_from_its_signs_of_life() -> None:
    def answers(request: GenerationRequest) -> Sequence[Token]:
        return ((" x" if request.settings.max_tokens else ""),) * 100_000

    with RunningServer(Parts(InMemoryTextGenerator(answers, 0.001), keep_alive_seconds=0.1)) as it:
        busy = it.raw(PATH, {**CHAT, "stream": True, "max_tokens": 100_000})
        silent = it.raw(PATH, {**CHAT, "stream": True})
        seen = b""
        while seen.count(b": ping") < 3:
            part = silent.recv(65536)
            assert part
            seen += part
            assert busy.recv(1 << 20)
        assert b" x" not in seen
        busy.close()
        silent.close()


def test_a_reader_that_does_not_read_is_dropped_and_its_memory_given_back() -> None:
    wide = ("x" * 4000,) * 50_000
    with server(lambda _: wide, step_seconds=0) as it:
        connection = it.raw(PATH, {**CHAT, "stream": True})
        assert eventually(lambda: bool(it.parts.generator.streams))
        assert eventually(lambda: running(it) == 0)
        taken = it.parts.generator.streams[0]._taken
        assert taken < 50_000
        assert not read_all(connection).partition(b"\r\n\r\n")[2].endswith(b"\r\n0\r\n\r\n")


def test_a_reader_that_pauses_loses_nothing() -> None:
    with server(lambda _: tuple(f" {n}" for n in range(200)), step_seconds=0.001) as it:
        connection = it.raw(PATH, {**CHAT, "stream": True})
        time.sleep(0.5)
        events = events_of(read_all(connection))
        text = "".join(event["choices"][0]["delta"].get("content", "") for event in events[:-1])
        assert text == "".join(f" {n}" for n in range(200))
        assert events[-1] == "[DONE]"


def test_a_failure_in_the_middle_is_one_event_of_the_stream() -> None:
    def failing(request: GenerationRequest) -> Sequence[Token]:
        return ("a", " b", ExecutionError("the model failed"))

    with server(failing) as it:
        events = events_of(read_all(it.raw(PATH, {**CHAT, "stream": True})))
        assert events[-1]["error"]["type"] == "execution_error"
        assert events[-1]["request_id"]
        assert "[DONE]" not in events
        status, _, answer = it.post(PATH, CHAT)
        assert (status, answer["error"]["type"]) == (500, "execution_error")


def test_a_failure_of_one_choice_ends_all_of_them() -> None:
    turns = iter([("a",) * 10_000, ("b", ExecutionError("the model failed"))])
    with server(lambda _: next(turns)) as it:
        status, _, answer = it.post(PATH, {**CHAT, "n": 2})
        assert (status, answer["error"]["type"]) == (500, "execution_error")
        assert eventually(lambda: running(it) == 0)


def test_what_is_wrong_with_the_prompt_is_said_with_a_status_also_for_streams() -> None:
    def refusing(request: GenerationRequest) -> Sequence[Token]:
        raise ContextLengthError("too long", detail={"prompt_tokens": 9000, "context_length": 2048})

    with server(refusing) as it:
        for stream in (True, False):
            status, _, answer = it.post(PATH, {**CHAT, "stream": stream})
            assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
            assert answer["error"]["param"] == "messages"
        status, _, answer = it.post("/v1/completions", {"model": CHAT_MODEL, "prompt": "x"})
        assert answer["error"]["param"] == "prompt"
        assert it.parts.application._limit.admitted == 0


def test_a_prompt_of_which_only_the_beginning_was_counted_is_refused_in_the_words_of_each_api() -> None:
    def refusing(request: GenerationRequest) -> Sequence[Token]:
        counted = {"counted_tokens": 9000, "counted_characters": 30000, "context_length": 2048}
        raise ContextLengthError("too long", detail=counted)

    with server(refusing) as it:
        status, _, answer = it.post(PATH, CHAT)
        assert (status, answer["error"]["message"]) == (
            400,
            "This model's maximum context length is 2048 tokens. However, the first 30000 characters of your messages"
            " alone have 9000 tokens. Please reduce the length of the messages.",
        )
        status, _, answer = it.post("/api/chat", CHAT)
        assert (status, answer["error"]) == (
            400,
            "the input length exceeds the context length: the first 30000 characters of the prompt have 9000 tokens,"
            " the context window holds 2048",
        )


@pytest.mark.parametrize("fault", [ImportError("a broken library"), MemoryError()], ids=["import", "memory"])
def test_a_request_that_fails_before_it_starts_gives_its_place_back(fault: Exception) -> None:
    def failing(request: GenerationRequest) -> Sequence[Token]:
        raise fault

    with server(failing, max_streams=1, max_queue=1) as it:
        for stream in (True, False, True):
            status, _, _ = it.post(PATH, {**CHAT, "stream": stream})
            assert status == 500
        assert it.parts.application._limit.admitted == 0


def test_more_than_there_is_room_for_is_refused_with_when_to_come_again() -> None:
    with server(max_streams=2, max_queue=1) as it:
        connections = [it.raw(PATH, {**CHAT, "stream": True}) for _ in range(3)]
        assert eventually(lambda: it.parts.application._limit.admitted == 3)
        status, headers, answer = it.post(PATH, CHAT)
        assert (status, answer["error"]["type"], answer["error"]["retryable"]) == (429, "queue_full", True)
        assert int(headers["retry-after"]) >= 1
        assert it.post(PATH, {**CHAT, "n": 4})[0] == 400
        assert it.get("/livez")[0] == 200
        connections.pop().close()
        assert eventually(lambda: it.parts.application._limit.admitted == 2)
        assert it.post(PATH, {**CHAT, "max_tokens": 1})[0] == 200
        for connection in connections:
            connection.close()


def test_probes_are_answered_while_every_place_waits_for_a_model() -> None:
    loaded = threading.Event()

    def answers(_: GenerationRequest) -> Sequence[Token]:
        loaded.wait(60)
        return ("word",)

    limits = ServerLimits(threads=8 + 8)
    parts = Parts(InMemoryTextGenerator(answers), ServerSettings(max_streams=4, max_queue=4))
    with RunningServer(parts, limits) as it:
        connections = [it.raw(PATH, CHAT) for _ in range(8)]
        assert eventually(lambda: parts.application._limit.admitted == 8)
        for _ in range(10):
            assert it.get("/livez")[0] == 200
        assert parts.generator.streams == []
        loaded.set()
        for connection in connections:
            assert b" 200 " in read_all_once(connection)


def read_all_once(connection: socket.socket) -> bytes:
    """Return the first bytes of an answer, and close."""
    with connection:
        return connection.recv(65536)


def test_unknown_and_unsuitable_models_leave_the_loaded_one_alone() -> None:
    with server(lambda _: ("ok",)) as it:
        assert it.post(PATH, CHAT)[0] == 200
        loaded = it.parts.catalogue.loaded()
        for name, status, code in (
            ("no/such-model", 404, "model_not_found"),
            ("org", 400, "ambiguous_match"),
            (BASE_MODEL, 422, "capability_not_supported"),
            (BROKEN_MODEL, 409, "model_unhealthy"),
            ("/etc", 400, "validation_error"),
        ):
            got, _, answer = it.post(PATH, {**CHAT, "model": name})
            assert (got, answer["error"]["type"], answer["error"]["param"]) in {
                (status, code, "model"),
                (status, code, None),
            }
        assert it.parts.catalogue.loaded() == loaded
        assert it.post("/v1/completions", {"model": BASE_MODEL, "prompt": "x"})[0] == 200


def test_two_models_asked_for_in_turns_are_both_answered() -> None:
    with server(lambda request: (request.model.name,)) as it:
        results: list[tuple[str, Any]] = []

        def client(index: int) -> None:
            for turn in range(5):
                name = (CHAT_MODEL, OTHER_MODEL)[(index + turn) % 2]
                results.append((name, it.post(PATH, {**CHAT, "model": name})[2]))

        threads = [threading.Thread(target=client, args=(index,)) for index in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(results) == 40
        assert all(answer["choices"][0]["message"]["content"] == name for name, answer in results)


def test_draining_finishes_what_runs_and_refuses_what_is_new() -> None:
    with server(lambda _: (" word",) * 150, step_seconds=0.005) as it:
        stream, waiting = it.raw(PATH, {**CHAT, "stream": True}), it.connect()
        assert eventually(lambda: running(it) == 1)
        it.hurry()
        assert eventually(lambda: it.parts.application.lifecycle.draining)
        data = json.dumps(CHAT).encode()
        waiting.sendall(
            f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data
        )
        refused = read_all(waiting)
        assert b" 503 " in refused.split(b"\r\n")[0]
        assert b"Retry-After:" in refused
        assert it.get("/readyz")[0] == 503
        assert it.get("/livez")[0] == 200
        events = events_of(read_all(stream))
        assert events[-1] == "[DONE]"
        assert len(events) == 153
    assert it.ended_well


def test_what_does_not_finish_in_time_is_told_and_ended() -> None:
    with server(limits=ServerLimits(drain_seconds=0.3)) as it:
        stream, batch = it.raw(PATH, {**CHAT, "stream": True}), it.raw(PATH, CHAT)
        assert eventually(lambda: running(it) == 2)
        it.stop()
        assert it.stops == 1  # not in a hurry
        events = events_of(read_all(stream))
        assert events[-1]["error"]["type"] == "server_shutdown"
        assert b" 503 " in read_all(batch).split(b"\r\n")[0]
    assert it.ended_well


def test_a_second_stop_does_not_wait() -> None:
    with server(limits=ServerLimits(drain_seconds=60)) as it:
        stream = it.raw(PATH, {**CHAT, "stream": True})
        assert eventually(lambda: running(it) == 1)
        it.hurry()
        it.hurry()
        assert events_of(read_all(stream))[-1]["error"]["type"] == "server_shutdown"


@pytest.mark.parametrize("stream", [True, False])
def test_who_is_admitted_while_waiting_is_given_up_is_told_so_too(stream: bool) -> None:
    with server(limits=ServerLimits(drain_seconds=60)) as it:
        it.parts.application.abort()
        answer = read_all_within(it.raw(PATH, {**CHAT, "stream": stream}), 20)
        assert b"server_shutdown" in answer
        assert eventually(lambda: running(it) == 0)


def read_all_within(connection: socket.socket, seconds: float) -> bytes:
    """Return what comes until an answer has ended, without waiting for the connection's end.

    A head may end as a chunked body does: request ids end in 0 as well.
    """
    connection.settimeout(seconds)
    with connection:
        answer = b""
        while not answer.partition(b"\r\n\r\n")[2].endswith((b"\r\n0\r\n\r\n", b"}")):
            part = connection.recv(65536)
            assert part, answer
            answer += part
        return answer


def test_the_body_of_a_stream_is_well_formed_to_its_last_byte() -> None:
    with server(lambda _: ("a", "b")) as it:
        answer = read_all(it.raw(PATH, {**CHAT, "stream": True}))
        head, _, body = answer.partition(b"\r\n\r\n")
        assert b"Transfer-Encoding: chunked" in head
        assert body.endswith(b"\r\n0\r\n\r\n")
        assert unchunked(body).endswith(b"data: [DONE]\n\n")
