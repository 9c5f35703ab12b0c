"""The contract of the document reranker, held by every adapter."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from doubles.document_reranker import InMemoryDocumentReranker
from doubles.event_log import InMemoryEventLog
from models.tiny_rerankers import WINDOW, build_cross_encoder

from mlxk.adapters.mlx.reranking.reranker import MlxDocumentReranker
from mlxk.adapters.mlx.text_generator import MlxTextGenerator
from mlxk.adapters.system import SystemClock
from mlxk.application.ports.model_tasks import DocumentReranker
from mlxk.domain.errors import CapabilityError, ContextLengthError, ValidationError
from mlxk.domain.models.model import ModelHandle, Origin
from mlxk.domain.reranking import Relevances, RerankRequest, RerankSettings

QUERY = "a man is eating"
DOCUMENTS = ("a man is eating food", "a cheetah runs", "bread", "", "the girl is carrying a baby and bread and food")
LONG = "food " * 3 * WINDOW


class Case:
    """A reranker and a model."""

    def __init__(self, reranker: DocumentReranker, model: ModelHandle) -> None:
        self.reranker = reranker
        self.model = model

    def rerank(self, *documents: str, query: str = QUERY, **settings: object) -> Relevances:
        """Return the relevance of documents."""
        wanted = RerankSettings(**settings)  # type: ignore[arg-type]
        return self.reranker.rerank(RerankRequest(self.model, query, documents, wanted))


@pytest.fixture(params=["mlx", "in_memory"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Case]:
    """Return each adapter with a model that takes no instruction."""
    if request.param == "in_memory":
        yield Case(InMemoryDocumentReranker(WINDOW), ModelHandle("org/reranker", "/cache/reranker", Origin.CACHE))
        return
    generator = MlxTextGenerator(InMemoryEventLog(), SystemClock())
    yield Case(MlxDocumentReranker(generator.leases), build_cross_encoder(tmp_path / "model", "bert"))
    generator.close()


def test_there_is_one_number_a_document_in_the_order_of_the_request(case: Case) -> None:
    found = case.rerank(*DOCUMENTS)
    assert [each.index for each in found.documents] == list(range(len(DOCUMENTS)))
    assert all(0 < each.score < 1 for each in found.documents)
    assert found.device in {"cpu", "gpu"}


def test_a_document_has_the_same_relevance_alone_and_among_others(case: Case) -> None:
    together = case.rerank(*DOCUMENTS, *DOCUMENTS[::-1]).documents
    for index, document in enumerate(DOCUMENTS):
        (alone,) = case.rerank(document).documents
        for other in (together[index], together[-1 - index]):
            assert math.isclose(alone.logit, other.logit, abs_tol=1e-4)


def test_tokens_are_counted_with_the_query_for_each_document(case: Case) -> None:
    assert case.rerank(*DOCUMENTS).tokens == sum(case.rerank(each).tokens for each in DOCUMENTS) > len(DOCUMENTS)


def test_a_document_beyond_the_window_is_cut_and_counted_or_refused(case: Case) -> None:
    found = case.rerank("food", LONG)
    (cut,) = found.truncations
    assert (cut.index, cut.tokens) == (1, 3 * WINDOW)
    assert case.rerank("food " * cut.kept).documents[0].logit == pytest.approx(found.documents[1].logit, abs=1e-4)
    with pytest.raises(ContextLengthError, match=r"documents\[1\] has"):
        case.rerank("food", LONG, truncate=False)


def test_a_limit_of_tokens_cuts_documents_too(case: Case) -> None:
    found = case.rerank("food and bread", max_tokens=2)
    assert [(each.tokens, each.kept) for each in found.truncations] == [(3, 2)]
    assert found.documents[0].logit == pytest.approx(case.rerank("food and").documents[0].logit, abs=1e-4)


def test_a_query_that_leaves_no_room_is_refused(case: Case) -> None:
    with pytest.raises(ContextLengthError, match="query"):
        case.rerank("food", query=LONG)


def test_an_instruction_that_the_model_does_not_take_is_refused(case: Case) -> None:
    with pytest.raises(CapabilityError, match="instruction"):
        case.rerank("food", instruction="Find food.")


@pytest.mark.parametrize(
    ("documents", "settings", "fault"),
    [((), {}, "at least one"), (("a",), {"query": " "}, "query is empty"), (("a",), {"max_tokens": 0}, "max_tokens")],
)
def test_a_request_out_of_range_is_refused(
    case: Case, documents: tuple[str, ...], settings: dict[str, str], fault: str
) -> None:
    with pytest.raises(ValidationError, match=fault):
        case.rerank(*documents, **settings)  # type: ignore[arg-type]
