"""A failure of the engine's loop as a whole, under the server and with a real model: seen by probes, and survived."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving.running import RunningServer, events_of, eventually, read_all
from serving.whole_program import ENDLESS, PATH, QUESTION, WholeProgram

from mlxk.adapters.mlx.text_generator import ModelLease
from mlxk.domain.errors import ExecutionError
from mlxk.entrypoints.http.resources import RECOVERY_SECONDS

pytestmark = pytest.mark.mlx
CANARY = "canary-3b9e"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunningServer]:
    """Serve the built-in model."""
    program: Any = WholeProgram(tmp_path)
    with RunningServer(program) as running:
        yield running


def fault() -> None:
    """Fail as nobody foresaw, and as a library may: saying what it was given."""
    raise RuntimeError(f"cannot read {CANARY!r}")


def readiness(server: RunningServer) -> int:
    """Return the status of the readiness probe."""
    return server.get("/readyz")[0]


def test_a_failure_of_the_loop_is_seen_at_once_and_the_engine_recovers(server: RunningServer) -> None:
    program: Any = server.parts
    status, _, before = server.post(PATH, QUESTION)
    assert status == 200
    assert readiness(server) == 200
    streams = [server.raw(PATH, {**ENDLESS, "stream": True}) for _ in range(3)]
    assert eventually(lambda: program.running() == 3)
    waiting: list[Any] = []
    batch = threading.Thread(target=lambda: waiting.append(server.post(PATH, ENDLESS)))
    batch.start()
    assert eventually(lambda: program.running() == 4)
    program.do_in_loop(fault)
    assert eventually(lambda: readiness(server) == 503)
    assert server.get("/health")[0] == 200
    for stream in streams:
        assert events_of(read_all(stream))[-1]["error"]["type"] == "execution_error"
    batch.join()
    assert (waiting[0][0], waiting[0][2]["error"]["type"]) == (500, "execution_error")
    status, _, after = server.post(PATH, QUESTION)
    assert status == 200
    assert after["choices"] == before["choices"]
    assert eventually(lambda: readiness(server) == 200, RECOVERY_SECONDS + 1)
    assert program.application._limit.admitted == 0


def test_it_may_fail_again_and_again(server: RunningServer) -> None:
    program: Any = server.parts
    first = server.post(PATH, QUESTION)[2]["choices"]
    for _ in range(20):
        stream = server.raw(PATH, {**ENDLESS, "stream": True})
        assert eventually(lambda: program.running() == 1)
        program.do_in_loop(fault)
        assert events_of(read_all(stream))[-1]["error"]["type"] == "execution_error"
    assert server.post(PATH, QUESTION)[2]["choices"] == first


def test_what_a_failure_says_of_a_prompt_is_repeated_nowhere(server: RunningServer) -> None:
    program: Any = server.parts
    said = {**ENDLESS, "messages": [{"role": "user", "content": CANARY}], "stream": True}
    stream = server.raw(PATH, said)
    assert eventually(lambda: program.running() == 1)
    program.do_in_loop(fault)
    answer = read_all(stream)
    with pytest.raises(ExecutionError) as caught:
        ModelLease(program.generator._thread, None).call(fault)
    assert CANARY not in f"{answer!r} {caught.value} {caught.value.detail}"
    assert CANARY not in str(program.log.events)
    for event in ("an engine step failed", "a call on a leased model failed"):
        [logged] = program.log.named(event)
        module, _, line = logged.fields["where"].rpartition(":")
        assert (logged.fields["error"], module, line.isdigit()) == ("RuntimeError", fault.__module__, True)
