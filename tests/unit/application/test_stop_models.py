"""Which model in memory a name means."""

import pytest
from doubles.model_cache import CachedModel, InMemoryModelCache
from doubles.model_source import InMemoryModelSource
from doubles.running_servers import InMemoryRunningServers
from doubles.workspace_store import InMemoryWorkspaceStore

from mlxk.application.ports.other_processes import RunningServer
from mlxk.application.ports.text_generator import ResidentModel
from mlxk.application.use_cases.remove_models import StopModels
from mlxk.application.use_cases.resolve_model import ResolveModel
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


def test_what_is_not_in_memory_may_be_in_that_of_a_server_that_does_not_answer() -> None:
    servers = InMemoryRunningServers(*SERVERS)
    servers.hidden = ("a server (process 9) does not respond", "a server (process 10) does not respond")
    resolve = ResolveModel(InMemoryModelCache(), InMemoryWorkspaceStore(), InMemoryModelSource())
    with pytest.raises(ModelNotFoundError) as raised:
        StopModels(servers, resolve)("nosuch")
    assert raised.value.message.endswith(f"; {servers.hidden[0]}; {servers.hidden[1]}")
    assert raised.value.hint == "In memory: demo, org/Llama-3B, org/Qwen-3B"


OTHER_LLAMA = ResidentModel(ModelHandle("other/Llama-3B", "/cache/other", Origin.CACHE, "3" * 40), 1, None)
LONGER = ResidentModel(ModelHandle("org/Llama-3B-4bit", "/cache/org/Llama-3B-4bit/4", Origin.CACHE, "4"), 1, None)


def named(reference: str, *loaded: ResidentModel) -> list[str]:
    """Return the names of what is unloaded; the disk has the longer one, and one that ends alike."""
    disk = {each: CachedModel(revisions=("4",)) for each in ("org/Llama-3B-4bit", "org/Mistral-7B")}
    resolve = ResolveModel(
        InMemoryModelCache(disk), InMemoryWorkspaceStore(), InMemoryModelSource(), aliases={"poet": "org/Llama-3B-4bit"}
    )
    servers = InMemoryRunningServers(RunningServer("1", 1, "http://127.0.0.1:1", "0", loaded))
    return [each.model.handle.name for each in StopModels(servers, resolve)(reference)]


def test_a_last_part_that_two_models_have_is_refused_and_both_are_named() -> None:
    with pytest.raises(AmbiguousModelError) as raised:
        named("llama-3b", LLAMA, OTHER_LLAMA)
    assert raised.value.matches == ("org/Llama-3B", "other/Llama-3B")


@pytest.mark.parametrize(
    ("reference", "meant"),
    [("Llama-3B", "org/Llama-3B"), ("4bit", "org/Llama-3B-4bit"), ("POET", "org/Llama-3B-4bit")],
)
def test_a_name_means_the_same_as_elsewhere_also_when_its_model_was_removed(reference: str, meant: str) -> None:
    assert named(reference, LLAMA, LONGER) == [meant]


def test_a_part_of_one_name_on_the_disk_may_be_one_of_another_in_memory() -> None:
    with pytest.raises(AmbiguousModelError):
        named("-3b", LLAMA, LONGER)


@pytest.mark.parametrize("reference", ["", "  "])
def test_nothing_means_no_model(reference: str) -> None:
    with pytest.raises(ModelNotFoundError):
        named(reference, LLAMA)
