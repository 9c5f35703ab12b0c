"""Comparison of benchmarks, and when a difference is significant: two sides in alternating rounds, and two reports."""

import enum
import math
from collections.abc import Iterable, Mapping, Sequence

import attrs

from mlxk.domain.benchmark import Machine, RemoteCompletion, Spread, percentile

LEAST_RUNS = 5
"""Fewest runs of a side that show how much its values scatter."""

_WIDTH = 2.5
"""Uncertainty of a median, either way: this many interquartile ranges, divided by the square root of the runs.

For two samples of the same normal distribution, of 5 runs or more, the intervals are disjoint in at most 4 % of cases.
"""

NEGLIGIBLE_SHARE = 0.03
"""Change of the median, as a share of the first, up to which samples count as equal, however certain the change is."""


class Figure(enum.Enum):
    """A measured figure; values are names for programs."""

    SPEED = "speed"
    """Tokens a second, or other units of the record a second."""
    FIRST_TOKEN = "first_token"
    """Seconds to the first token."""
    LOAD = "load"
    """Seconds to load the model."""
    DURATION = "duration"
    """Seconds in total."""
    MEMORY = "memory"
    """Peak memory, bytes."""

    @property
    def more_is_better(self) -> bool:
        """Whether greater values are better."""
        return self is Figure.SPEED


@attrs.frozen
class Sample:
    """Summary of the values of one figure."""

    runs: int
    """Number of values."""
    median: float
    lower_quartile: float
    upper_quartile: float

    @property
    def uncertainty(self) -> float:
        """How far the median may be from that of infinitely many runs, either way."""
        return _WIDTH * (self.upper_quartile - self.lower_quartile) / math.sqrt(self.runs)

    @classmethod
    def of(cls, values: Sequence[float]) -> "Sample":
        """Return the sample of at least one value."""
        spread = Spread.of(values)
        return cls(len(values), spread.median, spread.lower_quartile, spread.upper_quartile)


class Difference(enum.Enum):
    """How the second of two samples compares with the first."""

    BETTER = "better"
    WORSE = "worse"
    NONE = "none"
    """No significant difference."""
    UNKNOWN = "unknown"
    """Too few runs to tell."""


def change(before: Sample, after: Sample) -> float | None:
    """Return the change of the median as a share of the first; None where that is 0."""
    return (after.median - before.median) / before.median if before.median else None


def difference(figure: Figure, before: Sample, after: Sample) -> Difference:
    """Return whether the second sample is better or worse than the first.

    A difference counts when both have ``LEAST_RUNS``, and the medians differ by more than ``NEGLIGIBLE_SHARE`` and by
    more than the sum of their uncertainties.
    """
    if min(before.runs, after.runs) < LEAST_RUNS:
        return Difference.UNKNOWN
    apart = abs(after.median - before.median)
    if apart <= max(before.uncertainty + after.uncertainty, NEGLIGIBLE_SHARE * before.median):
        return Difference.NONE
    return Difference.BETTER if (after.median > before.median) is figure.more_is_better else Difference.WORSE


LEAST_ROUNDS = 6
"""Fewest rounds of a contest: in fewer, equal sides differ in every round by chance in more than 5 % of cases."""

_SIGNIFICANCE = 0.05
"""Probability of a result by chance from which it is no evidence of a difference."""


@attrs.frozen
class Contest:
    """One figure of two sides, measured in the same rounds."""

    figure: Figure
    first: tuple[float, ...]
    second: tuple[float, ...]
    """Values of the same rounds, in the same order, as ``first``."""

    @property
    def ahead(self) -> tuple[int, int]:
        """The number of rounds in which the first side, and the second, was better."""
        more = sum(one > other for one, other in zip(self.first, self.second, strict=True))
        less = sum(one < other for one, other in zip(self.first, self.second, strict=True))
        return (more, less) if self.figure.more_is_better else (less, more)

    @property
    def difference(self) -> Difference:
        """How the second side compares with the first: by ``difference``, if the sign test is significant as well."""
        if len(self.first) < LEAST_ROUNDS:
            return Difference.UNKNOWN
        if by_chance(*self.ahead) >= _SIGNIFICANCE:
            return Difference.NONE
        return difference(self.figure, Sample.of(self.first), Sample.of(self.second))


