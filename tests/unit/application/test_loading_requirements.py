"""What every model must pass before it is loaded: in this order, and with these words."""

import contextlib
import datetime

import attrs
import pytest
from doubles.event_log import InMemoryEventLog
from doubles.memory_probe import InMemoryMemoryProbe

from mlxk.application.policy import estimate_memory, require_loadable, require_memory
from mlxk.domain.errors import (
    Advice,
    CapabilityError,
    IncompatibleModelError,
    InsufficientMemoryError,
    Remedy,
    UnhealthyModelError,
)
from mlxk.domain.models.footprint import RESERVE_BYTES, MemoryReading
from mlxk.domain.models.model import (
    Capability,
    Framework,
    ModelDescription,
    ModelHandle,
    ModelType,
    Origin,
    Runtime,
    healthy,
    unhealthy,
)
from mlxk.domain.ranks import Division, share_of

GIB = 1024**3

MODEL = ModelDescription(
    handle=ModelHandle("org/m", "/cache/org/m", Origin.CACHE, "a" * 40),
    size_bytes=2 * GIB,
    weight_bytes=GIB,
    modified=datetime.datetime.fromtimestamp(0, datetime.UTC),
    framework=Framework.MLX,
    model_type=ModelType.CHAT,
    capabilities=(Capability.TEXT_GENERATION, Capability.CHAT),
    context_length=None,
    health=healthy(),
    runtime=Runtime(True),
)
DAMAGE = {"health": unhealthy("Weights are missing")}
NO_BACKEND = {"runtime": Runtime(False, "mlx-lm is not installed")}


def any_kind(description: ModelDescription) -> None:
    """Take every model."""


def another_kind(description: ModelDescription) -> None:
    """Take none."""
    raise CapabilityError(f"'{description.handle.name}' is of another kind")


def test_a_whole_model_of_the_kind_that_an_installed_backend_runs_is_let_through() -> None:
    require_loadable(MODEL, any_kind)


def test_damage_is_told_before_anything_else() -> None:
    with pytest.raises(UnhealthyModelError) as refused:
        require_loadable(attrs.evolve(MODEL, **DAMAGE, **NO_BACKEND), another_kind)
    assert refused.value.message == "'org/m' is damaged or incomplete: Weights are missing"
    assert refused.value.hint == Advice(Remedy.CHECK_HEALTH, {"name": "org/m"})


@pytest.mark.parametrize("origin", [Origin.CACHE, Origin.WORKSPACE])
def test_a_partial_download_of_the_cache_is_to_be_completed_or_removed(origin: Origin) -> None:
    health = unhealthy("Partial download: no model weights found", fix=Remedy.REPAIR_INDEX)
    with pytest.raises(UnhealthyModelError) as refused:
        require_loadable(attrs.evolve(MODEL, health=health, handle=attrs.evolve(MODEL.handle, origin=origin)), any_kind)
    assert refused.value.fix is Remedy.REPAIR_INDEX
    if origin is Origin.CACHE:
        assert refused.value.hint == Advice(Remedy.COMPLETE_OR_REMOVE, {"reference": "org/m", "name": "org/m"})
    else:
        assert refused.value.hint == Advice(Remedy.CHECK_HEALTH, {"name": "org/m"})


def test_another_kind_is_told_before_a_backend_that_is_missing() -> None:
    with pytest.raises(CapabilityError, match="another kind"):
        require_loadable(attrs.evolve(MODEL, **NO_BACKEND), another_kind)


def test_a_model_that_no_backend_runs_is_refused_with_the_reason() -> None:
    with pytest.raises(IncompatibleModelError) as refused:
        require_loadable(attrs.evolve(MODEL, **NO_BACKEND), any_kind)
    assert refused.value.message == "'org/m' cannot run here: mlx-lm is not installed"
    assert refused.value.hint is None


