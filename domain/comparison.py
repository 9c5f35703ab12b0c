"""When a difference between benchmarks counts: rounds of two sides, and records of earlier benchmarks."""

import enum
import math
from collections.abc import Iterable, Mapping, Sequence

import attrs

from mlxk.domain.benchmark import Machine, RemoteCompletion, Spread, percentile

LEAST_RUNS = 5
"""Fewer runs of a side do not show how far its values lie apart."""

_WIDTH = 2.5
"""Interquartile ranges by which a median is uncertain either way, divided by the square root of the runs.

Of two samples of the same normal distribution, of 5 runs or more, the intervals lie apart in 4 % of cases at most.
"""

NEGLIGIBLE_SHARE = 0.03
"""Share of the first median up to which another median is called no difference, however sure it is."""


class Figure(enum.Enum):
    """What was measured; values are names for programs."""

    SPEED = "speed"
    """Tokens, or what the unit of the record says, a second."""
    FIRST_TOKEN = "first_token"
    """Seconds to the first token."""
    LOAD = "load"
    """Seconds to the model in memory."""
    DURATION = "duration"
    """Seconds of the whole."""
    MEMORY = "memory"
    """Bytes at most."""

    @property
    def more_is_better(self) -> bool:
        """Whether the greater value is the better one."""
        return self is Figure.SPEED


@attrs.frozen
class Sample:
    """The values of one figure."""

    runs: int
    """How many values there were."""
    median: float
    lower_quartile: float
    upper_quartile: float

    @property
    def uncertainty(self) -> float:
        """How far the median may lie from that of any number of runs, either way."""
        return _WIDTH * (self.upper_quartile - self.lower_quartile) / math.sqrt(self.runs)

    @classmethod
    def of(cls, values: Sequence[float]) -> "Sample":
        """Return that of at least one value."""
        spread = Spread.of(values)
        return cls(len(values), spread.median, spread.lower_quartile, spread.upper_quartile)


class Difference(enum.Enum):
    """What the second of two samples is, beside the first."""

    BETTER = "better"
    WORSE = "worse"
    NONE = "none"
    """Their runs do not support one."""
    UNKNOWN = "unknown"
    """There are too few runs to tell."""


def change(before: Sample, after: Sample) -> float | None:
    """Return the change of the median as a share of the first; None where that is 0."""
    return (after.median - before.median) / before.median if before.median else None


def difference(figure: Figure, before: Sample, after: Sample) -> Difference:
    """Return whether the second sample is better or worse.

    It is when both have ``LEAST_RUNS``, and the medians differ by more than ``NEGLIGIBLE_SHARE`` and by more than both
    uncertainties together.
    """
    if min(before.runs, after.runs) < LEAST_RUNS:
        return Difference.UNKNOWN
    apart = abs(after.median - before.median)
    if apart <= max(before.uncertainty + after.uncertainty, NEGLIGIBLE_SHARE * before.median):
        return Difference.NONE
    return Difference.BETTER if (after.median > before.median) is figure.more_is_better else Difference.WORSE


LEAST_ROUNDS = 6
"""With fewer, chance alone puts the same side ahead in all of them in more than one case of twenty."""

_LIKELY = 0.05


@attrs.frozen
class Contest:
    """One figure of two sides, measured in the same rounds."""

    figure: Figure
    first: tuple[float, ...]
    second: tuple[float, ...]
    """Of the same round in the same place."""

    @property
    def ahead(self) -> tuple[int, int]:
        """In how many rounds the first and the second were better."""
        more = sum(one > other for one, other in zip(self.first, self.second, strict=True))
        less = sum(one < other for one, other in zip(self.first, self.second, strict=True))
        return (more, less) if self.figure.more_is_better else (less, more)

    @property
    def difference(self) -> Difference:
        """What the second side is beside the first: as for samples, and ahead in more rounds than chance explains."""
        if len(self.first) < LEAST_ROUNDS:
            return Difference.UNKNOWN
        if by_chance(*self.ahead) >= _LIKELY:
            return Difference.NONE
        return difference(self.figure, Sample.of(self.first), Sample.of(self.second))


def by_chance(ahead: int, behind: int) -> float:
    """Return how likely equal sides are at least that far apart: the two-sided sign test."""
    rounds, least = ahead + behind, min(ahead, behind)
    cases = sum(math.comb(rounds, count) for count in range(least + 1))
    return min(1.0, math.ldexp(2 * cases, -rounds))


@attrs.frozen
class Answer:
    """What a side said to a question."""

    text: str
    tokens: int | None
    """As the side counts them; None when it does not."""


