"""Pulling, decided on doubles: what is asked, what is fetched, what is refused."""

from collections.abc import Mapping

import attrs
import pytest
from doubles.backend_registry import InMemoryBackendRegistry
from doubles.confirmation import InMemoryConfirmation
from doubles.model_cache import CachedModel, InMemoryModelCache
from doubles.model_files import InMemoryModelFiles
from doubles.model_hub import InMemoryModelHub, RemoteRepository
from doubles.model_source import InMemoryModelSource
from doubles.progress import InMemoryProgress
from doubles.workspace_store import InMemoryWorkspaceStore

from mlxk.application.ports.model_cache import LockHolder
from mlxk.application.use_cases.describe_model import DescribeModel
from mlxk.application.use_cases.pull_model import SPARE_BYTES, PullModel, PullRequest, PullResult, PullStatus
from mlxk.domain.errors import (
    AmbiguousModelError,
    MlxkError,
    NetworkError,
    Remedy,
    RequiresConfirmationError,
    StorageError,
    ValidationError,
)

WHOLE = {"config.json": b'{"model_type": "x"}', "model.safetensors": b"\x02\0\0\0\0\0\0\0{}"}
A, B = "a" * 40, "b" * 40


@attrs.define
class World:
    """A hub, a cache and what pulls from one to the other."""

    cache: InMemoryModelCache
    files: InMemoryModelFiles
    hub: InMemoryModelHub
    progress: InMemoryProgress = attrs.field(factory=InMemoryProgress)

    def pull(self, reference: str, answer: bool | None = None, **flags: bool) -> PullResult:
        built_in = InMemoryModelSource({"demo": "/demo"})
        describe = DescribeModel(
            self.files, InMemoryWorkspaceStore(), InMemoryBackendRegistry(), self.cache, default_owner="mlx-community"
        )
        pull = PullModel(self.cache, built_in, self.hub, describe, "mlx-community")
        return pull(PullRequest(reference, **flags), self.progress, InMemoryConfirmation(answer))


def world(
    names: tuple[str, ...] = ("mlx-community/Tiny",),
    free: int | None = None,
    commits: Mapping[str, Mapping[str, bytes]] | None = None,
) -> World:
    """Return a world whose hub has models of these names and whose cache is empty."""
    files = InMemoryModelFiles()
    cache = InMemoryModelCache(files=files, free=free)
    held = commits or {A: WHOLE, B: {**WHOLE, "config.json": b'{"model_type": "y"}'}}
    models = {name: RemoteRepository(held, {"main": A, "dev": B}) for name in names}
    return World(cache, files, InMemoryModelHub(models, cache, files))


def test_a_bare_name_means_the_model_of_the_default_owner() -> None:
    result = world().pull("Tiny")
    assert (result.name, result.expanded, result.status) == ("mlx-community/Tiny", True, PullStatus.SUCCESS)
    assert result.report is not None
    assert result.report.healthy


def test_a_bare_name_means_the_one_cached_model_of_that_name_and_never_a_part_of_one() -> None:
    there = world(("acme/Tiny", "acme/Tiny-8bit", "mlx-community/Tiny"))
    there.pull("acme/Tiny-8bit")
    assert there.pull("Tiny").name == "mlx-community/Tiny"
    there = world(("acme/Tiny",))
    there.pull("acme/Tiny")
    assert (there.pull("tiny").name, there.pull("tiny").status) == ("acme/Tiny", PullStatus.ALREADY_EXISTS)
    there = world(("acme/Tiny", "beta/Tiny"))
    there.pull("acme/Tiny")
    there.pull("beta/Tiny")
    with pytest.raises(AmbiguousModelError) as failure:
        there.pull("Tiny")
    assert failure.value.matches == ("acme/Tiny", "beta/Tiny")


@pytest.mark.parametrize(
    "name",
    [
        "demo@main",
        "https://huggingface.co/a/b",
        "",
        " ",
        "a/b/c",
        "/a/b",
        "a/b/",
        "a//b",
        "a/" + "b" * 96,
        "./here",
        "a/..",
        "a b/c",
        "a--b/c",
        "a/b@../x",
    ],
)
def test_what_is_no_name_is_refused_before_anything_is_asked(name: str) -> None:
    there = world()
    with pytest.raises(ValidationError):
        there.pull(name)
    assert there.hub.requests == 0


def test_a_whole_model_is_left_alone_and_the_hub_is_not_asked() -> None:
    there = world()
    there.pull("Tiny")
    asked = there.hub.requests
    assert there.pull("Tiny").status is PullStatus.ALREADY_EXISTS
    assert there.pull(f"Tiny@{A}").status is PullStatus.ALREADY_EXISTS
    assert there.hub.requests == asked