def by_chance(ahead: int, behind: int) -> float:
    """Return the p-value of the two-sided sign test: the probability of such a result, or a clearer one, by chance."""
    rounds, least = ahead + behind, min(ahead, behind)
    cases = sum(math.comb(rounds, count) for count in range(least + 1))
    return min(1.0, math.ldexp(2 * cases, -rounds))


@attrs.frozen
class Answer:
    """One side's answer to a question."""

    text: str
    tokens: int | None
    """The side's own count; None when it reports none."""


@attrs.frozen
class Turn:
    """The measurements of one side in one round; None for what is unknown."""

    load_seconds: float | None
    first_token_seconds: float | None
    """Median over the questions."""
    tokens_per_second: float | None
    """Decoding speed over all answers, each from its first token to its end."""
    answer_seconds: float
    """Total of all answers."""
    memory_bytes: int | None
    """Peak memory."""
    answers: tuple[Answer, ...]

    @property
    def total_seconds(self) -> float:
        """Load and answers; the answers alone where the load time is unknown."""
        return (self.load_seconds or 0.0) + self.answer_seconds

    @classmethod
    def of(cls, load: float | None, memory: int | None, completions: Sequence[RemoteCompletion]) -> "Turn":
        """Return the turn of the completions for at least one question."""
        firsts = [answer.first_token - answer.began for answer in completions if answer.first_token is not None]
        decoding = [
            (answer.completion_tokens - 1, answer.ended - answer.first_token)
            for answer in completions
            if answer.first_token is not None and answer.completion_tokens
        ]
        tokens, seconds = sum(count for count, _ in decoding), sum(duration for _, duration in decoding)
        return cls(
            load,
            percentile(firsts, 0.5) if firsts else None,
            tokens / seconds if tokens and seconds > 0 else None,
            sum(answer.ended - answer.began for answer in completions),
            memory,
            tuple(Answer(answer.text, answer.completion_tokens) for answer in completions),
        )


@attrs.frozen
class SideResult:
    """One side and its turns."""

    model: str
    server: str | None
    turns: tuple[Turn, ...]


@attrs.frozen
class Comparison:
    """Two sides, measured in alternating turns."""

    machine: Machine
    questions: tuple[str, ...]
    first: SideResult
    second: SideResult
    notes: tuple[str, ...]
    """Caveats about the figures, a sentence each."""

    @property
    def contests(self) -> tuple[Contest, ...]:
        """The figures that are known of both sides in every round."""
        turns = (self.first.turns, self.second.turns)
        loads = all(turn.load_seconds is not None for side in turns for turn in side)
        fields = {**_FIELDS, Figure.DURATION: "total_seconds" if loads else "answer_seconds"}
        contests = (_contest(figure, name, *turns) for figure, name in fields.items())
        return tuple(contest for contest in contests if contest is not None)


_FIELDS = {
    Figure.SPEED: "tokens_per_second",
    Figure.FIRST_TOKEN: "first_token_seconds",
    Figure.LOAD: "load_seconds",
    Figure.DURATION: "total_seconds",
    Figure.MEMORY: "memory_bytes",
}
"""Figure to the field of a turn; the duration is that of the answers alone where the load time of a turn is unknown."""


def _contest(figure: Figure, field: str, first: Sequence[Turn], second: Sequence[Turn]) -> Contest | None:
    values = [[getattr(turn, field) for turn in turns] for turns in (first, second)]
    return None if None in values[0] or None in values[1] else Contest(figure, tuple(values[0]), tuple(values[1]))


