"""A failure of the engine's loop as a whole, under the server and with a real model: seen by probes, and survived."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving.running import RunningServer, events_of, eventually, read_all

from mlxk.entrypoints.container import build
from mlxk.entrypoints.http.app import Application
from mlxk.entrypoints.http.resources.probes import RECOVERY_SECONDS
from mlxk.entrypoints.http.worker import _ports
from mlxk.entrypoints.server_settings import ServerSettings
from mlxk.entrypoints.settings import read_settings

pytestmark = pytest.mark.mlx
PATH = "/v1/chat/completions"
ASKED: dict[str, Any] = {
    "model": "demo",
    "messages": [{"role": "user", "content": "What is mlxk?"}],
    "temperature": 0,
}
ENDLESS = {**ASKED, "stream": True, "max_tokens": 1900, "logit_bias": {"0": -100, "1": -100, "2": -100, "3": -100}}


class WholeProgram:
    """The application on the program's own adapters."""

    def __init__(self, home: Path) -> None:
        settings = ServerSettings()
        container = build(read_settings({"HOME": str(home)}), settings)
        self.generator: Any = container.adapters.text_generator()
        self.application = Application(_ports(container), settings)
        self.application.life.preloaded = True

    def break_loop(self) -> None:
        """Raise in the engine's thread, outside of everything that expects failures."""

        def fault(engine: Any) -> None:
            raise RuntimeError("a fault nobody foresaw")

        self.generator._thread.post(fault)

    def close(self) -> None:
        """End everything."""
        self.application.close()
        self.generator.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunningServer]:
    """Serve the built-in model."""
    program: Any = WholeProgram(tmp_path)
    with RunningServer(program) as running:
        yield running


def readiness(server: RunningServer) -> int:
    """Return the status of the readiness probe."""
    return server.get("/readyz")[0]


def test_a_failure_of_the_loop_is_seen_at_once_and_the_engine_recovers(server: RunningServer) -> None:
    program: Any = server.parts
    status, _, before = server.post(PATH, ASKED)
    assert status == 200
    assert readiness(server) == 200
    streams = [server.raw(PATH, ENDLESS) for _ in range(3)]
    assert eventually(lambda: program.generator.state(0.5).running == 3)
    waiting: list[Any] = []
    batch = threading.Thread(target=lambda: waiting.append(server.post(PATH, {**ENDLESS, "stream": False})))
    batch.start()
    assert eventually(lambda: program.generator.state(0.5).running == 4)
    began = time.monotonic()
    program.break_loop()
    assert eventually(lambda: readiness(server) == 503, 1)
    assert time.monotonic() - began < 1
    assert server.get("/health")[0] == 200
    for stream in streams:
        assert events_of(read_all(stream))[-1]["error"]["type"] == "execution_error"
    batch.join()
    assert (waiting[0][0], waiting[0][2]["error"]["type"]) == (500, "execution_error")
    status, _, after = server.post(PATH, ASKED)
    assert status == 200
    assert after["choices"] == before["choices"]
    assert eventually(lambda: readiness(server) == 200, RECOVERY_SECONDS + 1)
    assert program.application._admission.admitted == 0


def test_it_may_fail_again_and_again(server: RunningServer) -> None:
    program: Any = server.parts
    first = server.post(PATH, ASKED)[2]["choices"]
    for _ in range(20):
        stream = server.raw(PATH, ENDLESS)
        assert eventually(lambda: program.generator.state(0.5).running == 1)
        program.break_loop()
        assert events_of(read_all(stream))[-1]["error"]["type"] == "execution_error"
    assert server.post(PATH, ASKED)[2]["choices"] == first
