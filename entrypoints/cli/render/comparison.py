"""Renders benchmark reports, the changes between two reports, and the comparison of two sides in rounds."""

import itertools
import textwrap
from collections import Counter
from collections.abc import Sequence
from typing import Any

from mlxk.domain.comparison import (
    Answer,
    Change,
    Comparison,
    Contest,
    Difference,
    Figure,
    MeasuredTest,
    Outcome,
    ReportComparison,
    Sample,
    TestKey,
    Turn,
    change,
    results,
)
from mlxk.entrypoints.cli.render.benchmark import (
    escaped,
    machine_object,
    machine_text,
    rounded,
    seconds_text,
    version_objects,
)
from mlxk.entrypoints.cli.render.benchmark_reports import Report, fault_lines
from mlxk.entrypoints.cli.render.formatting import SEPARATOR, counted, decimal_size, printable, table

_TITLES = {
    Figure.SPEED: "speed",
    Figure.FIRST_TOKEN: "first token",
    Figure.LOAD: "load",
    Figure.DURATION: "duration",
    Figure.MEMORY: "memory",
}
_WIDEST = 60
"""Characters of the last column."""

_DIFFERENCE_WORDS = {
    Difference.BETTER: "better",
    Difference.WORSE: "worse",
    Difference.NONE: "no difference",
    Difference.UNKNOWN: "too few runs",
}


def reports_document(before: Report, after: Report | None) -> dict[str, Any]:
    """Return the data of ``bench report --json``."""
    reports = [before] if after is None else [before, after]
    tests = [results(each.records) for each in reports]
    compared = None if after is None else ReportComparison.of(*tests)
    return {
        "reports": [_report_object(*each) for each in zip(reports, tests, strict=True)],
        "comparison": None if compared is None else _comparison_object(compared),
    }


def _report_object(report: Report, tests: Sequence[MeasuredTest]) -> dict[str, Any]:
    return {
        "files": list(report.files),
        "records": len(report.records),
        "schema_versions": list(report.schemas),
        "faults": [{"file": each.file, "line": each.line, "reason": each.reason} for each in report.faults],
        "tests": [_test_object(each) for each in tests],
    }


def _test_object(test: MeasuredTest) -> dict[str, Any]:
    return {
        "model_id": test.model,
        "test": test.test,
        **{kind.value: test.outcomes.get(kind, 0) for kind in Outcome},
        "unit": test.unit,
        "figures": [{"figure": figure.value, **_sample_object(sample)} for figure, sample in test.figures.items()],
        "quality_flags": list(test.flags),
    }


def _sample_object(sample: Sample) -> dict[str, Any]:
    names = ("median", "lower_quartile", "upper_quartile")
    return {"runs": sample.runs, **{name: rounded(getattr(sample, name)) for name in names}}


def _comparison_object(compared: ReportComparison) -> dict[str, Any]:
    lists = ("only_before", "only_after", "now_failing", "now_passing")
    keys = {name: [_key_object(each) for each in getattr(compared, name)] for name in lists}
    return {"changes": [_change_object(each) for each in compared.changes], **keys}


def _key_object(key: TestKey) -> dict[str, Any]:
    return {"model_id": key[0], "test": key[1]}


def _change_object(found: Change) -> dict[str, Any]:
    return {
        **_key_object((found.model, found.test)),
        "figure": found.figure.value,
        "unit": found.unit,
        "before": _sample_object(found.before),
        "after": _sample_object(found.after),
        "change": rounded(change(found.before, found.after)),
        "difference": found.difference.value,
    }


Section = tuple[str, Sequence[str], Sequence[Sequence[str]], Sequence[str]]
"""A heading, the titles and rows of a table, and sentences below it; without rows there is no table."""


def reports_text(before: Report, after: Report | None, width: int | None) -> str:
    """Return reports for a terminal; the width is None for a file or a pipe."""
    parts = []
    for heading, titles, rows, sentences in _sections(before, after):
        rows_text = table(titles, rows, width, last=_WIDEST) if rows else ""
        parts.append(f"{printable(heading)}\n" + rows_text + "".join(f"{printable(each)}\n" for each in sentences))
    return "\n".join(parts)


