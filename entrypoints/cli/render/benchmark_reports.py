"""Benchmark reports: a JSON line for each row, in the report schema 0.2.2 of mlx-knife's benchmarks.

Writes results of this program, and reads reports of any: a faulty line is reported by its number, the others are read.
Facts for which the schema has no field are in ``metadata``.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs

from mlxk import __version__
from mlxk.domain.benchmark import Level, Machine, Row, Span
from mlxk.domain.comparison import Figure, Outcome, ReportLine, Sample
from mlxk.domain.errors import StorageError, ValidationError
from mlxk.domain.speed import ModelSpeed, ServerSpeed, TaskRow, Unit
from mlxk.entrypoints.cli.render.benchmark import level_object, name_of, rounded, row_object, task_object
from mlxk.entrypoints.cli.render.formatting import counted

SCHEMA = "0.2.2"
_KNOWN_SCHEMAS = frozenset({"0.1.0", "0.2.0", "0.2.1", SCHEMA})
_GIGABYTE = 10**9
_MEGABYTE = 10**6
_MAXIMUM = 1e15
"""Largest plausible value of a measurement, in any unit."""
_LONGEST_LINE = 2**20
_MOST_LINES = 10**6
"""More than any suite writes; all records are kept in memory."""


def report_lines(result: ModelSpeed | ServerSpeed) -> list[str]:
    """Return one line for each row or level, without unknown values: the schema has no null."""
    records = []
    if isinstance(result, ModelSpeed):
        for row in result.rows:
            test = f"bench::{row.shape.name}[streams={row.shape.streams}]"
            records.append({**_head(test, "passed", row.span), **_row_record(result, row)})
        for task in result.tasks:
            records.append({**_head(f"bench::{task.name}", "passed", task.span), **_task_record(result, task)})
    else:
        for level in result.levels:
            load = level.load
            test = f"bench::server[words={load.prompt_words},tokens={load.max_tokens},streams={load.streams}]"
            outcome = "failed" if level.failed else "passed"
            records.append({**_head(test, outcome, level.span), **_level_record(result, level)})
    return [json.dumps(each) for each in records]


def _head(test: str, outcome: str, span: Span | None) -> dict[str, Any]:
    if span is None:
        raise ValueError(f"{test} does not say when it was measured")
    return {
        "schema_version": SCHEMA,
        "timestamp": span.ended.isoformat(),
        "test_start_ts": span.began.timestamp(),
        "test_end_ts": span.ended.timestamp(),
        "mlx_knife_version": __version__,
        "test": test,
        "outcome": outcome,
    }


def _row_record(result: ModelSpeed, row: Row) -> dict[str, Any]:
    performance = {
        "tokens_per_sec": rounded(row.tokens_per_second.median),
        "prompt_tokens": row.shape.prompt_tokens * row.shape.streams,
        "completion_tokens": row.shape.generated_tokens * row.shape.streams,
        "model_load_time_s": rounded(result.load_seconds),
        "time_to_first_token_s": rounded(row.first_token_seconds.median),
    }
    return _model_record(result, performance, {"inference_modality": "text", **row_object(row)})


_MODALITIES = {Unit.IMAGES: "vision", Unit.SOUND: "audio", Unit.TEXTS: "text"}


def _task_record(result: ModelSpeed, task: TaskRow) -> dict[str, Any]:
    performance = {"duration_s": rounded(task.seconds.median), "model_load_time_s": rounded(result.load_seconds)}
    return _model_record(result, performance, {"inference_modality": _MODALITIES[task.unit], **task_object(task)})


def _model_record(result: ModelSpeed, performance: dict[str, Any], metadata: dict[str, Any]) -> dict[str, Any]:
    peak, size = result.peak_process_bytes, result.model.size_bytes
    memory = {"peak_ram_gb": None if peak is None else rounded(peak / _GIGABYTE)}
    return {
        "model": {
            "id": name_of(result),
            "size_gb": rounded(size / _GIGABYTE),
            "framework": result.model.framework.value,
        },
        "performance": _without_none({**performance, **memory}),
        "system": _system(result.machine),
        "metadata": metadata,
    }


def _level_record(result: ServerSpeed, level: Level) -> dict[str, Any]:
    first = level.first_token_seconds
    performance = {
        "tokens_per_sec": rounded(level.tokens_per_second),
        "duration_s": rounded(level.seconds),
        "prompt_tokens": level.prompt_tokens,
        "completion_tokens": level.completion_tokens,
        "time_to_first_token_s": None if first is None else rounded(first.p50),
    }
    return {
        "model": {"id": name_of(result)},
        "performance": _without_none(performance),
        "system": _system(result.machine),
        "metadata": {"inference_modality": "text", **level_object(level)},
    }


def _system(machine: Machine) -> dict[str, Any]:
    versions, memory = dict(machine.versions), machine.memory_bytes
    facts = {
        "platform": sys.platform,
        "platform_version": machine.system,
        "python_version": versions.get("python"),
        "mlx_version": versions.get("mlx"),
        "ram_total_gb": None if memory is None else rounded(memory / _GIGABYTE),
        "hardware_profile": {"chip": machine.processor.name} if machine.processor.name else None,
    }
    return _without_none(facts)


def _without_none(facts: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if value is not None}


@attrs.frozen
class LineFault:
    """A line that cannot be read."""

    file: str
    """The path as typed."""
    line: int
    """Its number, from 1."""
    reason: str

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}: {self.reason}"


_MOST_FAULTS = 20
"""Faulty lines listed one by one; further ones are counted."""


def fault_lines(faults: Sequence[LineFault]) -> list[str]:
    """Return a sentence for each faulty line, and one for all beyond the first 20."""
    sentences = [f"{each}; it is left out" for each in faults[:_MOST_FAULTS]]
    if len(faults) > _MOST_FAULTS:
        sentences.append(f"{counted(len(faults) - _MOST_FAULTS, 'further line')} could not be read")
    return sentences


def first_fault(faults: Sequence[LineFault]) -> str:
    """Return why a file has no valid line, as the end of a sentence."""
    return f": line {faults[0].line}: {faults[0].reason}" if faults else ": it is empty"


@attrs.frozen
class Report:
    """The content of one report, which may be several files."""

    files: tuple[str, ...]
    records: tuple[ReportLine, ...]
    schemas: tuple[str, ...]
    """Schema versions of the lines, without duplicates."""
    faults: tuple[LineFault, ...]

    @property
    def unknown_schemas(self) -> tuple[str, ...]:
        """Schema versions that this program does not know; the known fields of their lines are read."""
        return tuple(each for each in self.schemas if each not in _KNOWN_SCHEMAS)


def read_reports(*paths: str) -> Report:
    """Read the files of one report.

    Raises:
        StorageError: A file cannot be read.
        ValidationError: A file has no valid line.
    """
    records: list[ReportLine] = []
    schemas: dict[str, None] = {}
    faults: list[LineFault] = []
    for path in paths:
        before, faults_before = len(records), len(faults)
        for number, line in numbered_lines(path):
            try:
                document = json_object(line)
                records.append(_record(document))
                schemas[document["schema_version"]] = None
            except ValueError as error:
                faults.append(LineFault(path, number, str(error)))
        if len(records) == before:
            raise ValidationError(
                f"'{path}' is no report of a benchmark{first_fault(faults[faults_before:])}",
                hint="A report is written with: mlxk bench --report FILE",
            )
    return Report(paths, tuple(records), tuple(schemas), tuple(faults))


def numbered_lines(path: str) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a file that are not blank, with their numbers; end after a line that is too long.

    Raises:
        StorageError: The file cannot be read.
        ValidationError: It has more than ``_MOST_LINES`` lines.
    """
    number = 0
    try:
        with open(path, "rb") as file:
            while line := file.readline(_LONGEST_LINE + 1):
                number += 1
                if number > _MOST_LINES:
                    raise ValidationError(f"'{path}' has more than {_MOST_LINES} lines")
                if line.strip():
                    yield number, line
                if len(line) > _LONGEST_LINE:
                    return
    except OSError as error:
        raise StorageError(f"'{path}' cannot be read: {error.strerror}") from error


