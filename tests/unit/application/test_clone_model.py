"""Cloning, decided on doubles: where the source comes from, and what becomes a workspace."""

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
from mlxk.application.ports.model_directories import CopyMethod
from mlxk.application.use_cases.clone_model import CloneModel, CloneRequest, CloneResult
from mlxk.application.use_cases.describe_model import DescribeModel
from mlxk.application.use_cases.pull_model import PullModel
from mlxk.application.use_cases.resolve_model import ResolveModel
from mlxk.domain.errors import ModelNotFoundError, RequiresConfirmationError, UnhealthyModelError, ValidationError
from mlxk.domain.models.model import Workspace

WHOLE = {"config.json": b'{"model_type": "x"}', "model.safetensors": b"\x02\0\0\0\0\0\0\0{}"}
A, B = "a" * 40, "b" * 40
HOME = "/home/me/models"


@attrs.define(slots=False)
class World:
    """A hub, a cache and a workspace home."""

    files: InMemoryModelFiles = attrs.field(factory=lambda: InMemoryModelFiles({"/demo": WHOLE}))
    method: CopyMethod = CopyMethod.CLONED
    progress: InMemoryProgress = attrs.field(factory=InMemoryProgress)

    def __attrs_post_init__(self) -> None:
        self.cache = InMemoryModelCache(files=self.files)
        self.store = InMemoryWorkspaceStore(home=HOME, files=self.files, protected=("/cache",))
        self.store.method = self.method
        models = {"org/m": RemoteRepository({A: WHOLE, B: {**WHOLE, "new.json": b"{}"}}, {"main": A, "dev": B})}
        self.hub = InMemoryModelHub(models, self.cache, self.files)
        self.describe = DescribeModel(
            self.files, self.store, InMemoryBackendRegistry(), self.cache, default_owner="mlx-community"
        )

    def clone(
        self, reference: str, target: str | None = None, answer: bool | None = None, **options: object
    ) -> CloneResult:
        built_in = InMemoryModelSource({"demo": "/demo"})
        pull = PullModel(self.cache, built_in, self.hub, self.describe, "mlx-community")
        resolve = ResolveModel(self.cache, self.store, built_in, default_owner="mlx-community")
        clone = CloneModel(resolve, pull, self.files, self.store, self.cache, self.describe)
        request = CloneRequest(reference, target, **options)  # type: ignore[arg-type]
        return clone(request, self.progress, InMemoryConfirmation(answer))


def test_what_is_not_cached_is_pulled_and_what_is_cached_is_not_asked_for_again() -> None:
    there = World()
    first = there.clone("org/m")
    assert first.handle is not None
    assert first.handle.directory == f"{HOME}/m"
    assert there.files.directories[f"{HOME}/m"] == WHOLE
    assert (first.provenance.source_repo, first.provenance.source_revision) == ("org/m", A)
    asked = there.hub.requests
    assert there.clone("org/m", "other").handle is not None
    assert there.hub.requests == asked


def test_a_revision_or_branch_is_cloned_as_it_is() -> None:
    there = World()
    for options in ({"reference": "org/m@dev"}, {"reference": "org/m", "branch": "dev"}):
        result = there.clone(target=f"copy-{len(options)}", **options)  # type: ignore[arg-type]
        assert result.provenance.source_revision == B
        assert "new.json" in there.files.directories[f"{HOME}/copy-{len(options)}"]
    for reference, branch in (("org/m@main", "dev"), ("demo", "dev"), ("./m", "dev"), ("org/m", "../dev")):
        with pytest.raises(ValidationError):
            there.clone(reference, "x", branch=branch)


def test_a_built_in_model_and_a_workspace_can_be_cloned_too_without_their_record() -> None:
    there = World()
    demo = there.clone("demo")
    assert (demo.provenance.source_repo, demo.provenance.source_revision) == ("demo", None)
    there.store.workspaces[f"{HOME}/mine"] = Workspace(managed=True, source_repo="org/m", source_revision=A)
    there.files.directories[f"{HOME}/mine"] = {**WHOLE, ".mlxk_workspace.json": b"{}", ".hf_cache/x": b"", "sub/a": b""}
    for reference in ("mine", f"{HOME}/mine"):
        result = there.clone(reference, f"copy-{len(reference)}")
        assert result.provenance.source_repo == "org/m"
        assert set(there.files.directories[f"{HOME}/copy-{len(reference)}"]) == {*WHOLE, "sub/a"}
    assert there.hub.requests == 0


def test_copies_that_take_space_are_announced_once() -> None:
    there = World(method=CopyMethod.COPIED)
    result = there.clone("org/m")
    assert result.methods[CopyMethod.COPIED] == len(WHOLE)
    assert len(there.progress.notes) == 1
    assert World().clone("org/m").methods[CopyMethod.CLONED] == len(WHOLE)


def test_a_model_that_is_not_whole_makes_no_workspace_unless_it_may() -> None:
    there = World()
    there.files.directories["/demo"] = {"config.json": b"{}"}
    with pytest.raises(UnhealthyModelError):
        there.clone("demo")
    assert (there.store.workspaces, there.progress.activities) == ({}, [])
    result = there.clone("demo", check_health=False)
    assert (result.report, list(there.store.workspaces)) == (None, [f"{HOME}/demo"])


def test_the_target_is_settled_before_anything_is_fetched() -> None:
    there = World()
    there.clone("demo", "taken")
    for target in ("taken", "/cache/x", "/cache", ""):
        with pytest.raises(ValidationError):
            there.clone("org/m", target)
    with pytest.raises(ValidationError):
        there.clone("/home/me/models/taken", "/home/me/models/taken/inside")
    with pytest.raises(ModelNotFoundError):
        there.clone("./nothing", "x")
    assert there.hub.requests == 0


def test_a_partial_model_in_the_cache_needs_a_yes() -> None:
    there = World()
    there.cache.models["org/m"] = CachedModel(unfinished=1)
    with pytest.raises(RequiresConfirmationError):
        there.clone("org/m")
    refused = there.clone("org/m", answer=False)
    assert (refused.handle, refused.source.name, refused.methods) == (None, "org/m", {})
    assert (there.store.workspaces, there.cache.models["org/m"]) == ({}, CachedModel(unfinished=1))
    assert there.clone("org/m", force_resume=True).handle is not None


def test_a_model_that_somebody_works_on_is_waited_for() -> None:
    there = World()
    there.clone("org/m")
    there.cache.busy["org/m"] = LockHolder(4711, "removing it")
    assert there.clone("org/m", "again").handle is not None
    assert "Waiting for process 4711, which is removing it." in there.progress.notes
