"""The contract of the hub as a source of models, held by every adapter."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from doubles.model_cache import InMemoryModelCache
from doubles.model_files import InMemoryModelFiles
from doubles.model_hub import InMemoryModelHub, RemoteRepository
from doubles.progress import InMemoryProgress
from hub.server import LoopbackHub
from hub.storage import commit as add_commit

from mlxk.adapters.huggingface.cache import HuggingFaceModelCache
from mlxk.adapters.huggingface.client import HubAccess, HubClient, RetryPolicy
from mlxk.adapters.huggingface.hub import HuggingFaceModelHub
from mlxk.application.ports.hub import ModelHub
from mlxk.application.ports.model_cache import ModelCache
from mlxk.domain.errors import AccessDeniedError, ModelNotFoundError, RevisionNotFoundError, ValidationError
from mlxk.domain.hub import plan_download

FILES = {"config.json": b"{}", "model.safetensors": bytes(1000), "sub/tokenizer.json": b"[1]", "own.py": b"1"}
Build = Callable[[Mapping[str, bytes]], tuple[ModelHub, ModelCache]]


@pytest.fixture(params=["huggingface", "in_memory"])
def build(request: pytest.FixtureRequest, hub: LoopbackHub, tmp_path: Path) -> Build:
    def on_loopback(files: Mapping[str, bytes]) -> tuple[ModelHub, ModelCache]:
        repository = hub.add("org/m", files, tags=("mlx",))
        hub.change(repository, {"config.json": b"{ }"}, branch="dev")
        hub.add("org/gated", FILES, gated="manual")
        add_commit(repository, repository.files("main"), "v1/rc", "a branch with a slash")
        client = HubClient(HubAccess(hub.url, retry_policy=RetryPolicy(retries=2, first_wait=0.01), timeout=5))
        root = str(tmp_path / "cache")
        return HuggingFaceModelHub(client, root), HuggingFaceModelCache(root)

    def in_memory(files: Mapping[str, bytes]) -> tuple[ModelHub, ModelCache]:
        cache = InMemoryModelCache()
        commits = {"a" * 40: files, "b" * 40: {**files, "config.json": b"{ }"}, "c" * 40: files}
        branches = {"main": "a" * 40, "dev": "b" * 40, "v1/rc": "c" * 40}
        models = {
            "org/m": RemoteRepository(commits, branches),
            "org/gated": RemoteRepository({"d" * 40: FILES}, {"main": "d" * 40}, gated=True, made_for_mlx=False),
        }
        return InMemoryModelHub(models, cache, InMemoryModelFiles()), cache

    return on_loopback if request.param == "huggingface" else in_memory


def test_a_model_is_described_with_all_its_files_sorted(build: Build) -> None:
    hub, _ = build(FILES)
    model = hub.describe("org/m")
    sizes = {file.path: file.size_bytes for file in model.files if file.path != ".gitattributes"}
    assert sizes == {path: len(content) for path, content in FILES.items()}
    assert [file.path for file in model.files] == sorted(file.path for file in model.files)
    assert (model.name, model.reference, model.made_for_mlx) == ("org/m", "main", True)
    assert [len(file.digest) for file in model.files if file.path == "model.safetensors"] == [64]


def test_branches_and_commits_are_different_revisions(build: Build) -> None:
    hub, _ = build(FILES)
    main, dev = hub.describe("org/m"), hub.describe("org/m", "dev")
    assert main.commit != dev.commit
    assert (dev.reference, hub.describe("org/m", "v1/rc").reference) == ("dev", "v1/rc")
    by_commit = hub.describe("org/m", main.commit)
    assert (by_commit.commit, by_commit.reference) == (main.commit, None)


def test_a_card_tells_of_a_gated_model_what_is_public(build: Build) -> None:
    hub, _ = build({**FILES, "config.json": b'{"model_type": "llama"}'})
    card = hub.card("org/m")
    assert (card.model, card.accessible, card.gated) == (hub.describe("org/m"), True, False)
    assert card.config == {"model_type": "llama"}
    gated = hub.card("org/gated")
    assert (gated.accessible, gated.gated, gated.config) == (False, True, None)
    assert {file.path for file in gated.model.files} >= set(FILES)
    with pytest.raises(ModelNotFoundError):
        hub.card("org/none")
    with pytest.raises(RevisionNotFoundError):
        hub.card("org/m", "nope")


def test_the_newest_commit_is_that_of_the_default_branch(build: Build) -> None:
    hub, _ = build(FILES)
    assert hub.newest_commit("org/m") == hub.describe("org/m").commit
    assert len(hub.newest_commit("org/gated")) == 40
    with pytest.raises(ModelNotFoundError):
        hub.newest_commit("org/none")
    with pytest.raises(ValidationError):
        hub.newest_commit("bare")


def test_a_search_finds_models_by_words_of_their_names(build: Build) -> None:
    hub, _ = build(FILES)
    found = hub.search("ORG", 10, mlx_only=False)
    assert sorted((each.name, each.made_for_mlx, each.gated) for each in found) == [
        ("org/gated", False, True),
        ("org/m", True, False),
    ]
    assert [each.name for each in hub.search("org m", 10, mlx_only=True)] == ["org/m"]
    assert len(hub.search("org", 1, mlx_only=False)) == 1
    assert hub.search("nosuch", 10, mlx_only=False) == ()


def test_what_is_not_there_or_not_allowed_is_told_apart(build: Build) -> None:
    hub, _ = build(FILES)
    with pytest.raises(ModelNotFoundError):
        hub.describe("org/none")
    with pytest.raises(RevisionNotFoundError):
        hub.describe("org/m", "nope")
    with pytest.raises(AccessDeniedError):
        hub.describe("org/gated")


@pytest.mark.parametrize(
    ("name", "revision"),
    [("m", None), ("../m", None), ("org/../m", None), ("org/m", "../x"), ("org/m", "a//b"), ("org/m", "a\nb")],
)
def test_names_that_could_lead_out_of_the_cache_are_refused(build: Build, name: str, revision: str | None) -> None:
    hub, _ = build(FILES)
    with pytest.raises(ValidationError):
        hub.describe(name, revision)


def test_fetched_files_appear_in_the_cache_under_revision_and_reference(build: Build) -> None:
    hub, cache = build(FILES)
    progress = InMemoryProgress()
    plan = plan_download(hub.describe("org/m", "dev"))
    assert hub.missing_bytes(plan) == plan.size_bytes
    assert cache.find("org/m") is None
    hub.fetch(plan, progress)
    handle = cache.find("org/m", "dev")
    assert handle is not None
    assert handle.revision == plan.model.commit
    assert hub.missing_bytes(plan) == 0
    assert progress.finished == {file.path: file.size_bytes for file in plan.files}
    assert not progress.running


def test_fetching_again_changes_nothing_and_a_second_revision_joins_the_first(build: Build) -> None:
    hub, cache = build(FILES)
    first, second = plan_download(hub.describe("org/m")), plan_download(hub.describe("org/m", "dev"))
    hub.fetch(first, InMemoryProgress())
    hub.fetch(first, InMemoryProgress(), verify_present=True)
    assert 0 < hub.missing_bytes(second) < second.size_bytes
    hub.fetch(second, InMemoryProgress())
    found = [cache.find("org/m", commit) for commit in (first.model.commit, second.model.commit)]
    assert all(found)
    main = cache.find("org/m")
    assert main is not None
    assert main.revision == first.model.commit
