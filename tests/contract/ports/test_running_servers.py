"""The contract of the running servers, held by every adapter."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from doubles.running_servers import InMemoryRunningServers
from doubles.text_generator import InMemoryTextGenerator
from serving.shared import MODEL, URL, SharedServer, socket_folder_of

import mlxk
from mlxk.application.ports.other_processes import RunningServer, RunningServers
from mlxk.application.ports.text_generator import ResidentModel
from mlxk.domain.errors import ExecutionError
from mlxk.domain.generation.request import EngineFigures, GenerationRequest

GONE = RunningServer("none.sock", 2**22 - 1, "http://127.0.0.1:1", "0", ())


@pytest.fixture(params=["socket", "in_memory"])
def servers(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RunningServers]:
    """One server that has a model in memory, which nothing uses."""
    if request.param == "in_memory":
        resident = ResidentModel(MODEL, 0, None)
        engine = EngineFigures(0, 0, 0, 0, 0, 0, 0)
        yield InMemoryRunningServers(RunningServer("", os.getpid(), URL, mlxk.__version__, (resident,), engine))
        return
    server = SharedServer(socket_folder_of(tmp_path), generator=InMemoryTextGenerator())
    server.generator.load(GenerationRequest(MODEL, ""))
    with server.listening():
        yield server.servers()


def test_a_server_is_listed_with_its_models(servers: RunningServers) -> None:
    (server,) = servers.servers()
    assert (server.process, server.url, server.version) == (os.getpid(), URL, mlxk.__version__)
    assert [model.handle for model in server.models] == [MODEL]


def test_a_server_says_what_its_engine_does(servers: RunningServers) -> None:
    (server,) = servers.servers()
    assert server.engine is not None
    assert (server.engine.responding, server.engine.running, server.engine.generated_tokens) == (True, 0, 0)


def test_an_idle_model_is_unloaded(servers: RunningServers) -> None:
    (server,) = servers.servers()
    assert servers.unload(server, server.models[0])
    assert servers.servers()[0].models == ()


def test_a_server_that_has_gone_is_named(servers: RunningServers) -> None:
    with pytest.raises(ExecutionError, match=GONE.url):
        servers.unload(GONE, ResidentModel(MODEL, 0, None))
    with pytest.raises(ExecutionError, match=GONE.url):
        servers.stop(GONE)


def test_no_place_is_known_before_a_request(servers: RunningServers) -> None:
    assert servers.last_place() is None
