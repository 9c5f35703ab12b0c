"""When a difference between benchmarks counts."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxk.domain.benchmark import RemoteCompletion
from mlxk.domain.comparison import (
    Difference,
    Figure,
    MeasuredTest,
    Outcome,
    ReportComparison,
    ReportLine,
    Sample,
    Turn,
    change,
    difference,
    results,
)

RUNS = st.lists(st.floats(0.1, 1e6), min_size=1, max_size=20).map(Sample.of)


def lognormal(source: random.Random, runs: int, factor: float = 1.0) -> Sample:
    """Return runs that lie apart by a tenth or so."""
    return Sample.of([factor * math.exp(source.gauss(0, 0.1)) for _ in range(runs)])


@pytest.mark.parametrize("runs", [5, 6, 10, 30])
def test_runs_of_the_same_thing_differ_in_one_case_of_twenty_at_most(runs: int) -> None:
    source = random.Random(runs)
    pairs = [(lognormal(source, runs), lognormal(source, runs)) for _ in range(1000)]
    wrong = sum(difference(Figure.SPEED, *pair) is not Difference.NONE for pair in pairs)
    assert wrong <= 50


@pytest.mark.parametrize(("runs", "least"), [(5, 850), (10, 980)])
def test_half_as_much_again_is_found(runs: int, least: int) -> None:
    source = random.Random(runs)
    pairs = [(lognormal(source, runs), lognormal(source, runs, 1.5)) for _ in range(1000)]
    assert sum(difference(Figure.SPEED, *pair) is Difference.BETTER for pair in pairs) >= least


@given(RUNS, RUNS, st.sampled_from(Figure))
def test_what_is_better_one_way_is_worse_the_other_way(one: Sample, other: Sample, figure: Figure) -> None:
    there, back = difference(figure, one, other), difference(figure, other, one)
    if min(one.runs, other.runs) < 5:
        assert (there, back) == (Difference.UNKNOWN, Difference.UNKNOWN)
    elif Difference.NONE not in (there, back):
        assert {there, back} == {Difference.BETTER, Difference.WORSE}
        assert (there is Difference.BETTER) is ((other.median > one.median) is figure.more_is_better)
    assert difference(figure, one, one) in (Difference.NONE, Difference.UNKNOWN)


def test_a_difference_below_the_negligible_is_none_however_sure() -> None:
    assert difference(Figure.SPEED, Sample.of([100] * 9), Sample.of([102] * 9)) is Difference.NONE
    assert difference(Figure.LOAD, Sample.of([100] * 9), Sample.of([104] * 9)) is Difference.WORSE
    assert change(Sample.of([100]), Sample.of([125])) == 0.25
    assert change(Sample.of([0]), Sample.of([125])) is None


def record(test: str, outcome: Outcome, speed: float) -> ReportLine:
    """Return a line of a report."""
    return ReportLine("m", test, outcome, {Figure.SPEED: Sample.of([speed])})


def test_several_records_of_a_test_are_one_result_with_the_figures_of_those_that_passed() -> None:
    lines = [record("a", Outcome.PASSED, 1), record("b", Outcome.PASSED, 9), record("a", Outcome.FAILED, 100)]
    first, second = results([*lines, record("a", Outcome.PASSED, 3)])
    assert (first.test, second.test, first.runs, first.failed) == ("a", "b", 3, 1)
    assert first.outcomes == {Outcome.PASSED: 2, Outcome.FAILED: 1}
    assert first.figures == {Figure.SPEED: Sample(2, 2, 1.5, 2.5)}
    assert MeasuredTest.of([record("a", Outcome.FAILED, 1)]).figures == {}


def test_the_speed_of_a_turn_is_that_of_the_answers_whose_tokens_are_known() -> None:
    counted = RemoteCompletion(0.0, 3.0, first_token=1.0, completion_tokens=5)
    uncounted = RemoteCompletion(0.0, 9.0, first_token=1.0)
    assert Turn.of(None, None, [counted, uncounted]).tokens_per_second == 2.0
    assert Turn.of(None, None, [uncounted]).tokens_per_second is None


def test_reports_without_a_test_in_common_have_no_change() -> None:
    found = ReportComparison.of(results([record("a", Outcome.PASSED, 1)]), results([record("b", Outcome.PASSED, 1)]))
    assert (found.changes, found.only_before, found.only_after) == ((), (("m", "a"),), (("m", "b"),))