def reports_markdown(before: Report, after: Report | None) -> str:
    """Return reports in Markdown."""
    parts = []
    for heading, titles, rows, sentences in _sections(before, after):
        lines = [f"### {escaped(heading)}", ""]
        if rows:
            lines += [f"| {' | '.join(titles)} |", f"|{'---|' * len(titles)}"]
            lines += [*(f"| {' | '.join(map(escaped, row))} |" for row in rows), ""]
        lines += [*(f"- {escaped(each)}" for each in sentences), *([""] if sentences else [])]
        parts.append("\n".join(lines))
    return "\n".join(parts).rstrip("\n") + "\n"


def _sections(before: Report, after: Report | None) -> list[Section]:
    if after is None:
        return _report_sections(results(before.records))
    return _comparison_sections(ReportComparison.of(results(before.records), results(after.records)))


def _report_sections(tests: Sequence[MeasuredTest]) -> list[Section]:
    """Return a section for each model."""
    sections: list[Section] = []
    for model in dict.fromkeys(each.model for each in tests):
        its_tests = [each for each in tests if each.model == model]
        size = next((each.model_bytes for each in its_tests if each.model_bytes is not None), None)
        heading = "Without a model" if model is None else f"Model: {model}"
        heading += "" if size is None else f" ({decimal_size(round(size))})"
        figures = [figure for figure in Figure if any(figure in each.figures for each in its_tests)]
        names = _short_names([each.test for each in its_tests])
        titles = ["test", "records", "outcome", *(_TITLES[each] for each in figures), "disturbed"]
        rows = [
            [
                names[each.test],
                str(each.runs),
                _outcomes(each),
                *(_value(figure, each.figures.get(figure), each.unit) for figure in figures),
                ", ".join(each.flags) or "-",
            ]
            for each in its_tests
        ]
        sections.append((heading, titles, rows, ()))
    return sections


def _outcomes(test: MeasuredTest) -> str:
    if len(test.outcomes) == 1:
        return next(iter(test.outcomes)).value
    return ", ".join(f"{count} {kind.value}" for kind, count in test.outcomes.items())


def _short_names(tests: Sequence[str]) -> dict[str, str]:
    """Return a short, unique label for each test: what follows the last ``::``, or the whole id where two share it."""
    short = {test: test.rpartition("::")[2] or test for test in tests}
    counts = Counter(short.values())
    return {test: name if counts[name] == 1 else test for test, name in short.items()}


def _comparison_sections(comparison: ReportComparison) -> list[Section]:
    """Return a section for each model with the figures in both reports, and one for tests that cannot be compared."""
    sections: list[Section] = []
    for model in dict.fromkeys(each.model for each in comparison.changes):
        its_changes = [each for each in comparison.changes if each.model == model]
        names = _short_names(list(dict.fromkeys(each.test for each in its_changes)))
        rows = [
            [
                names[each.test],
                _TITLES[each.figure],
                _value(each.figure, each.before, each.unit),
                _value(each.figure, each.after, each.unit),
                _share(change(each.before, each.after)),
                _DIFFERENCE_WORDS[each.difference],
            ]
            for each in its_changes
        ]
        heading = "Without a model" if model is None else f"Model: {model}"
        sections.append((heading, ("test", "figure", "before", "after", "change", "difference"), rows, ()))
    lists = (
        ("fails now, and did not", comparison.now_failing),
        ("does not fail any more", comparison.now_passing),
        ("is in the first report only", comparison.only_before),
        ("is in the second report only", comparison.only_after),
    )
    sentences = [f"{_test_name(key)} {words}" for words, keys in lists for key in keys]
    heading = "Besides" if sections else "Nothing in the two reports can be compared"
    return [*sections, (heading, (), (), sentences)] if sentences or not sections else sections


def _test_name(key: TestKey) -> str:
    return key[1] if key[0] is None else f"{key[1]} of {key[0]}"