@attrs.frozen
class Turn:
    """What one side did in one round; None for what is not known."""

    load_seconds: float | None
    first_token_seconds: float | None
    """The median of the questions."""
    tokens_per_second: float | None
    """Of all answers, from the first token of each to its end."""
    answer_seconds: float
    """Of all answers together."""
    memory_bytes: int | None
    answers: tuple[Answer, ...]

    @property
    def total_seconds(self) -> float:
        """Load and answers; the answers alone where the load is not known."""
        return (self.load_seconds or 0.0) + self.answer_seconds

    @classmethod
    def of(cls, load: float | None, memory: int | None, completions: Sequence[RemoteCompletion]) -> "Turn":
        """Return the turn with the answers to at least one question."""
        firsts = [each.first_token - each.began for each in completions if each.first_token is not None]
        gaps = [
            (each.completion_tokens or 0, each.ended - each.first_token) for each in completions if each.first_token
        ]
        tokens, seconds = sum(max(0, count - 1) for count, _ in gaps), sum(each for _, each in gaps)
        return cls(
            load,
            percentile(firsts, 0.5) if firsts else None,
            tokens / seconds if tokens and seconds > 0 else None,
            sum(each.ended - each.began for each in completions),
            memory,
            tuple(Answer(each.text, each.completion_tokens) for each in completions),
        )


@attrs.frozen
class SideResult:
    """One side and its turns."""

    model: str
    server: str | None
    turns: tuple[Turn, ...]


@attrs.frozen
class Comparison:
    """Two sides that took turns."""

    machine: Machine
    questions: tuple[str, ...]
    first: SideResult
    second: SideResult
    notes: tuple[str, ...]
    """What limits its meaning, a sentence each."""

    @property
    def contests(self) -> tuple[Contest, ...]:
        """The figures that both sides have of every round."""
        turns = (self.first.turns, self.second.turns)
        loads = all(turn.load_seconds is not None for side in turns for turn in side)
        fields = {**_FIELDS, Figure.DURATION: "total_seconds" if loads else "answer_seconds"}
        found = (_contest(figure, name, *turns) for figure, name in fields.items())
        return tuple(each for each in found if each is not None)


_FIELDS = {
    Figure.SPEED: "tokens_per_second",
    Figure.FIRST_TOKEN: "first_token_seconds",
    Figure.LOAD: "load_seconds",
    Figure.DURATION: "total_seconds",
    Figure.MEMORY: "memory_bytes",
}
"""The field of a turn that each figure is; the answers alone are the total where the load of a side is not known."""


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
    """Those that it has."""
    unit: str = "tokens"
    """What the speed counts."""
    model_bytes: float | None = None
    """Size of the model; None when unknown."""
    flags: tuple[str, ...] = ()
    """What disturbed the machine; empty when nothing did, or nobody looked."""


@attrs.frozen
class MeasuredTest:
    """The records of one test of one model."""

    model: str | None
    test: str
    outcomes: Mapping[Outcome, int]
    """How many records ended so; without those that none did."""
    figures: Mapping[Figure, Sample]
    """Of the records that passed: of a single one as it has them, of several over their medians."""
    unit: str
    model_bytes: float | None
    flags: tuple[str, ...]

    @property
    def runs(self) -> int:
        """Records."""
        return sum(self.outcomes.values())

    @property
    def failed(self) -> int:
        """Records that failed."""
        return self.outcomes.get(Outcome.FAILED, 0)

    @classmethod
    def of(cls, records: Sequence[ReportLine]) -> "MeasuredTest":
        """Return the result of at least one record of the same test."""
        passed = [each.figures for each in records if each.outcome is Outcome.PASSED]
        outcomes = {kind: sum(each.outcome is kind for each in records) for kind in Outcome}
        last = records[-1]
        return cls(
            last.model,
            last.test,
            {kind: count for kind, count in outcomes.items() if count},
            {figure: _merged([each[figure] for each in passed if figure in each]) for figure in _known(passed)},
            last.unit,
            last.model_bytes,
            tuple(dict.fromkeys(flag for each in records for flag in each.flags)),
        )


def _known(passed: Iterable[Mapping[Figure, Sample]]) -> list[Figure]:
    seen = {figure for each in passed for figure in each}
    return [figure for figure in Figure if figure in seen]


def _merged(samples: Sequence[Sample]) -> Sample:
    return samples[0] if len(samples) == 1 else Sample.of([each.median for each in samples])


def results(records: Iterable[ReportLine]) -> list[MeasuredTest]:
    """Return the results of all tests, models and tests in the order in which they first appear."""
    models: dict[str | None, dict[str, list[ReportLine]]] = {}
    for record in records:
        models.setdefault(record.model, {}).setdefault(record.test, []).append(record)
    return [MeasuredTest.of(each) for tests in models.values() for each in tests.values()]


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
        """What the later sample is beside the earlier one."""
        return difference(self.figure, self.before, self.after)


@attrs.frozen
class ReportComparison:
    """What two reports have in common, and what not."""

    changes: tuple[Change, ...]
    """In the order of the first report."""
    only_before: tuple[TestKey, ...]
    only_after: tuple[TestKey, ...]
    now_failing: tuple[TestKey, ...]
    """Tests of which a record failed in the second report and none in the first."""
    now_passing: tuple[TestKey, ...]
    """The other way round."""

    @classmethod
    def of(cls, before: Sequence[MeasuredTest], after: Sequence[MeasuredTest]) -> "ReportComparison":
        """Return the comparison of an earlier report with a later one."""
        first, second = ({(each.model, each.test): each for each in found} for found in (before, after))
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
