"""Describing a model before a download, decided on doubles."""

import json

import pytest
from doubles.memory_probe import InMemoryMemoryProbe
from doubles.model_cache import InMemoryModelCache
from doubles.model_hub import InMemoryModelHub, RemoteRepository

from mlxk.application.use_cases.browse_hub import ShowRemoteModel
from mlxk.domain.errors import ModelNotFoundError, RevisionNotFoundError, ValidationError
from mlxk.domain.models.footprint import RESERVE_BYTES, MemoryFit, MemoryReading

A = "a" * 40
SHAPE = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64, "max_position_embeddings": 512}
FILES = {"config.json": json.dumps(SHAPE).encode(), "model.safetensors": bytes(5000), "own.py": b"1"}


@pytest.fixture
def show() -> ShowRemoteModel:
    models = {
        "mlx-community/m": RemoteRepository({A: FILES}, {"main": A}),
        "org/gated": RemoteRepository({A: FILES}, {"main": A}, gated=True),
        "org/pickle": RemoteRepository({A: {"model.bin": b"1"}}, {"main": A}),
    }
    cache = InMemoryModelCache(free=10**9)
    memory = InMemoryMemoryProbe(MemoryReading(total=2**40, available=2**40))
    return ShowRemoteModel(cache, InMemoryModelHub(models, cache), memory, "mlx-community")


def test_the_estimate_holds_weights_the_cache_of_a_context_and_a_reserve(show: ShowRemoteModel) -> None:
    found = show("m")
    assert found.plan is not None
    assert found.verdict is not None
    assert (found.card.model.name, found.context_length, found.free_bytes) == ("mlx-community/m", 512, 10**9)
    assert found.missing_bytes == found.plan.size_bytes == 5000 + len(FILES["config.json"])
    assert (found.verdict.needed, found.verdict.fit) == (5000 + 512 * 2 * 2 * 2 * 64 + RESERVE_BYTES, MemoryFit.FITS)


def test_of_a_gated_model_the_weights_alone_are_judged(show: ShowRemoteModel) -> None:
    found = show("org/gated")
    assert found.verdict is not None
    assert (found.card.accessible, found.context_length, found.verdict.cache_per_token) == (False, None, 0)


def test_a_model_without_usable_weights_has_a_reason(show: ShowRemoteModel) -> None:
    found = show("org/pickle")
    assert (found.plan, found.verdict, found.missing_bytes) == (None, None, None)
    assert found.reason


def test_what_is_no_name_on_the_hub_is_refused(show: ShowRemoteModel) -> None:
    with pytest.raises(ValidationError):
        show("./m")
    with pytest.raises(ModelNotFoundError):
        show("org/none")
    with pytest.raises(RevisionNotFoundError):
        show("m@nope")
