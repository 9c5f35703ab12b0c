"""What nothing uses, decided on doubles: what may go, who says yes, and what others hold."""

import attrs
import pytest
from doubles.confirmation import InMemoryConfirmation
from doubles.model_cache import PARTIAL_BYTES, CachedModel, InMemoryModelCache
from doubles.model_files import InMemoryModelFiles

from mlxk.application.ports.model_cache import LockHolder
from mlxk.application.use_cases.cache_upkeep import MeasureCache, PruneCache, PruneRequest, PruneResult, PruneStatus
from mlxk.domain.errors import ModelNotFoundError, RequiresConfirmationError
from mlxk.domain.models.disk_usage import ModelUsage, StoredContent, WasteKind, find_waste

A, B, C = "a" * 40, "b" * 40, "c" * 40
SHARED, OLD, NEW = b"both" * 10, b"only the old one", b"new"


@attrs.define
class World:
    """A cache with waste, and somebody at the terminal or nobody."""

    cache: InMemoryModelCache
    confirmation: InMemoryConfirmation

    def prune(self, pattern: str | None = None, **options: object) -> PruneResult:
        request = attrs.evolve(PruneRequest(pattern), **options)
        return PruneCache(self.cache, MeasureCache(self.cache))(request, self.confirmation)


@pytest.fixture
def there() -> World:
    files = InMemoryModelFiles(
        {
            f"/cache/org/m/{A}": {"w": SHARED, "c": OLD},
            f"/cache/org/m/{B}": {"w": SHARED, "c": NEW},
            f"/cache/org/m/{C}": {"w": SHARED, "c": OLD, "d": b"dev"},
        }
    )
    cache = InMemoryModelCache({"org/clean": CachedModel((A,), {"main": A})}, files=files)
    cache.models["org/m"] = CachedModel((A, B, C), {"main": B, "dev": C}, unfinished=2, orphaned={"orphan": 100})
    cache.models["org/half"] = CachedModel(unfinished=1)
    return World(cache, InMemoryConfirmation(None))


def test_models_are_measured_with_every_kind_of_waste(there: World) -> None:
    usage = MeasureCache(there.cache)()
    models = {each.usage.name: each for each in usage.models}
    assert list(models) == ["org/clean", "org/half", "org/m"]
    assert models["org/clean"].waste is None
    waste = models["org/m"].waste
    assert waste is not None
    # What the old revision alone has is nothing: its config is that of dev as well.
    assert (waste.revisions, waste.orphaned, len(waste.partial)) == ((A,), ("orphan",), 2)
    assert waste.size_bytes == 100 + 2 * PARTIAL_BYTES
    assert usage.waste_bytes == waste.size_bytes + PARTIAL_BYTES


def test_a_pattern_selects_models_by_a_part_of_their_names(there: World) -> None:
    assert [each.usage.name for each in MeasureCache(there.cache)("HALF").models] == ["org/half"]
    assert MeasureCache(there.cache)("none").models == ()
    with pytest.raises(ModelNotFoundError):
        there.prune("none")


def test_nothing_is_removed_without_a_yes(there: World) -> None:
    with pytest.raises(RequiresConfirmationError) as caught:
        there.prune()
    assert any(A[:12] in line for line in caught.value.matches)
    there.confirmation = InMemoryConfirmation(False)
    assert there.prune().status is PruneStatus.CANCELLED
    assert there.prune(dry_run=True).status is PruneStatus.DRY_RUN
    assert there.cache.models["org/m"].revisions == (A, B, C)


def test_a_yes_removes_the_waste_and_nothing_else(there: World) -> None:
    there.confirmation = InMemoryConfirmation(True)
    result = there.prune()
    assert (result.status, [waste.name for waste in result.waste]) == (PruneStatus.PRUNED, ["org/half", "org/m"])
    assert there.cache.models["org/m"] == CachedModel((B, C), {"main": B, "dev": C})
    assert sorted(there.cache.models) == ["org/clean", "org/m"]
    assert there.prune().status is PruneStatus.NOTHING


@pytest.mark.parametrize("kind", WasteKind)
def test_one_kind_may_be_removed_alone(there: World, kind: WasteKind) -> None:
    there.confirmation = InMemoryConfirmation(True)
    there.prune(kinds={kind})
    left = there.cache.models["org/m"]
    assert (A not in left.revisions) == (kind is WasteKind.REVISIONS)
    assert (left.unfinished == 0) == (kind is WasteKind.PARTIAL)
    assert (not left.orphaned) == (kind is WasteKind.ORPHANED)
    assert ("org/half" in there.cache.models) == (kind is not WasteKind.PARTIAL)


@pytest.mark.parametrize("held", ["busy", "other_clients", "used"])
def test_what_another_process_holds_is_left_alone_and_named(there: World, held: str) -> None:
    getattr(there.cache, held)["org/m"] = LockHolder(4711, "holding it")
    there.confirmation = InMemoryConfirmation(True)
    result = there.prune()
    assert [waste.name for waste in result.waste] == ["org/half"]
    assert [(each.name, "4711" in each.reason) for each in result.spared] == [("org/m", True)]
    assert there.cache.models["org/m"].revisions == (A, B, C)


def test_what_became_of_use_since_it_was_shown_stays(there: World) -> None:
    class Changing(InMemoryConfirmation):
        def ask(self, facts: tuple[str, ...], question: str, *, default: bool) -> bool | None:
            model = there.cache.models["org/m"]
            there.cache.models["org/m"] = attrs.evolve(model, references={**model.references, "v1": A}, orphaned={})
            del there.cache.models["org/half"]
            return True

    there.confirmation = Changing(True)
    result = there.prune()
    assert there.cache.models["org/m"].revisions == (A, B, C)
    assert [(waste.name, waste.revisions, waste.orphaned) for waste in result.waste] == [("org/m", (), ())]


@pytest.mark.parametrize("held", ["busy", "used"])
def test_what_another_process_took_since_it_was_shown_is_left_alone_and_named(there: World, held: str) -> None:
    class Taking(InMemoryConfirmation):
        def ask(self, facts: tuple[str, ...], question: str, *, default: bool) -> bool | None:
            getattr(there.cache, held)["org/m"] = LockHolder(4711, "holding it")
            return True

    there.confirmation = Taking(True)
    result = there.prune()
    assert (result.status, [waste.name for waste in result.waste]) == (PruneStatus.PRUNED, ["org/half"])
    assert [(each.name, each.reason) for each in result.spared] == [
        ("org/m", "in use by process 4711, which is holding it")
    ]
    assert there.cache.models["org/m"].revisions == (A, B, C)


def test_what_links_lead_to_is_never_waste() -> None:
    contents = (StoredContent("x", "1", 5),)
    assert find_waste(ModelUsage("org/m", (), contents, link_to="/elsewhere"), set(WasteKind)) is None
    assert find_waste(ModelUsage("org/m", (), contents, linked_parts=("refs",)), set(WasteKind)) is None


def test_contents_of_other_models_count_once_and_free_nothing() -> None:
    usage = ModelUsage("org/m", (), (StoredContent("x", "1", 5), StoredContent("y", "2", 7)))
    waste = find_waste(usage, {WasteKind.ORPHANED}, elsewhere={"1"})
    assert waste is not None
    assert (waste.size_bytes, usage.shared_bytes({"1"}), usage.total_bytes) == (7, 5, 12)
