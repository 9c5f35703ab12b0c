"""Choosing tokens: every setting against plain arithmetic, and seeds that hold in any company."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import mlx.core as mx
import pytest
from doubles.event_log import InMemoryEventLog
from hypothesis import given, settings
from hypothesis import strategies as st
from models.answers import read
from models.tiny_models import build

from mlxk.adapters.mlx.engine.sampling import (
    NOT_FINITE,
    BatchSampler,
    RandomStream,
    SamplingParameters,
    logits_processors,
    materialize_tokens,
)
from mlxk.adapters.mlx.text_generator import MlxTextGenerator
from mlxk.adapters.system import SystemClock
from mlxk.domain.generation.request import GenerationRequest, TextDelta
from mlxk.domain.generation.settings import GenerationSettings
from mlxk.domain.models.model import ModelHandle

pytestmark = pytest.mark.mlx
GREEDY = SamplingParameters(0.0, 1.0, 0, 0.0)
DRAWS = 400


@pytest.fixture(scope="module")
def handle(tmp_path_factory: pytest.TempPathFactory) -> ModelHandle:
    return build(tmp_path_factory.mktemp("tiny") / "llama")


@pytest.fixture(scope="module")
def engine() -> Iterator[MlxTextGenerator]:
    generator = MlxTextGenerator(InMemoryEventLog(), SystemClock())
    yield generator
    generator.close()


def asking(handle: ModelHandle, prompt: str = "Hello world", **wanted: object) -> GenerationRequest:
    wanted = {"max_tokens": 20, "ignore_eos": True, **wanted}
    return GenerationRequest(handle, prompt, GenerationSettings(**wanted))  # type: ignore[arg-type]


def frequencies(logits: Sequence[float], row: SamplingParameters) -> list[float]:
    """Return how often each token comes when the draws are spread evenly."""
    sampler = BatchSampler([row])
    counts = [0] * len(logits)
    for index in range(DRAWS):
        tokens, _ = sampler.sample(mx.array([list(logits)]), [(index + 0.5) / DRAWS])
        counts[int(tokens[0].item())] += 1
    return [count / DRAWS for count in counts]


def expected(logits: Sequence[float], row: SamplingParameters) -> list[float]:
    """The same by definition: filter by rank, by mass above and by ratio to the likeliest, then apply temperature."""
    total = sum(math.exp(each) for each in logits)
    chances = [math.exp(each) / total for each in logits]
    order = sorted(range(len(logits)), key=lambda token: -chances[token])
    kept, above = [], 0.0
    for rank, token in enumerate(order):
        ranked = row.top_k == 0 or rank < row.top_k
        massive = row.top_p >= 1 or above < row.top_p
        if ranked and massive and chances[token] >= row.min_p * chances[order[0]]:
            kept.append(token)
        above += chances[token]
    weights = {token: math.exp((logits[token] - logits[order[0]]) / row.temperature) for token in kept}
    return [weights.get(token, 0.0) / sum(weights.values()) for token in range(len(logits))]


LOGITS = st.lists(st.integers(-40, 40), min_size=2, max_size=12, unique=True).map(
    lambda values: [value / 10 for value in values]
)


@settings(max_examples=25, deadline=None)
@given(
    LOGITS,
    st.sampled_from([0.3, 1.0, 2.0]),
    st.sampled_from([1.0, 0.95, 0.5, 0.01]),
    st.sampled_from([0, 1, 3, 10**6]),
    st.sampled_from([0.0, 0.05, 0.5]),
)
def test_tokens_come_as_often_as_the_settings_say(
    logits: list[float], temperature: float, top_p: float, top_k: int, min_p: float
) -> None:
    row = SamplingParameters(temperature, top_p, top_k, min_p)
    found, wanted = frequencies(logits, row), expected(logits, row)
    assert all(abs(one - other) <= 2.5 / DRAWS for one, other in zip(found, wanted, strict=True))


def test_rows_are_sampled_each_by_its_own_settings() -> None:
    rows = [GREEDY, SamplingParameters(1.0, 1.0, 0, 0.0), GREEDY, SamplingParameters(1.0, 1.0, 1, 0.0)]
    logits = mx.array([[0.0, 1.0, 0.5]] * 4)
    tokens, _ = BatchSampler(rows).sample(logits, [0.0, 0.999])
    assert tokens.tolist() == [1, 0, 1, 1]


@pytest.mark.parametrize("rubbish", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_that_is_not_finite_is_marked_and_the_others_are_not(rubbish: float, temperature: float) -> None:
    row = SamplingParameters(temperature, 0.9, 2, 0.1)
    logits = mx.array([[0.0, 9.0, 0.0], [rubbish] * 3, [9.0, 0.0, 0.0]])
    sampler = BatchSampler([row] * 3)
    assert materialize_tokens(*sampler.sample(logits, [0.5] * len(sampler.drawn))) == [1, NOT_FINITE, 0]


def test_the_tiniest_temperature_is_no_division_by_nothing() -> None:
    row = SamplingParameters.of(GenerationSettings(temperature=5e-324, top_p=1.0, top_k=0, min_p=0.0))
    assert BatchSampler([row]).sample(mx.array([[0.0, 1.0]]), [])[0].tolist() == [1]


def test_draws_depend_on_the_seed_and_the_position_only() -> None:
    forward, backward = RandomStream(7), RandomStream(7)
    assert [forward.at(index) for index in range(9)] == [backward.at(index) for index in reversed(range(9))][::-1]
    assert RandomStream(8).at(0) != forward.at(0)
    assert all(0 <= RandomStream(seed).at(0) < 1 for seed in range(99))


def penalised(generated: list[int], **wanted: object) -> list[float]:
    logits = mx.array([[1.0, -1.0, 2.0, 0.0]])
    for process in logits_processors(GenerationSettings(**wanted)):  # type: ignore[arg-type]
        logits = process(mx.array(generated, dtype=mx.int32), logits)
    values: list[float] = logits.tolist()[0]  # type: ignore[index, assignment]
    return values


def test_penalties_are_those_of_the_definitions() -> None:
    said = [0, 1, 1]
    assert penalised(said, presence_penalty=0.5) == [0.5, -1.5, 2.0, 0.0]
    assert penalised(said, frequency_penalty=0.5) == [0.5, -2.0, 2.0, 0.0]
    assert penalised(said, repetition_penalty=2.0) == [0.5, -2.0, 2.0, 0.0]
    assert penalised(said, logit_bias=((2, -2.0), (3, 4.0))) == [1.0, -1.0, 0.0, 4.0]
    assert penalised([], presence_penalty=2.0, frequency_penalty=2.0, repetition_penalty=2.0) == [1.0, -1.0, 2.0, 0.0]


def test_settings_that_change_nothing_cost_nothing() -> None:
    neutral = GenerationSettings(repetition_penalty=1.0, presence_penalty=0.0, frequency_penalty=0.0)
    assert logits_processors(neutral) == ()


def test_a_penalty_looks_at_the_answer_and_not_at_the_prompt(engine: MlxTextGenerator, handle: ModelHandle) -> None:
    first = read(engine.submit(asking(handle, temperature=0.0, max_tokens=1))).text
    again = read(engine.submit(asking(handle, temperature=0.0, max_tokens=1, presence_penalty=2.0)))
    assert again.text == first


@pytest.mark.parametrize("extra", [{}, {"top_p": 0.8, "top_k": 50}, {"presence_penalty": 1.0, "min_p": 0.02}])
def test_a_seed_gives_the_same_text_alone_and_among_thirty_two(
    engine: MlxTextGenerator, handle: ModelHandle, extra: dict[str, object]
) -> None:
    wanted = {"temperature": 1.0, "seed": 11, **extra}
    alone = read(engine.submit(asking(handle, **wanted))).text
    before = [engine.submit(asking(handle, f"Count {number}", temperature=number % 3)) for number in range(16)]
    among = engine.submit(asking(handle, **wanted))
    after = [engine.submit(asking(handle, f"Sonne {number}", temperature=1.5)) for number in range(15)]
    assert read(among).text == alone
    for stream in [*before, *after]:
        read(stream)


def test_seeds_differ_and_no_seed_is_a_fresh_one(engine: MlxTextGenerator, handle: ModelHandle) -> None:
    texts = [read(engine.submit(asking(handle, temperature=1.5, seed=seed))).text for seed in (1, 2, None, None)]
    assert len(set(texts)) == 4


def test_the_choices_of_one_seed_are_all_different_and_come_again(
    engine: MlxTextGenerator, handle: ModelHandle
) -> None:
    request = asking(handle, temperature=1.5, seed=3)
    first, second = (
        [read(stream).text for stream in [engine.submit(choice) for choice in request.choices(4)]] for _ in range(2)
    )
    assert first == second
    assert len(set(first)) == 4
    assert first[0] == read(engine.submit(request)).text


@pytest.mark.parametrize("same", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}])
def test_filters_at_their_narrowest_are_greedy(
    engine: MlxTextGenerator, handle: ModelHandle, same: dict[str, object]
) -> None:
    greedy = read(engine.submit(asking(handle, temperature=0.0))).text
    assert read(engine.submit(asking(handle, temperature=2.0, **same))).text == greedy


def test_alternatives_are_sorted_and_hold_the_greedy_token_first(engine: MlxTextGenerator, handle: ModelHandle) -> None:
    deltas = [
        each for each in engine.submit(asking(handle, temperature=0.0, logprobs=5)) if isinstance(each, TextDelta)
    ]
    for each in (token for delta in deltas for token in delta.logprobs):
        values = [other.logprob for other in each.alternatives]
        assert values == sorted(values, reverse=True)
        assert each.alternatives[0] == each.token
        assert sum(math.exp(value) for value in values) <= 1.0001


def test_a_model_that_says_how_to_sample_is_heard(engine: MlxTextGenerator, tmp_path: Path) -> None:
    handle = build(tmp_path / "llama")
    (tmp_path / "llama" / "generation_config.json").write_text(
        '{"do_sample": false, "temperature": "hot", "top_p": 3, "top_k": true, "eos_token_id": [2]}'
    )
    texts = {read(engine.submit(asking(handle))).text for _ in range(3)}
    assert texts == {read(engine.submit(asking(handle, temperature=0.0))).text}
