"""Formulas of numbers: seeds of several choices, and the verdict on memory at its bounds."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxk.domain.generation.request import GenerationRequest
from mlxk.domain.generation.settings import SEED_RANGE, GenerationSettings
from mlxk.domain.models import integrity
from mlxk.domain.models.file_formats import SafetensorsHeader
from mlxk.domain.models.footprint import RESERVE_BYTES, MemoryFit, MemoryReading, cache_bytes_per_token, judge_memory
from mlxk.domain.models.model import ModelHandle, Origin
from mlxk.domain.models.snapshot import ModelSnapshot

HANDLE = ModelHandle("org/model", "/models/org/model", Origin.CACHE)
GIB = 1024**3


def seeds(seed: int, count: int) -> list[int]:
    choices = GenerationRequest(HANDLE, "hi", GenerationSettings(seed=seed)).choices(count)
    found = [choice.settings.seed for choice in choices]
    assert None not in found
    return [each for each in found if each is not None]


@given(seed=st.integers(0, SEED_RANGE - 1))
def test_requests_with_neighbouring_seeds_share_no_choice(seed: int) -> None:
    neighbours = [(seed + step) % SEED_RANGE for step in range(4)]
    all_seeds = [each for neighbour in neighbours for each in seeds(neighbour, 8)]
    assert len(set(all_seeds)) == len(all_seeds)
    assert all(0 <= each < SEED_RANGE for each in all_seeds)


@given(seed=st.integers(0, SEED_RANGE - 1), count=st.integers(1, 16))
def test_more_choices_begin_with_the_same_ones(seed: int, count: int) -> None:
    assert seeds(seed, count) == seeds(seed, 16)[:count]
    assert seeds(seed, count)[0] == seed


@pytest.mark.parametrize(
    ("free", "expected"),
    [
        (GIB + RESERVE_BYTES + 10_000, MemoryFit.FITS),
        (GIB + RESERVE_BYTES + 9_999, MemoryFit.TIGHT),
        (GIB + RESERVE_BYTES, MemoryFit.TIGHT),
        (GIB, MemoryFit.TIGHT),
    ],
)
def test_a_model_is_tight_when_weights_cache_and_reserve_are_more_than_is_free(free: int, expected: MemoryFit) -> None:
    reading = MemoryReading(total=64 * GIB, available=free)
    assert judge_memory(reading, GIB, cache_per_token=100, context_tokens=100).fit is expected


def test_a_model_exceeds_the_budget_by_its_first_byte_more() -> None:
    reading = MemoryReading(total=10 * GIB, available=10 * GIB)
    most = reading.budget - RESERVE_BYTES
    assert judge_memory(reading, most).fit is MemoryFit.FITS
    assert judge_memory(reading, most + 1).fit is MemoryFit.EXCEEDS


def test_the_smaller_of_machine_and_accelerator_bounds_the_budget() -> None:
    assert MemoryReading(8 * GIB, 8 * GIB, accelerator_limit=100 * GIB).budget == MemoryReading(8 * GIB, 8 * GIB).budget


def test_the_cache_of_a_token_without_key_value_heads_or_head_size_follows_from_the_others() -> None:
    plain = {"n_layer": 2, "n_head": 4, "n_embd": 64}
    assert cache_bytes_per_token(plain) == 2 * 2 * 2 * 4 * 16
    assert cache_bytes_per_token({**plain, "head_dim": 32}) == 2 * 2 * 2 * 4 * 32
    assert cache_bytes_per_token({**plain, "num_hidden_layers": 1, "num_key_value_heads": 1}) == 2 * 2 * 1 * 1 * 16


def test_a_config_may_count_a_thousand_layers_that_no_tensor_is_for(
    make_snapshot: Callable[..., ModelSnapshot],
) -> None:
    def reason(count: int) -> str:
        config = {"model_type": "llama", "num_hidden_layers": count}
        headers = {"model.safetensors": SafetensorsHeader(tensors={"t": {}})}
        return integrity.check(make_snapshot({"config.json": config}, headers=headers)).reason

    assert "counts" not in reason(1000)
    assert "counts 1001 layers" in reason(1001)
