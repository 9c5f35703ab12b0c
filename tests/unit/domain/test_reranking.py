"""Relevance: scores from logits, and the order of documents."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxk.domain.errors import ValidationError
from mlxk.domain.models.model import ModelHandle, Origin
from mlxk.domain.reranking import MAX_DOCUMENTS, Relevance, RerankRequest, ranked

LOGITS = st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=30)


@given(st.floats(-1e30, 1e30))
def test_scores_are_probabilities_and_those_of_opposite_logits_make_one(logit: float) -> None:
    score = Relevance(0, logit).score
    assert 0 <= score <= 1
    assert score + Relevance(0, -logit).score == pytest.approx(1)


@given(LOGITS)
def test_the_most_relevant_come_first_and_equals_stay_in_order(logits: list[float]) -> None:
    order = ranked([Relevance(index, logit) for index, logit in enumerate(logits)])
    keys = [(-each.logit, each.index) for each in order]
    assert keys == sorted(keys)
    assert sorted(each.index for each in order) == list(range(len(logits)))


@given(LOGITS, st.integers(1, 40))
def test_a_number_of_documents_takes_the_first_of_the_order(logits: list[float], top: int) -> None:
    documents = [Relevance(index, logit) for index, logit in enumerate(logits)]
    assert ranked(documents, top) == ranked(documents)[:top]


def test_scores_that_are_equal_by_rounding_keep_the_order_of_their_logits() -> None:
    assert [each.index for each in ranked([Relevance(0, 60.0), Relevance(1, 70.0)])] == [1, 0]


def test_too_many_documents_are_refused_with_both_numbers() -> None:
    request = RerankRequest(ModelHandle("m", "/m", Origin.CACHE), "q", ("a",) * (MAX_DOCUMENTS + 1))
    with pytest.raises(ValidationError, match=rf"at most {MAX_DOCUMENTS} texts \(got {MAX_DOCUMENTS + 1}\)"):
        request.validate()


def test_a_text_that_is_too_long_is_named() -> None:
    with pytest.raises(ValidationError, match=r"documents\[1\] is longer than"):
        RerankRequest(ModelHandle("m", "/m", Origin.CACHE), "q", ("a", "b" * 1_000_001)).validate()
