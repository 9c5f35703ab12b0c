"""Searching, decided on doubles: order, limits, what fits, and how often the hub is asked."""

import pytest
from doubles.memory_probe import InMemoryMemoryProbe
from doubles.model_hub import InMemoryModelHub, RemoteRepository

from mlxk.application.use_cases.browse_hub import SearchModels
from mlxk.domain.errors import ValidationError
from mlxk.domain.models.footprint import MemoryFit, MemoryReading

GIB = 1024**3
FITS = {1 * GIB: MemoryFit.FITS, 6 * GIB: MemoryFit.TIGHT, 12 * GIB: MemoryFit.EXCEEDS, None: MemoryFit.UNKNOWN}


@pytest.fixture
def hub() -> InMemoryModelHub:
    models = {
        f"org/llama-{number}": RemoteRepository({}, made_for_mlx=number % 2 == 0, downloads=number, weight_bytes=size)
        for number, size in enumerate(FITS)
    }
    return InMemoryModelHub({**models, "org/other": RemoteRepository({})})


def search(hub: InMemoryModelHub) -> SearchModels:
    return SearchModels(hub, InMemoryMemoryProbe(MemoryReading(total=16 * GIB, available=4 * GIB)))


def test_models_for_mlx_first_then_by_downloads_each_once(hub: InMemoryModelHub) -> None:
    found = search(hub)("  llama ")
    assert [each.model.name for each in found] == ["org/llama-2", "org/llama-0", "org/llama-3", "org/llama-1"]
    assert hub.requests == 2


def test_what_fits_is_judged_by_the_weights(hub: InMemoryModelHub) -> None:
    assert {each.model.weight_bytes: each.fit for each in search(hub)("llama")} == FITS


def test_the_hub_is_asked_once_where_that_is_enough(hub: InMemoryModelHub) -> None:
    assert len(search(hub)("llama", 2)) == 2
    assert hub.requests == 1
    assert [each.model.made_for_mlx for each in search(hub)("llama", 50, mlx_only=True)] == [True, True]
    assert hub.requests == 2


@pytest.mark.parametrize(("terms", "limit"), [("", 5), (" \t", 5), ("x" * 201, 5), ("x", 0), ("x", 101)])
def test_terms_and_limits_out_of_range_are_refused_before_any_request(
    hub: InMemoryModelHub, terms: str, limit: int
) -> None:
    with pytest.raises(ValidationError):
        search(hub)(terms, limit)
    assert hub.requests == 0