def test_a_cached_commit_may_be_shortened_and_a_branch_is_never_taken_for_one() -> None:
    there = world()
    there.pull("Tiny")
    asked = there.hub.requests
    assert there.pull(f"Tiny@{A[:7]}").status is PullStatus.ALREADY_EXISTS
    assert there.hub.requests == asked
    there.hub.models["mlx-community/Tiny"] = RemoteRepository({A: WHOLE, B: WHOLE}, {"main": A, A[:6]: B})
    assert there.pull(f"Tiny@{A[:6]}").handle == there.cache.find("mlx-community/Tiny", B)


def test_another_revision_is_fetched_and_a_branch_is_looked_up_anew() -> None:
    there = world()
    there.pull("Tiny")
    result = there.pull("Tiny@dev")
    assert result.status is PullStatus.SUCCESS
    assert result.handle is not None
    assert result.handle.revision == B
    assert there.pull("Tiny@dev").status is PullStatus.ALREADY_EXISTS
    there.hub.models["mlx-community/Tiny"] = RemoteRepository({A: WHOLE, B: WHOLE}, {"main": B, "dev": B})
    assert there.pull("Tiny@main").handle == there.cache.find("mlx-community/Tiny", B)


def test_without_a_network_a_branch_that_is_cached_is_taken_as_it_is() -> None:
    there = world()
    there.pull("Tiny@dev")
    there.hub.failure = NetworkError("the hub cannot be reached")
    assert there.pull("Tiny@dev").status is PullStatus.ALREADY_EXISTS
    assert there.progress.notes != []


def test_a_partial_model_needs_a_yes() -> None:
    there = world()
    there.hub.failure = None
    there.cache.models["mlx-community/Tiny"] = CachedModel(unfinished=1)
    with pytest.raises(RequiresConfirmationError) as failure:
        there.pull("Tiny")
    assert getattr(failure.value.hint, "remedy", None) is Remedy.COMPLETE_OR_REMOVE
    assert there.pull("Tiny", answer=False).status is PullStatus.CANCELLED
    assert there.hub.requests == 0
    assert there.pull("Tiny", answer=True).status is PullStatus.SUCCESS


def test_a_damaged_model_is_completed_when_told_to_or_while_another_client_is_at_it() -> None:
    for busy in (False, True):
        there = world()
        there.pull("Tiny")
        handle = there.cache.find("mlx-community/Tiny")
        assert handle is not None
        del there.files.directories[handle.directory]["config.json"]
        if busy:
            there.cache.other_clients["mlx-community/Tiny"] = LockHolder(7, "downloading it")
        assert there.pull("Tiny", force_resume=not busy).status is PullStatus.SUCCESS
        assert "config.json" in there.files.directories[handle.directory]


def test_a_damaged_model_may_be_taken_as_it_is() -> None:
    there = world()
    there.pull("Tiny")
    handle = there.cache.find("mlx-community/Tiny")
    assert handle is not None
    del there.files.directories[handle.directory]["config.json"]
    result = there.pull("Tiny", accept_damaged=True)
    assert (result.status, result.handle) == (PullStatus.ALREADY_EXISTS, handle)
    assert result.report is not None
    assert not result.report.healthy


def test_whoever_comes_second_waits_and_says_so() -> None:
    there = world()
    there.cache.busy["mlx-community/Tiny"] = LockHolder(4711, "pulling it")
    assert there.pull("Tiny").status is PullStatus.SUCCESS
    assert there.progress.notes == ["Waiting for process 4711, which is pulling it."]


def test_a_dry_run_says_what_is_missing_and_fetches_nothing() -> None:
    there = world(commits={A: {**WHOLE, "own.py": b"", "weights.bin": b""}})
    result = there.pull("Tiny", dry_run=True)
    assert result.plan is not None
    assert [file.path for file in result.plan.files] == ["config.json", "model.safetensors"]
    assert [file.path for file in result.plan.skipped] == ["own.py", "weights.bin"]
    assert result.missing_bytes == result.plan.size_bytes == sum(map(len, WHOLE.values()))
    assert there.cache.models == {}


def test_a_disk_that_is_too_small_is_named_before_anything_is_fetched() -> None:
    there = world(free=1000)
    with pytest.raises(StorageError) as failure:
        there.pull("Tiny")
    assert failure.value.detail == {
        "needed_bytes": sum(map(len, WHOLE.values())),
        "reserve_bytes": SPARE_BYTES,
        "free_bytes": 1000,
        "size_bytes": sum(map(len, WHOLE.values())),
    }
    assert there.cache.models == {}


def test_a_failure_passes_on_and_a_model_that_is_not_for_mlx_comes_with_a_warning() -> None:
    there = world()
    there.hub.failure = NetworkError("the hub is not well")
    with pytest.raises(MlxkError, match="not well"):
        there.pull("Tiny")
    there.hub.models["acme/Plain"] = RemoteRepository({A: WHOLE}, {"main": A}, made_for_mlx=False)
    assert "not marked as an MLX model" in (there.pull("acme/Plain").warning or "")
    assert "not marked as an MLX model" in there.progress.notes[0]


def test_the_built_in_model_is_there_already() -> None:
    result = world().pull("demo")
    assert (result.status, result.name) == (PullStatus.ALREADY_EXISTS, "demo")
