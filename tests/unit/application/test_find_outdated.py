"""Comparing cached models with the hub, decided on doubles."""

import pytest
from doubles.model_cache import CachedModel, InMemoryModelCache
from doubles.model_hub import InMemoryModelHub, RemoteRepository

from mlxk.application.use_cases.browse_hub import FindOutdated, Freshness
from mlxk.domain.errors import ModelNotFoundError, NetworkError

A, B = "a" * 40, "b" * 40


@pytest.fixture
def hub() -> InMemoryModelHub:
    return InMemoryModelHub({name: RemoteRepository({B: {}}, {"main": B}) for name in ("org/old", "org/new")})


@pytest.fixture
def find(hub: InMemoryModelHub) -> FindOutdated:
    models = {
        "org/old": CachedModel((A,), {"main": A}),
        "org/new": CachedModel((A, B), {"main": B}),
        "org/gone": CachedModel((A,), {"main": A}),
        "org/half": CachedModel(unfinished=1),
        "bare": CachedModel((A,)),
    }
    return FindOutdated(InMemoryModelCache(models), hub)


def test_each_model_is_compared_with_the_default_branch(find: FindOutdated) -> None:
    found = {each.name: (each.freshness, each.commit, each.newest) for each in find()}
    assert found == {
        "bare": (Freshness.UNKNOWN, A, None),
        "org/gone": (Freshness.UNKNOWN, A, None),
        "org/half": (Freshness.UNKNOWN, None, None),
        "org/new": (Freshness.CURRENT, B, B),
        "org/old": (Freshness.OUTDATED, A, B),
    }
    assert all(each.reason for each in find() if each.freshness is Freshness.UNKNOWN)


def test_a_pattern_selects_by_a_part_of_the_name(find: FindOutdated, hub: InMemoryModelHub) -> None:
    assert [each.name for each in find("OLD")] == ["org/old"]
    assert hub.requests == 1
    with pytest.raises(ModelNotFoundError):
        find("nosuch")


def test_a_hub_that_cannot_be_reached_is_a_failure(find: FindOutdated, hub: InMemoryModelHub) -> None:
    hub.failure = NetworkError("the hub cannot be reached")
    with pytest.raises(NetworkError):
        find("old")