def _share(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:+.1f} %"


def _value(figure: Figure, sample: Sample | None, unit: str) -> str:
    """Return a figure with its unit, and the middle half of its values where there are several."""
    if sample is None:
        return "-"
    median = _single(figure, sample.median, unit)
    if sample.runs == 1:
        return median
    ends = [_single(figure, value, unit) for value in (sample.lower_quartile, sample.upper_quartile)]
    if len({each.partition(" ")[2] for each in (median, *ends)}) == 1:
        ends = [each.partition(" ")[0] for each in ends]
    return f"{median} ({ends[0]} to {ends[1]})" if ends[0] != ends[1] else median


def _single(figure: Figure, value: float, unit: str) -> str:
    if figure is Figure.SPEED:
        return f"{value:.1f} {unit}/s"
    return decimal_size(round(value)) if figure is Figure.MEMORY else seconds_text(value)


_SIDES = ("A", "B")
"""Labels of the two sides."""


def comparison_document(comparison: Comparison) -> dict[str, Any]:
    """Return the data of ``bench --against --json``, which the file of ``--results`` holds as well."""
    sides = (comparison.first, comparison.second)
    return {
        "machine": machine_object(comparison.machine),
        "versions": version_objects(comparison.machine),
        "notes": list(comparison.notes),
        "sides": [
            {
                "name": name,
                "model_id": side.model,
                "server": side.server,
                "rounds": [_turn_object(each) for each in side.turns],
            }
            for name, side in zip(_SIDES, sides, strict=True)
        ],
        "questions": list(comparison.questions),
        "figures": [_contest_object(each) for each in comparison.contests],
        "winner": _winner(comparison),
    }


def _turn_object(turn: Turn) -> dict[str, Any]:
    names = ("load_seconds", "first_token_seconds", "tokens_per_second", "answer_seconds", "total_seconds")
    return {
        **{name: rounded(getattr(turn, name)) for name in names},
        "memory_bytes": turn.memory_bytes,
        "answers": [{"text": each.text, "tokens": each.tokens} for each in turn.answers],
    }


def _contest_object(contest: Contest) -> dict[str, Any]:
    first, second = Sample.of(contest.first), Sample.of(contest.second)
    return {
        "figure": contest.figure.value,
        "a": _sample_object(first),
        "b": _sample_object(second),
        "change": rounded(change(first, second)),
        "rounds_ahead": dict(zip(("a", "b"), contest.ahead, strict=True)),
        "difference": contest.difference.value,
    }


def _winner(comparison: Comparison) -> str | None:
    """Return the label of the side that generates faster; None where the rounds do not show a difference."""
    speed = next((each.difference for each in comparison.contests if each.figure is Figure.SPEED), Difference.NONE)
    return {Difference.BETTER: "B", Difference.WORSE: "A"}.get(speed)