class Outcome(enum.Enum):
    """How a test ended."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


TestKey = tuple[str | None, str]
"""A model, None for a test without one, and the name of the test."""


@attrs.frozen
class ReportLine:
    """One line of a report."""

    model: str | None
    test: str
    outcome: Outcome
    figures: Mapping[Figure, Sample]
    """The measured figures."""
    unit: str = "tokens"
    """Unit of the speed, per second."""
    model_bytes: float | None = None
    """Size of the model; None when unknown."""
    flags: tuple[str, ...] = ()
    """Disturbances of the machine; empty when there were none, or they were not recorded."""


@attrs.frozen
class MeasuredTest:
    """The result of one test of one model, over its records."""

    model: str | None
    test: str
    outcomes: Mapping[Outcome, int]
    """Outcome to number of records; only outcomes that occurred."""
    figures: Mapping[Figure, Sample]
    """Figures of the passed records: of a single record its own samples, of several the samples of their medians."""
    unit: str
    """As in ``ReportLine``, of the last record; so is ``model_bytes``."""
    model_bytes: float | None
    flags: tuple[str, ...]
    """Disturbances in any record."""

    @property
    def runs(self) -> int:
        """Number of records."""
        return sum(self.outcomes.values())

    @property
    def failed(self) -> int:
        """Number of failed records."""
        return self.outcomes.get(Outcome.FAILED, 0)

    @classmethod
    def of(cls, records: Sequence[ReportLine]) -> "MeasuredTest":
        """Return the result of at least one record of the same test."""
        passed = [record.figures for record in records if record.outcome is Outcome.PASSED]
        outcomes = {outcome: sum(record.outcome is outcome for record in records) for outcome in Outcome}
        last = records[-1]
        return cls(
            last.model,
            last.test,
            {outcome: count for outcome, count in outcomes.items() if count},
            {
                figure: _merged(samples)
                for figure in Figure
                if (samples := [figures[figure] for figures in passed if figure in figures])
            },
            last.unit,
            last.model_bytes,
            tuple(dict.fromkeys(flag for record in records for flag in record.flags)),
        )


def _merged(samples: Sequence[Sample]) -> Sample:
    return samples[0] if len(samples) == 1 else Sample.of([sample.median for sample in samples])


def results(records: Iterable[ReportLine]) -> list[MeasuredTest]:
    """Return the results of all tests; models and tests keep the order of their first record."""
    models: dict[str | None, dict[str, list[ReportLine]]] = {}
    for record in records:
        models.setdefault(record.model, {}).setdefault(record.test, []).append(record)
    return [MeasuredTest.of(lines) for tests in models.values() for lines in tests.values()]


@attrs.frozen
class Change:
    """One figure of a test, before and after."""

    model: str | None
    test: str
    figure: Figure
    unit: str
    before: Sample
    after: Sample

    @property
    def difference(self) -> Difference:
        """How the later sample compares with the earlier one."""
        return difference(self.figure, self.before, self.after)


@attrs.frozen
class ReportComparison:
    """An earlier and a later report, compared."""

    changes: tuple[Change, ...]
    """In the order of the first report."""
    only_before: tuple[TestKey, ...]
    only_after: tuple[TestKey, ...]
    now_failing: tuple[TestKey, ...]
    """Tests with a failed record in the second report only."""
    now_passing: tuple[TestKey, ...]
    """Tests with a failed record in the first report only."""

    @classmethod
    def of(cls, before: Sequence[MeasuredTest], after: Sequence[MeasuredTest]) -> "ReportComparison":
        """Return the comparison of an earlier report with a later one."""
        first, second = ({(test.model, test.test): test for test in tests} for tests in (before, after))
        both = [(first[key], second[key]) for key in first if key in second]
        return cls(
            tuple(
                Change(old.model, old.test, figure, new.unit, old.figures[figure], new.figures[figure])
                for old, new in both
                for figure in Figure
                if figure in old.figures and figure in new.figures
            ),
            tuple(key for key in first if key not in second),
            tuple(key for key in second if key not in first),
            tuple((new.model, new.test) for old, new in both if new.failed and not old.failed),
            tuple((new.model, new.test) for old, new in both if old.failed and not new.failed),
        )