class FaultyLineError(ValueError):
    """A line cannot be read; the message says why."""


def json_object(line: bytes) -> dict[str, Any]:
    """Parse a line as a JSON object.

    Raises:
        FaultyLineError: It is too long, or no JSON object.
    """
    if len(line) > _LONGEST_LINE:
        raise FaultyLineError(f"it is longer than {_LONGEST_LINE} bytes; nothing after it is read")
    try:
        document = json.loads(line.decode("utf-8-sig").strip())
    except UnicodeDecodeError:
        raise FaultyLineError("it is not text in UTF-8") from None
    except json.JSONDecodeError as error:
        raise FaultyLineError(f"it is no JSON: {error.msg} at character {error.pos + 1}") from None
    except (ValueError, RecursionError):
        raise FaultyLineError("it is no JSON that can be read") from None
    if not isinstance(document, dict):
        raise FaultyLineError("it is no JSON object")
    return document


_TEXTS = ("schema_version", "timestamp", "mlx_knife_version", "test", "outcome")
"""Fields of text that every record has."""

_FIGURES: Mapping[Figure, tuple[Mapping[str, float], tuple[str, ...]]] = {
    Figure.SPEED: ({"tokens_per_sec": 1}, ("per_second", "tokens_per_second")),
    Figure.FIRST_TOKEN: ({"time_to_first_token_s": 1}, ("first_token_seconds",)),
    Figure.LOAD: ({"model_load_time_s": 1}, ()),
    Figure.DURATION: ({"duration_s": 1}, ("end_to_end_seconds", "seconds")),
    Figure.MEMORY: ({"peak_ram_gb": _GIGABYTE, "ram_peak_mb": _MEGABYTE}, ()),
}
"""Where a figure is: names in ``performance``, each with its factor, and names in ``metadata`` of several runs."""


