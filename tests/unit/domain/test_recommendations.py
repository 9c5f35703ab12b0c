"""Recommended models: the size of their weights, and their order."""

import itertools

import pytest

from mlxk.domain.hub import Fact, Purpose, Recommendation, RecommendedModel, best_first
from mlxk.domain.models.footprint import MemoryFit


def model(
    name: str = "org/m",
    *,
    purpose: Purpose = Purpose.CHAT,
    bits: int = 4,
    group_size: int | None = 64,
    parameters: int | None = None,
    stated: int | None = None,
) -> RecommendedModel:
    """Return a model of which a page states some figures."""

    def fact(value: int | None) -> Fact[int] | None:
        return None if value is None else Fact(value, "https://example.org", "2026-11-29")

    return RecommendedModel(name, purpose, "It is good.", bits, group_size, fact(parameters), fact(stated), None, None)


@pytest.mark.parametrize(
    ("chosen", "size", "computed"),
    [
        (model(parameters=1000, stated=777), 777, False),
        (model(parameters=1600), 1600 * 4.5 / 8, True),
        (model(parameters=1600, bits=8, group_size=32), 1600 * 9 / 8, True),
        (model(parameters=1600, bits=16, group_size=None), 1600 * 2, True),
        (model(), 0, True),
    ],
)
def test_weights_have_the_stated_size_or_that_of_their_parameters_with_scales_or_none(
    chosen: RecommendedModel, size: int, computed: bool
) -> None:
    assert (chosen.weight_bytes, chosen.is_computed) == (size, computed)


def test_what_fits_comes_first_the_largest_of_it_before_others_and_the_smallest_of_what_does_not_fit() -> None:
    order = [
        Recommendation(model("a", stated=9), MemoryFit.FITS),
        Recommendation(model("b", stated=5), MemoryFit.FITS),
        Recommendation(model("c", stated=12), MemoryFit.TIGHT),
        Recommendation(model("d"), MemoryFit.UNKNOWN),
        Recommendation(model("e", stated=20), MemoryFit.EXCEEDS),
        Recommendation(model("f", stated=30), MemoryFit.EXCEEDS),
        Recommendation(model("g", purpose=Purpose.CODE, stated=1), MemoryFit.FITS),
    ]
    for given in itertools.permutations(order):
        assert list(best_first(given)) == order
