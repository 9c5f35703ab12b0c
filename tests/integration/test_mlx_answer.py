"""From tokens to the events a reader gets, against a string function: no model computes here."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models.tiny_models import CORPUS, build

from mlxk.adapters.mlx.engine.build_sequence import build_sequence
from mlxk.adapters.mlx.loading.text_model import LoadedModel, PooledModel, load_model
from mlxk.adapters.system import SystemClock
from mlxk.application.text_streams import QueuedTextStream
from mlxk.domain.generation.request import Finished, FinishReason, GenerationRequest, TextDelta
from mlxk.domain.generation.settings import GenerationSettings

pytestmark = pytest.mark.mlx


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """Load a model for its tokenizer."""
    return load_model(build(tmp_path_factory.mktemp("tiny") / "llama"))


def answered(model: LoadedModel, tokens: Sequence[int], stops: Sequence[str], most: int) -> tuple[list[str], Finished]:
    """Return the pieces of text and the end of an answer whose model says these tokens."""
    wanted = GenerationSettings(max_tokens=most, stop=tuple(stops))
    stream = QueuedTextStream()
    request = GenerationRequest(model.handle, "Hello", wanted)
    sequence = build_sequence(request, (PooledModel(model, 0.0),), stream, SystemClock())
    reasons = (sequence.accept(token) for token in tokens)
    reason = next((reason for reason in reasons if reason is not None), FinishReason.CANCELLED)
    sequence.finish(reason)
    pieces: list[str] = []
    for event in stream:
        if isinstance(event, Finished):
            return pieces, event
        assert isinstance(event, TextDelta)
        pieces.append(event.text)
    raise AssertionError("the answer has no end")


@st.composite
def cases(draw: st.DrawFn) -> tuple[str, tuple[str, ...]]:
    """A text with umlauts, Japanese and emoji, and stop strings of which most occur in it."""
    start = draw(st.integers(0, len(CORPUS) // 3))
    text = CORPUS[start : start + draw(st.integers(1, 120))]
    pieces = st.integers(0, len(text) - 1).flatmap(
        lambda at: st.integers(1, 8).map(lambda length: text[at : at + length])
    )
    return text, tuple(draw(st.lists(st.one_of(pieces, st.text("aeü🙂日 ,", min_size=1, max_size=4)), max_size=4)))


@settings(max_examples=1000)
@given(case=cases(), most=st.integers(1, 80))
def test_a_stopped_answer_is_the_unstopped_one_cut_by_a_string_function(
    model: LoadedModel, case: tuple[str, tuple[str, ...]], most: int
) -> None:
    text, stops = case
    tokens = model.tokenizer.encode(text, add_special_tokens=False)
    free, end = answered(model, tokens, (), most)
    whole = "".join(free)
    starts = [at for at in map(whole.find, stops) if at >= 0]
    pieces, finished = answered(model, tokens, stops, most)
    assert "".join(pieces) == (whole[: min(starts)] if starts else whole)
    assert finished.reason is (FinishReason.STOP if starts else end.reason)
    assert all(pieces)


@settings(max_examples=200)
@given(start=st.integers(0, len(CORPUS) // 3), length=st.integers(1, 200))
def test_text_of_many_bytes_streams_as_it_was_written(model: LoadedModel, start: int, length: int) -> None:
    text = CORPUS[start : start + length]
    tokens = model.tokenizer.encode(text, add_special_tokens=False)
    pieces, _ = answered(model, [*tokens, *model.end_tokens][: len(tokens) + 1], (), 1000)
    assert "".join(pieces) == text
    assert "\ufffd" not in "".join(pieces)
