"""Removing, decided on doubles: what a reference may take away, and who has to say yes."""

import attrs
import pytest
from doubles.confirmation import InMemoryConfirmation
from doubles.model_cache import CachedModel, InMemoryModelCache
from doubles.model_files import InMemoryModelFiles
from doubles.model_source import InMemoryModelSource
from doubles.progress import InMemoryProgress
from doubles.workspace_store import InMemoryWorkspaceStore

from mlxk.application.ports.model_cache import LockHolder
from mlxk.application.use_cases.remove_models import RemoveModel, RemoveRequest, RemoveResult
from mlxk.application.use_cases.resolve_model import ResolveModel
from mlxk.domain.errors import (
    Advice,
    AmbiguousModelError,
    LocksPresentError,
    ModelNotFoundError,
    Remedy,
    RequiresConfirmationError,
    RevisionNotFoundError,
    ValidationError,
    WorkspaceModelError,
)
from mlxk.domain.models.model import ModelHandle, Workspace

A, B = "a" * 40, "b" * 40
NAMES = ("acme/test-one", "acme/test-two", "beta/test-one", "acme/Other")


@attrs.define
class World:
    """A cache, and what removes from it."""

    cache: InMemoryModelCache
    confirmation: InMemoryConfirmation
    progress: InMemoryProgress = attrs.field(factory=InMemoryProgress)

    def remove(self, reference: str, **flags: bool) -> RemoveResult:
        built_in = InMemoryModelSource({"demo": "/demo"})
        workspaces = InMemoryWorkspaceStore({"/home/me/ws": Workspace(managed=True)}, home="/home/me")
        resolve = ResolveModel(self.cache, workspaces, built_in, default_owner="mlx-community")
        return RemoveModel(self.cache, resolve)(RemoveRequest(reference, **flags), self.confirmation, self.progress)


@pytest.fixture
def there() -> World:
    """Return a cache with four models, one of them in two revisions, and nobody at the terminal."""
    files = InMemoryModelFiles({f"/cache/{name}/{A}": {"w": name.encode()} for name in NAMES})
    cache = InMemoryModelCache({name: CachedModel((A,), {"main": A}) for name in NAMES}, files=files)
    cache.models["acme/Other"] = CachedModel((A, B), {"main": B})
    return World(cache, InMemoryConfirmation(None))


def test_an_exact_name_is_removed_at_once(there: World) -> None:
    result = there.remove("acme/test-one")
    assert (result.done, [removal.name for removal in result.removals]) == (True, ["acme/test-one"])
    assert sorted(there.cache.models) == ["acme/Other", "acme/test-two", "beta/test-one"]


def test_a_model_that_was_removed_since_it_was_found_is_not_found() -> None:
    class Vanishing(InMemoryModelCache):
        def find(self, name: str, revision: str | None = None) -> ModelHandle | None:
            found = super().find(name, revision)
            self.models.pop("acme/test-one", None)
            return found

    there = World(Vanishing({"acme/test-one": CachedModel((A,), {"main": A})}), InMemoryConfirmation(True))
    with pytest.raises(ModelNotFoundError, match=r"^no cached model found matching 'acme/test-one'$"):
        there.remove("acme/test-one")


@pytest.mark.parametrize("reference", ["Other", "oth", "ACME/other"])
def test_anything_but_the_exact_name_needs_a_yes(there: World, reference: str) -> None:
    with pytest.raises(RequiresConfirmationError) as failure:
        there.remove(reference)
    assert failure.value.matches == ("acme/Other",)
    there.confirmation = InMemoryConfirmation(False)
    assert not there.remove(reference).done
    assert "acme/Other" in there.cache.models
    assert there.confirmation.asked == [((f"'{reference}' means:", "  acme/Other"), "Remove this model?")]
    there.confirmation = InMemoryConfirmation(True)
    assert there.remove(reference).done
    assert "acme/Other" not in there.cache.models


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("test-*", ["acme/test-one", "acme/test-two", "beta/test-one"]),
        ("acme/*", ["acme/Other", "acme/test-one", "acme/test-two"]),
        ("TEST-on?", ["acme/test-one", "beta/test-one"]),
        ("*/test-[t]*", ["acme/test-two"]),
    ],
)
def test_a_pattern_selects_by_the_name_or_the_part_after_the_owner(
    there: World, pattern: str, names: list[str]
) -> None:
    with pytest.raises(RequiresConfirmationError) as failure:
        there.remove(pattern)
    assert list(failure.value.matches) == names
    assert [removal.name for removal in there.remove(pattern, dry_run=True).removals] == names
    assert len(there.cache.models) == len(NAMES)
    assert there.remove(pattern, force=True).done
    assert sorted(there.cache.models) == sorted(set(NAMES) - set(names))


def test_a_revision_goes_alone_and_the_last_one_takes_the_model_along(there: World) -> None:
    result = there.remove(f"acme/Other@{A[:7]}")
    assert (result.removals[0].revisions, result.removals[0].all_revisions) == ((A,), False)
    assert there.cache.models["acme/Other"].revisions == (B,)
    assert there.remove("acme/Other@main").removals[0].all_revisions
    assert "acme/Other" not in there.cache.models


def test_whoever_says_yes_to_a_revision_is_told_which(there: World) -> None:
    with pytest.raises(RequiresConfirmationError) as failure:
        there.remove(f"other@{A[:7]}")
    assert failure.value.matches == (f"acme/Other@{A[:12]}",)


def test_what_is_not_a_cached_model_is_refused(there: World) -> None:
    for reference, error in (
        ("acme/none", ModelNotFoundError),
        ("none-*", ModelNotFoundError),
        ("test-one", AmbiguousModelError),
        ("acme/Other@ffff", RevisionNotFoundError),
        ("demo", WorkspaceModelError),
        ("ws", WorkspaceModelError),
        ("./ws", WorkspaceModelError),
        ("test-*@main", ValidationError),
        ("./*", ValidationError),
    ):
        with pytest.raises(error) as failure:
            there.remove(reference, force=True)
        assert getattr(failure.value.hint, "remedy", None) is not Remedy.FETCH
    assert sorted(there.cache.models) == sorted(NAMES)


def test_what_somebody_works_on_stays_and_so_does_everything_else_that_was_meant(there: World) -> None:
    there.cache.busy["beta/test-one"] = LockHolder(4711, "pulling it")
    with pytest.raises(LocksPresentError, match="process 4711, which is pulling it"):
        there.remove("test-*", force=True)
    assert sorted(there.cache.models) == sorted(NAMES)


def test_what_a_server_has_in_memory_is_removed_by_force_only_once_it_is_unloaded(there: World) -> None:
    there.cache.used["acme/Other"] = LockHolder(4711, "serving it")
    with pytest.raises(LocksPresentError, match="process 4711, which is serving it") as refused:
        there.remove("acme/Other")
    assert isinstance(refused.value.hint, Advice)
    assert refused.value.hint.remedy is Remedy.UNLOAD_FIRST
    there.cache.answering.add("acme/Other")
    with pytest.raises(LocksPresentError, match="process 4711"):
        there.remove("acme/Other", force=True)
    assert "acme/Other" in there.cache.models
    there.cache.answering.clear()
    assert there.remove("acme/Other", force=True).done
    assert there.progress.notes == 2 * ["Waiting until 'acme/Other' is unloaded by process 4711, which is serving it."]


def test_a_download_that_never_finished_a_file_can_be_removed(there: World) -> None:
    there.cache.models["acme/broken"] = CachedModel(unfinished=2)
    assert there.remove("acme/broken").done
    assert "acme/broken" not in there.cache.models
