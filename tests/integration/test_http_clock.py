"""The wall clock of a server's machine is set while it runs, by hand, by the network's time or after sleep."""

import json
import time
from collections.abc import Iterator

import pytest
from serving.parts import CHAT_MODEL, Parts
from serving.running import RunningServer, eventually, read_all

from mlxk.entrypoints.http.server.server import ServerLimits


@pytest.fixture
def server() -> Iterator[RunningServer]:
    """Run a server."""
    with RunningServer(Parts()) as running:
        yield running


@pytest.mark.parametrize("hours", [1, -1])
def test_a_request_that_arrives_while_the_clock_is_set_is_answered(
    hours: int, server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = json.dumps({"model": CHAT_MODEL, "messages": [{"role": "user", "content": "one two three"}]}).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    connection = server.connect(10)
    connection.sendall(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body[:20])
    eventually(lambda: any(channel.arriving for channel in server.server._channels()))
    true_time = time.time
    monkeypatch.setattr(time, "time", lambda: true_time() + 3600 * hours)
    for _ in range(3):  # the loop goes round, and maintenance is due
        assert server.get("/livez")[0] == 200
    connection.sendall(body[20:])
    assert read_all(connection).startswith(b"HTTP/1.1 200")


def test_a_request_that_does_not_arrive_is_refused_although_the_clock_was_set_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with RunningServer(Parts(), ServerLimits(header_seconds=0.3, request_seconds=0.6)) as server:
        true_time = time.time
        monkeypatch.setattr(time, "time", lambda: true_time() - 3600)
        connection = server.connect(10)
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: ")
        assert b" 408 " in read_all(connection).split(b"\r\n")[0]