def _record(document: dict[str, Any]) -> ReportLine:
    for name in _TEXTS:
        _text(document, name)
    if document["outcome"] not in [each.value for each in Outcome]:
        raise FaultyLineError(f"outcome is none of {', '.join(each.value for each in Outcome)}")
    parts = {name: _object(document, name) for name in ("model", "performance", "metadata", "system_health")}
    model, metadata, performance = parts["model"], parts["metadata"], parts["performance"]
    size = _number(model, "model", "size_gb")
    figures = dict(_figures(performance, metadata))
    duration = _number(document, "", "duration")
    if duration is not None and Figure.SPEED not in figures:
        figures[Figure.DURATION] = Sample(1, duration, duration, duration)
    flags = parts["system_health"].get("quality_flags") or []
    return ReportLine(
        _text(model, "id", "model") if model.get("id") is not None else None,
        document["test"],
        Outcome(document["outcome"]),
        figures,
        unit if isinstance(unit := metadata.get("unit"), str) and unit else "tokens",
        None if size is None else size * _GIGABYTE,
        tuple(str(each) for each in flags if each != "clean") if isinstance(flags, list) else (),
    )


def _figures(performance: dict[str, Any], metadata: dict[str, Any]) -> Iterator[tuple[Figure, Sample]]:
    for figure, (names, spreads) in _FIGURES.items():
        single = [_number(performance, "performance", name) for name in names]
        values = [value * unit for value, unit in zip(single, names.values(), strict=True) if value is not None]
        of_runs = [found for name in spreads if (found := _sample(metadata.get(name), metadata))]
        if of_runs or values:
            yield figure, of_runs[0] if of_runs else Sample(1, values[0], values[0], values[0])


def _sample(values: object, metadata: dict[str, Any]) -> Sample | None:
    """Return median and quartiles of several runs, as this program writes them; None for anything else."""
    if not isinstance(values, dict):
        return None
    for names, runs in (
        (("median", "lower_quartile", "upper_quartile"), metadata.get("repeats")),
        (("p50", "p25", "p75"), metadata.get("requests")),
    ):
        if isinstance(runs, int) and runs > 0 and all(_is_number(values.get(name)) for name in names):
            return Sample(runs, *(float(values[name]) for name in names))
    return None


def _text(document: dict[str, Any], name: str, where: str = "") -> str:
    value = document.get(name)
    if not isinstance(value, str) or not value:
        fault = "is missing" if name not in document else "is no text"
        raise FaultyLineError(f"{f'{where}.' if where else ''}{name} {fault}")
    return value


def _object(document: dict[str, Any], name: str) -> dict[str, Any]:
    value = document.get(name)
    if not isinstance(value, dict | None):
        raise FaultyLineError(f"{name} is no object")
    return value or {}


def _number(document: dict[str, Any], where: str, name: str) -> float | None:
    value = document.get(name)
    if value is not None and not _is_number(value):
        raise FaultyLineError(f"{f'{where}.' if where else ''}{name} is no number from 0")
    return None if value is None else float(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _MAXIMUM