def comparison_text(comparison: Comparison, width: int | None) -> str:
    """Return a comparison for a terminal; the width is None for a file or a pipe."""
    lines = [printable(each) for each in (*_facts(comparison), "")]
    contests = table(_CONTEST_TITLES, [_contest_cells(each) for each in comparison.contests], width, last=_WIDEST)
    after = ["", _verdict(comparison), *(f"Note: {printable(each)}" for each in comparison.notes)]
    half = max(_NARROWEST_ANSWER, ((width or _USUAL_WIDTH) - len(SEPARATOR)) // 2)
    for question, first, second in _answers(comparison):
        after += [
            "",
            f"Asked: {printable(question)}",
            *_side_by_side(_answer_lines("A", first), _answer_lines("B", second), half),
        ]
    return "".join(f"{each}\n" for each in lines) + contests + "".join(f"{each}\n" for each in after)


def comparison_markdown(comparison: Comparison) -> str:
    """Return a comparison in Markdown."""
    lines = [*(f"- {escaped(each)}" for each in _facts(comparison)), ""]
    lines += [f"| {' | '.join(_CONTEST_TITLES)} |", f"|{'---|' * len(_CONTEST_TITLES)}"]
    lines += [f"| {' | '.join(_contest_cells(each))} |" for each in comparison.contests]
    lines += ["", _verdict(comparison), "", *(f"- {escaped(each)}" for each in comparison.notes)]
    for question, *answers in _answers(comparison):
        lines += ["", f"### {escaped(question)}"]
        for name, answer in zip(_SIDES, answers, strict=True):
            head, *text = _answer_lines(name, answer)
            lines += ["", f"{head}:", "", *(f"    {printable(each)}" for each in text)]
    return "".join(f"{line}\n" for line in lines)


_CONTEST_TITLES = ("figure", "A", "B", "B beside A", "ahead A : B", "difference")
_CONTEST_NAMES = {**_TITLES, Figure.SPEED: "tokens/s", Figure.DURATION: "total"}
_USUAL_WIDTH, _NARROWEST_ANSWER = 120, 30


def _facts(comparison: Comparison) -> list[str]:
    sides = (comparison.first, comparison.second)
    places = ["on this machine" if each.server is None else f"at {each.server}" for each in sides]
    rounds = counted(len(comparison.first.turns), "round")
    return [
        *(f"{name}: {side.model} {place}" for name, side, place in zip(_SIDES, sides, places, strict=True)),
        f"Measured on: {machine_text(comparison.machine)}",
        f"Asked: {counted(len(comparison.questions), 'question')} in each of {rounds}; the sides begin in turns",
    ]


def _contest_cells(contest: Contest) -> list[str]:
    first, second = Sample.of(contest.first), Sample.of(contest.second)
    words = {Difference.BETTER: "B is better", Difference.WORSE: "A is better", Difference.UNKNOWN: "too few rounds"}
    return [
        _CONTEST_NAMES[contest.figure],
        *(_value(contest.figure, each, "tokens") for each in (first, second)),
        _share(change(first, second)),
        " : ".join(map(str, contest.ahead)),
        words.get(contest.difference, _DIFFERENCE_WORDS[contest.difference]),
    ]


def _verdict(comparison: Comparison) -> str:
    winner = _winner(comparison)
    speed = next((each for each in comparison.contests if each.figure is Figure.SPEED), None)
    if speed is None:
        return "No winner: a side does not count its tokens, or sends an answer in one piece."
    if winner is None:
        few = speed.difference is Difference.UNKNOWN
        return "No winner: too few rounds." if few else "No difference in tokens/s that the rounds support."
    share = _share(change(Sample.of(speed.first), Sample.of(speed.second)))
    ahead = speed.ahead[_SIDES.index(winner)]
    return f"Winner: {winner}, ahead in tokens/s in {ahead} of {len(speed.first)} rounds; B beside A: {share}."


def _answers(comparison: Comparison) -> list[tuple[str, Answer, Answer]]:
    """Return each question with the answers of the last round."""
    last = (comparison.first.turns[-1].answers, comparison.second.turns[-1].answers)
    return list(zip(comparison.questions, *last, strict=True))


def _answer_lines(name: str, answer: Answer) -> list[str]:
    count = "" if answer.tokens is None else f" ({counted(answer.tokens, 'token')})"
    return [f"{name}{count}", *answer.text.strip().splitlines()]


def _side_by_side(first: Sequence[str], second: Sequence[str], width: int) -> list[str]:
    """Return two texts in columns."""
    columns = [
        [part for line in each for part in textwrap.wrap(printable(line), width) or [""]] for each in (first, second)
    ]
    pairs = itertools.zip_longest(*columns, fillvalue="")
    return [f"{left.ljust(width)}{SEPARATOR}{right}".rstrip() for left, right in pairs]


def fault_notes(report: Report) -> list[str]:
    """Return sentences about lines that could not be read or name an unknown schema version."""
    notes = fault_lines(report.faults)
    if unknown := report.unknown_schemas:
        notes.append(f"schema {', '.join(unknown)} is not known; what is known of its lines was read")
    return notes
