"""Settings of an answer: what is allowed, what fills what, and the seeds of several choices."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxk.domain.errors import ValidationError
from mlxk.domain.generation.request import GenerationRequest, Usage
from mlxk.domain.generation.settings import PRODUCT_DEFAULTS, SEED_RANGE, EngineOptions, GenerationSettings
from mlxk.domain.models.model import ModelHandle, Origin

HANDLE = ModelHandle("org/model", "/models/org/model", Origin.CACHE)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 0),
        ("max_tokens", 1.5),
        ("max_tokens", True),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", "hot"),
        ("top_p", -0.1),
        ("top_p", 1.1),
        ("top_k", -1),
        ("top_k", 2.0),
        ("min_p", 2.0),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", 5e-324),
        ("presence_penalty", 2.1),
        ("frequency_penalty", math.inf),
        ("seed", -1),
        ("seed", SEED_RANGE),
        ("thinking_budget", -1),
        ("logprobs", 21),
        ("logit_bias", ((3, 101.0),)),
        ("logit_bias", tuple((token, 0.0) for token in range(2000))),
        ("stop", ("",)),
        ("stop", (1,)),
        ("stop", ("x",) * 17),
    ],
)
def test_a_value_out_of_range_is_refused_by_the_name_of_its_field(field: str, value: object) -> None:
    with pytest.raises(ValidationError, match=field):
        GenerationSettings(**{field: value}).validate()  # type: ignore[arg-type]


def test_all_faults_are_named_at_once() -> None:
    with pytest.raises(ValidationError, match=r"max_tokens.*top_p.*seed"):
        GenerationSettings(max_tokens=0, top_p=7, seed=-3).validate()


def test_the_defaults_are_allowed() -> None:
    PRODUCT_DEFAULTS.validate()
    GenerationRequest(HANDLE, "hi").validate()


def test_a_prompt_is_text_or_a_conversation() -> None:
    with pytest.raises(ValidationError, match="prompt"):
        GenerationRequest(HANDLE, [1, 2]).validate()  # type: ignore[arg-type]


def test_what_is_set_stays_and_what_is_not_is_filled() -> None:
    filled = GenerationSettings(temperature=0.0, stop=("x",)).filled_from(PRODUCT_DEFAULTS)
    assert filled.temperature == 0.0
    assert filled.top_p == PRODUCT_DEFAULTS.top_p
    assert filled.stop == ("x",)
    assert filled.seed is None


@given(st.integers(0, SEED_RANGE - 1), st.integers(1, 128))
def test_choices_have_seeds_of_their_own_and_the_first_keeps_its_seed(seed: int, count: int) -> None:
    choices = GenerationRequest(HANDLE, "hi", GenerationSettings(seed=seed)).choices(count)
    seeds = [choice.settings.seed for choice in choices]
    assert seeds[0] == seed
    assert len(set(seeds)) == count
    for choice in choices:
        choice.validate()


def test_choices_without_a_seed_draw_their_own() -> None:
    assert {choice.settings.seed for choice in GenerationRequest(HANDLE, "hi").choices(3)} == {None}


def test_usage_adds_up() -> None:
    assert Usage(3, 4, cached_tokens=2).total_tokens == 7


@pytest.mark.parametrize(
    "options",
    [
        {"draft_tokens": 0},
        {"draft_tokens": 17},
        {"kv_scheme": "other"},
        {"kv_bits": 3},
        {"kv_group_size": 16, "kv_bits": 8},
        {"kv_group_size": 32},
        {"max_kv_size": 1},
        {"max_kv_size": 64, "kv_bits": 8},
        {"max_kv_size": 64, "draft_model": HANDLE},
    ],
)
def test_options_of_computing_are_checked_too(options: dict[str, object]) -> None:
    engine_options = EngineOptions(**options)  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match=next(iter(options))):
        GenerationRequest(HANDLE, "hi", engine_options=engine_options).validate()


def test_only_what_changes_the_cache_or_the_steps_keeps_answers_apart() -> None:
    assert EngineOptions(adapter="/adapters/a").batchable
    assert not EngineOptions(draft_model=HANDLE).batchable
    assert EngineOptions(kv_bits=8).batchable
    assert not EngineOptions(max_kv_size=64).batchable
