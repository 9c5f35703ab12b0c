"""The memory budget."""

import pytest

from mlxk.domain.models.footprint import (
    RESERVE_BYTES,
    MemoryFit,
    MemoryReading,
    WeightForm,
    Widening,
    cache_bytes_per_token,
    judge_memory,
)

GIB = 1024**3


@pytest.mark.parametrize(
    ("weights", "expected"), [(1 * GIB, MemoryFit.FITS), (6 * GIB, MemoryFit.TIGHT), (12 * GIB, MemoryFit.EXCEEDS)]
)
def test_a_model_fits_fits_tightly_or_exceeds_the_budget(weights: int, expected: MemoryFit) -> None:
    assert judge_memory(MemoryReading(total=16 * GIB, available=4 * GIB), weights).fit is expected


def test_a_model_whose_context_is_beyond_what_is_available_fits_tightly() -> None:
    weights = 4 * GIB - RESERVE_BYTES
    reading = MemoryReading(total=16 * GIB, available=4 * GIB)
    assert judge_memory(reading, weights).fit is MemoryFit.FITS
    assert judge_memory(reading, weights, cache_per_token=1, context_tokens=1).fit is MemoryFit.TIGHT


def test_context_counts() -> None:
    verdict = judge_memory(MemoryReading(16 * GIB, 16 * GIB), GIB, cache_per_token=1000, context_tokens=4096)
    assert verdict.needed == GIB + 1000 * 4096 + RESERVE_BYTES


def test_an_unreadable_machine_gives_no_verdict() -> None:
    assert judge_memory(None, GIB).fit is MemoryFit.UNKNOWN


def test_the_accelerators_limit_bounds_the_budget() -> None:
    assert MemoryReading(16 * GIB, 16 * GIB, accelerator_limit=10 * GIB).budget == 7 * GIB


def test_weights_and_caches_together_leave_room_for_the_rest_of_the_machine() -> None:
    reading = MemoryReading(16 * GIB, 16 * GIB, accelerator_limit=10 * GIB)
    assert reading.cache_budget == 2 * GIB
    assert reading.budget + reading.cache_budget < 10 * GIB


def test_the_cache_of_a_token_follows_from_the_config() -> None:
    llama = {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_size": 4096}
    assert cache_bytes_per_token(llama) == 2 * 2 * 32 * 8 * 128
    assert cache_bytes_per_token({"text_config": llama}) == cache_bytes_per_token(llama)


@pytest.mark.parametrize(
    "config", [None, {}, {"num_hidden_layers": "many"}, {"text_config": [1]}, {"hidden_size": True}]
)
def test_a_config_that_does_not_tell_counts_as_no_cache(config: dict[str, object] | None) -> None:
    assert cache_bytes_per_token(config) == 0


@pytest.mark.parametrize(
    ("available", "form"),
    [
        (64, WeightForm.PLAIN),
        (17, WeightForm.PLAIN),
        (16, WeightForm.WIDE),
        (1, WeightForm.STORED),
    ],
)
def test_quantized_layers_are_unpacked_where_half_of_the_free_memory_holds_them(
    available: int, form: WeightForm
) -> None:
    reading = MemoryReading(64 * GIB, available * GIB, widening=Widening.WHERE_FREE)
    verdict = judge_memory(reading, GIB, half_bytes=GIB // 8, plain_bytes=8 * GIB)
    assert verdict.form is form
    added = {WeightForm.PLAIN: 7 * GIB, WeightForm.WIDE: GIB // 8, WeightForm.STORED: 0}[form]
    assert verdict.weights == GIB + added
    assert judge_memory(reading, GIB, half_bytes=GIB // 8).form is not WeightForm.PLAIN
