"""The arithmetic of benchmarks."""

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxk.domain.benchmark import (
    Level,
    Load,
    Phase,
    RemoteCompletion,
    Row,
    Shape,
    Spread,
    StreamTimes,
    percentile,
    tokens_per_second,
)

VALUES = st.lists(st.floats(0, 1e6), min_size=1, max_size=50)


@given(VALUES)
def test_the_median_is_that_of_the_standard_library(values: list[float]) -> None:
    assert percentile(values, 0.5) == pytest.approx(statistics.median(values))
    assert (percentile(values, 0), percentile(values, 1)) == (min(values), max(values))


@given(VALUES, st.floats(0, 1), st.floats(0, 1))
def test_percentiles_grow_with_their_share(values: list[float], one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert percentile(values, low) <= percentile(values, high) + 1e-6


def test_a_spread_is_noisy_when_its_middle_half_is_wide() -> None:
    assert Spread.of([1, 2, 3, 4, 5]) == Spread(3, 2, 4, 1, 5)
    assert Spread.of([100, 100, 100, 100, 1]).noisy is False
    assert Spread.of([100, 104, 104, 90, 92]).noisy is True
    assert Spread.of([0, 0]).noisy is False


def test_rows_have_the_usual_names() -> None:
    shapes = [Shape(Phase.PROMPT, 512), Shape(Phase.GENERATION, 128), Shape(Phase.GENERATION, 128, 4, 4096)]
    assert [each.name for each in shapes] == ["pp512", "tg128", "tg128 @ d4096"]
    assert [(each.prompt_tokens, each.generated_tokens) for each in shapes] == [(512, 1), (8, 128), (4096, 128)]


def test_the_speed_of_streams_is_that_of_all_together() -> None:
    run = [StreamTimes(0.0, 1.0, 3.0, 100, 21), StreamTimes(0.5, 2.0, 5.0, 100, 41)]
    assert tokens_per_second(Phase.PROMPT, run) == 200 / 2.0
    assert tokens_per_second(Phase.GENERATION, run) == 60 / 4.0
    assert tokens_per_second(Phase.PROMPT, [StreamTimes(1.0, 1.0, 1.0, 5, 1)]) == 0


def test_a_row_has_the_speeds_of_runs_and_the_first_tokens_of_streams() -> None:
    fast, slow = [StreamTimes(0, 1, 1, 10, 1)], [StreamTimes(5, 7, 7, 10, 1)]
    row = Row.of(Shape(Phase.PROMPT, 10), [fast, slow])
    assert (row.repeats, row.tokens_per_second.median, row.first_token_seconds.median) == (2, 7.5, 1.5)
    assert row.noisy


def completion(began: float, **fields: object) -> RemoteCompletion:
    """Return an answer of 11 tokens: the first after 0.5 s, the last a second later."""
    told = {"prompt_tokens": 20, "completion_tokens": 11, "cached_tokens": 0, **fields}
    return RemoteCompletion(began, began + 1.5, began + 0.5, **told)  # type: ignore[arg-type]


def test_a_level_counts_whole_answers_only() -> None:
    refused = [RemoteCompletion(0, 0.1, failure="HTTP 503: full", status=503)] * 2
    cut = RemoteCompletion(1, 2, 1.5, failure="the answer was cut off")
    level = Level.of(Load(2, 16, 11), [completion(0), completion(2.5), *refused, cut])
    assert (level.requests, level.failed) == (5, 3)
    assert level.failures == (("HTTP 503: full", 2), ("the answer was cut off", 1))
    assert (level.seconds, level.requests_per_second, level.tokens_per_second) == (4.0, 0.5, 5.5)
    assert (level.prompt_tokens, level.completion_tokens, level.cached_tokens) == (40, 22, 0)
    assert level.first_token_seconds is not None
    assert level.inter_token_seconds is not None
    assert level.first_token_seconds.p99 == 0.5
    assert level.inter_token_seconds.p50 == pytest.approx(0.1)


def test_tokens_are_unknown_unless_every_answer_says_them() -> None:
    level = Level.of(Load(1, 16, 11), [completion(0), completion(2, completion_tokens=None)])
    assert (level.completion_tokens, level.tokens_per_second, level.prompt_tokens) == (None, None, 40)


def test_a_level_without_an_answer_has_no_times() -> None:
    level = Level.of(Load(1, 16, 11), [RemoteCompletion(0, 0, failure="Connection refused")])
    assert (level.first_token_seconds, level.end_to_end_seconds, level.requests_per_second) == (None, None, 0.0)
