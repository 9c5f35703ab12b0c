"""Which model in memory a name means."""

import pytest
from doubles.model_cache import InMemoryModelCache
from doubles.model_source import InMemoryModelSource
from doubles.running_servers import InMemoryRunningServers
from doubles.workspace_store import InMemoryWorkspaceStore

from mlxk.application.ports.running_servers import RunningServer
from mlxk.application.ports.text_generator import ResidentModel
from mlxk.application.use_cases.resolve_model import ResolveModel
from mlxk.application.use_cases.stop_models import StopModels
from mlxk.domain.errors import AmbiguousModelError, ModelNotFoundError
from mlxk.domain.models.model import ModelHandle, Origin

LLAMA = ResidentModel(ModelHandle("org/Llama-3B", "/cache/llama", Origin.CACHE, "1" * 40), 1, None)
QWEN = ResidentModel(ModelHandle("org/Qwen-3B", "/cache/qwen", Origin.CACHE, "2" * 40), 1, None)
DEMO = ResidentModel(ModelHandle("demo", "/built-in/demo", Origin.BUILT_IN), 1, None)
SERVERS = (
    RunningServer("1", 1, "http://127.0.0.1:1", "0", (DEMO, LLAMA)),
    RunningServer("2", 2, "http://127.0.0.1:2", "0", (LLAMA, QWEN)),
)


def stop(reference: str, *, busy: tuple[str, ...] = ()) -> list[tuple[int, str, bool]]:
    """Return the server, the name and whether it is gone, of each model that was unloaded."""
    servers = InMemoryRunningServers(*SERVERS, busy=busy)
    resolve = ResolveModel(InMemoryModelCache(), InMemoryWorkspaceStore(), InMemoryModelSource(), "mlx-community")
    return [
        (each.server.process, each.model.handle.name, each.unloaded) for each in StopModels(servers, resolve)(reference)
    ]


@pytest.mark.parametrize("name", ["org/Llama-3B", "ORG/llama-3b", "Llama-3B", "llama", f"org/Llama-3B@{'1' * 40}"])
def test_a_model_is_unloaded_in_every_server_that_has_it(name: str) -> None:
    assert stop(name) == [(1, "org/Llama-3B", True), (2, "org/Llama-3B", True)]


def test_a_model_in_use_is_told_apart() -> None:
    assert stop("demo", busy=("demo",)) == [(1, "demo", False)]


def test_a_part_of_several_names_is_refused() -> None:
    with pytest.raises(AmbiguousModelError, match="fits 2 models") as raised:
        stop("3b")
    assert raised.value.matches == ("org/Llama-3B", "org/Qwen-3B")


@pytest.mark.parametrize("name", ["nosuch", "org/Llama-3B@2222", "./demo"])
def test_what_is_not_in_memory_is_named_with_what_is(name: str) -> None:
    with pytest.raises(ModelNotFoundError, match="in memory") as raised:
        stop(name)
    assert raised.value.hint == "In memory: demo, org/Llama-3B, org/Qwen-3B"