def test_what_helps_a_model_that_no_backend_runs_is_told_where_it_is_known() -> None:
    runtime = Runtime(False, "Quantized by gptq", remedy=Remedy.FIND_CONVERSION)
    with pytest.raises(IncompatibleModelError) as refused:
        require_loadable(attrs.evolve(MODEL, runtime=runtime), any_kind)
    assert refused.value.hint == Advice(Remedy.FIND_CONVERSION)


def test_a_model_beyond_the_memory_budget_is_refused_with_the_numbers() -> None:
    reading = MemoryReading(GIB, GIB)
    with pytest.raises(InsufficientMemoryError, match="'org/m' does not fit") as refused:
        require_memory(MODEL, InMemoryMemoryProbe(reading))
    assert refused.value.detail == {"needed_bytes": GIB + RESERVE_BYTES, "budget_bytes": reading.budget}


def test_who_is_to_be_warned_gets_the_numbers_in_place_of_a_refusal() -> None:
    log, reading = InMemoryEventLog(), MemoryReading(GIB, GIB)
    require_memory(MODEL, InMemoryMemoryProbe(reading), warn=log)
    (event,) = log.events
    assert event.level == "warning"
    assert event.fields == {
        "model": "org/m",
        "needed_bytes": GIB + RESERVE_BYTES,
        "budget_bytes": reading.budget,
    }


@pytest.mark.parametrize("reading", [None, MemoryReading(64 * GIB, GIB), MemoryReading(64 * GIB, 64 * GIB)], ids=str)
def test_a_model_within_the_budget_or_on_a_machine_that_does_not_tell_is_let_through(
    reading: MemoryReading | None,
) -> None:
    log = InMemoryEventLog()
    require_memory(MODEL, InMemoryMemoryProbe(reading))
    require_memory(MODEL, InMemoryMemoryProbe(reading), warn=log)
    assert log.events == []


def test_a_loaded_model_is_not_judged_again() -> None:
    require_memory(MODEL, InMemoryMemoryProbe(MemoryReading(GIB, GIB)), loaded=lambda: [MODEL.handle])


@pytest.mark.parametrize(("window", "tokens"), [(None, 4096), (8192, 4096), (100, 100)])
def test_the_estimate_includes_the_cache_of_a_long_chat_or_of_a_shorter_window(window: int | None, tokens: int) -> None:
    model = attrs.evolve(MODEL, cache_per_token=1000, context_length=window)
    verdict = estimate_memory(model, InMemoryMemoryProbe(None))
    assert (verdict.weights, verdict.needed) == (GIB, GIB + 1000 * tokens + RESERVE_BYTES)
    assert estimate_memory(model, InMemoryMemoryProbe(None), 7).needed == GIB + 7000 + RESERVE_BYTES


SPREAD = attrs.evolve(
    MODEL, weight_bytes=10 * GIB, undivided_bytes=GIB, half_bytes=10 * GIB, cache_per_token=2000, plain_bytes=GIB
)


def test_ranks_hold_equal_parts_of_the_layers_and_of_the_cache_and_all_that_is_outside_of_layers() -> None:
    share = share_of(SPREAD, 3)
    assert (share.weight_bytes, share.cache_per_token) == (4 * GIB, 667)
    assert (share.half_bytes, share.plain_bytes) == (4 * GIB, None)
    assert share_of(SPREAD, 3, held=2).weight_bytes == 8 * GIB


@pytest.mark.parametrize(
    ("local_ranks", "hosts", "is_refused"),
    [
        (1, (), True),
        (2, (), True),  # both are on this machine
        (1, (("one", "192.0.2.1", None), ("two", "192.0.2.2", None)), False),
    ],
)
def test_memory_is_judged_by_what_the_ranks_of_this_machine_hold(
    local_ranks: int, hosts: tuple[tuple[str, str, None], ...], is_refused: bool
) -> None:
    held = Division.of(local_ranks, hosts, 5.0).held_here(SPREAD)
    with pytest.raises(InsufficientMemoryError) if is_refused else contextlib.nullcontext():
        require_memory(held, InMemoryMemoryProbe(MemoryReading(9 * GIB, 9 * GIB)))
