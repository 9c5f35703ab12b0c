"""Prompts that take long, over HTTP: their progress is streamed, and a client that leaves ends their computation."""

import re
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
from models.tiny_models import build
from serving.running import RunningServer, eventually
from serving.whole_program import WholeProgram

from mlxk.entrypoints.settings import ServerSettings

pytestmark = pytest.mark.mlx
LONG = "The quick brown fox. " * 8000
MESSAGES = [{"role": "user", "content": LONG}]
PROGRESS = re.compile(rb": prefill (\d+)/(\d+)\n\n")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the directory of a model that computes for many seconds before it answers ``LONG``."""
    directory = tmp_path_factory.mktemp("long") / "llama"
    build(directory, max_position_embeddings=131_072, num_hidden_layers=8)
    return str(directory)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    program: Any = WholeProgram(tmp_path_factory.mktemp("home"), ServerSettings(allow_paths=True))
    with RunningServer(program) as running:
        yield running


def read_until(connection: socket.socket, wanted: re.Pattern[bytes]) -> re.Match[bytes]:
    """Read a response until something is in it, and return that."""
    received, deadline = b"", time.monotonic() + 60
    while time.monotonic() < deadline:
        part = connection.recv(65536)
        assert part, received
        received += part
        if found := wanted.search(received):
            return found
    raise AssertionError(received)


def rests(served: RunningServer) -> bool:
    """Whether the engine stops within a piece of the prompt."""
    program: Any = served.parts
    return eventually(lambda: program.running() == 0, 10)


@pytest.mark.parametrize(
    ("path", "more", "sign_of_life"),
    [
        ("/v1/chat/completions", {"messages": MESSAGES}, rb""),
        ("/v1/messages", {"messages": MESSAGES, "max_tokens": 5}, rb"[^{]*event: ping\n"),
        ("/v1/responses", {"input": LONG}, rb"[^{]*event: response.in_progress\n"),
    ],
)
def test_the_progress_of_a_long_prompt_is_streamed_and_ends_with_its_client(
    served: RunningServer, model: str, path: str, more: dict[str, Any], sign_of_life: bytes
) -> None:
    with served.raw(path, {"model": model, "stream": True, **more}) as connection:
        found = read_until(connection, re.compile(PROGRESS.pattern + sign_of_life))
    done, total = int(found[1]), int(found[2])
    assert 0 < done < total
    assert total > 20_000
    assert rests(served)


def test_lines_of_json_have_parts_without_content_meanwhile(served: RunningServer, model: str) -> None:
    with served.raw("/api/chat", {"model": model, "messages": MESSAGES}) as connection:
        empty = rb'"content": ?""[^}]*\}, ?"done": ?false\}[^{]*'
        read_until(connection, re.compile(empty + rb".*" + empty, re.DOTALL))
    assert rests(served)


def test_a_whole_answer_ends_with_its_client_too(served: RunningServer, model: str) -> None:
    program: Any = served.parts
    connection = served.raw("/v1/chat/completions", {"model": model, "messages": MESSAGES})
    assert eventually(lambda: program.running() == 1, 20)
    connection.close()
    assert rests(served)


def test_a_short_prompt_has_no_progress(served: RunningServer, model: str) -> None:
    body = {"model": model, "stream": True, "max_tokens": 2, "messages": [{"role": "user", "content": "Hello"}]}
    _, _, answer = served.post("/v1/chat/completions", body)
    assert b"[DONE]" in answer
    assert not PROGRESS.search(answer)
