"""The contract of the text embedder, held by every adapter."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from doubles.event_log import InMemoryEventLog
from doubles.text_embedder import InMemoryTextEmbedder
from models.tiny_embedding import WINDOW, build_bert

from mlxk.adapters.mlx.embedding.embedder import MlxTextEmbedder
from mlxk.adapters.mlx.text_generator import MlxTextGenerator
from mlxk.adapters.system import SystemClock
from mlxk.application.ports.model_tasks import TextEmbedder
from mlxk.domain.embedding import EmbeddingRequest, Embeddings, EmbeddingSettings
from mlxk.domain.errors import ContextLengthError, ValidationError
from mlxk.domain.models.model import ModelHandle, Origin

TEXTS = ("a man is eating food", "a cheetah runs", "a man is eating a piece of bread and bread and bread")


class Case:
    """An embedder and a model."""

    def __init__(self, embedder: TextEmbedder, model: ModelHandle) -> None:
        self.embedder = embedder
        self.model = model

    def embed(self, *texts: str, **settings: object) -> Embeddings:
        """Return the vectors of texts."""
        wanted = EmbeddingSettings(**settings)  # type: ignore[arg-type]
        return self.embedder.embed(EmbeddingRequest(self.model, texts, wanted))


@pytest.fixture(params=["mlx", "in_memory"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Case]:
    """Return each adapter with a model that cannot shorten its vectors."""
    if request.param == "in_memory":
        embedder = InMemoryTextEmbedder(dimensions=32, window=WINDOW, can_shorten=False)
        yield Case(embedder, ModelHandle("org/encoder", "/cache/encoder", Origin.CACHE))
        return
    generator = MlxTextGenerator(InMemoryEventLog(), SystemClock())
    yield Case(MlxTextEmbedder(generator.leases), build_bert(tmp_path / "bert"))
    generator.close()


def test_there_is_one_vector_a_text_all_of_the_same_length(case: Case) -> None:
    found = case.embed(*TEXTS)
    assert [len(vector) for vector in found.vectors] == [found.dimensions] * len(TEXTS)
    assert found.dimensions == 32
    assert found.device in {"cpu", "gpu"}


def test_every_vector_has_length_one(case: Case) -> None:
    assert all(math.isclose(math.hypot(*vector), 1, abs_tol=1e-6) for vector in case.embed(*TEXTS).vectors)


def test_a_text_has_the_same_vector_alone_and_among_others(case: Case) -> None:
    together = case.embed(*TEXTS, *TEXTS[::-1]).vectors
    for index, text in enumerate(TEXTS):
        (alone,) = case.embed(text).vectors
        for vector in (together[index], together[-1 - index]):
            assert all(math.isclose(one, other, abs_tol=1e-5) for one, other in zip(alone, vector, strict=True))


def test_tokens_are_counted(case: Case) -> None:
    assert case.embed(*TEXTS).tokens == sum(case.embed(text).tokens for text in TEXTS) > len(TEXTS)


def test_a_text_beyond_the_window_is_refused_with_both_numbers_unless_it_is_to_be_cut(case: Case) -> None:
    long = "food " * 3 * WINDOW
    with pytest.raises(ContextLengthError, match=r"input\[1\]") as caught:
        case.embed("food", long)
    assert caught.value.detail is not None
    assert caught.value.detail["context_length"] == WINDOW
    assert case.embed(long, truncate=True).tokens == WINDOW


@pytest.mark.parametrize("dimensions", [16, 64])
def test_a_length_that_the_model_does_not_have_is_refused(case: Case, dimensions: int) -> None:
    with pytest.raises(ValidationError, match="dimensions"):
        case.embed("food", dimensions=dimensions)


def test_the_length_that_the_model_has_may_be_asked_for(case: Case) -> None:
    assert case.embed("food", dimensions=32) == case.embed("food")


def test_a_request_out_of_range_is_refused(case: Case) -> None:
    with pytest.raises(ValidationError, match="at least one"):
        case.embed()
