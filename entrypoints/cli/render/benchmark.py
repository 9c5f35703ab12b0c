"""Renders results of benchmarks as JSON, as tables for the terminal, and as Markdown."""

from collections.abc import Sequence
from typing import Any

from mlxk import __version__
from mlxk.application.use_cases.model_tasks import identity_of
from mlxk.domain.benchmark import Level, Machine, Percentiles, Row, Spread, StatedSpeeds
from mlxk.domain.speed import ModelSpeed, ServerSpeed, TaskRow
from mlxk.entrypoints.cli.render.formatting import decimal_size, printable, table
from mlxk.entrypoints.cli.render.model_table import SHORT_HASH

_ROW_TITLES = ("test", "streams", "tokens/s", "IQR", "first token", "noise")
_TASK_TITLES = ("test", "speed", "IQR", "time", "noise")
_LEVEL_TITLES = (
    "streams",
    "prompt",
    "output",
    "requests",
    "failed",
    "tokens/s",
    "first token p50/p90/p99",
    "between tokens p50/p90/p99",
    "end to end p50/p90/p99",
)
_STATED_TITLE = "server's own tokens/s prompt/output"
_LEAST_REPEATS = 3
"""Fewer runs have no meaningful interquartile range."""

_WIDEST = 60
"""Characters of the last column."""


def document(result: ModelSpeed | ServerSpeed, server: str | None) -> dict[str, Any]:
    """Return the data of ``bench --json``; times in seconds.

    Args:
        result: The result.
        server: The address of the server; None for a model of this machine.
    """
    local = result if isinstance(result, ModelSpeed) else None
    workspace = local and local.model.workspace
    return {
        "model": name_of(result),
        "hash": local and local.model.handle.commit,
        "content_hash": workspace and workspace.content_hash,
        "server": server,
        "machine": machine_object(result.machine),
        "versions": version_objects(result.machine),
        "load_seconds": rounded(result.load_seconds),
        "peak_memory": local and _peaks(local),
        "rows": [row_object(each) for each in result.rows] if isinstance(result, ModelSpeed) else [],
        "tasks": [task_object(each) for each in result.tasks] if isinstance(result, ModelSpeed) else [],
        "levels": [level_object(each) for each in result.levels] if isinstance(result, ServerSpeed) else [],
        "notes": list(result.notes),
    }


def name_of(result: ModelSpeed | ServerSpeed) -> str:
    """Return the name of the model, without a path of this machine."""
    if isinstance(result, ServerSpeed):
        return result.model
    return identity_of(result.model)


def _peaks(result: ModelSpeed) -> dict[str, int | None]:
    return {"array_bytes": result.peak_array_bytes, "process_bytes": result.peak_process_bytes}


def _versions(machine: Machine) -> list[tuple[str, str]]:
    return [("mlxk", __version__), *machine.versions]


def version_objects(machine: Machine) -> list[dict[str, str]]:
    """Return the versions of the program and its libraries as JSON."""
    return [{"name": name, "version": version} for name, version in _versions(machine)]


def machine_object(machine: Machine) -> dict[str, Any]:
    """Return a machine as JSON."""
    return {
        "system": machine.system,
        "architecture": machine.architecture,
        "processor": machine.processor.name or None,
        "cores": machine.processor.cores,
        "memory_bytes": machine.memory_bytes,
        "device": "cpu" if machine.on_cpu else "gpu",
        "matrix_library": machine.matrix_library,
        "load_before": rounded(machine.load_before),
    }


def row_object(row: Row) -> dict[str, Any]:
    """Return a row as JSON."""
    return {
        "test": row.shape.name,
        "phase": row.shape.phase.value,
        "tokens": row.shape.tokens,
        "depth": row.shape.depth,
        "streams": row.shape.streams,
        "repeats": row.repeats,
        "tokens_per_second": _spread(row.tokens_per_second),
        "first_token_seconds": _spread(row.first_token_seconds),
        "noisy": row.noisy,
    }


def task_object(task: TaskRow) -> dict[str, Any]:
    """Return a row of images, sound or embedded texts as JSON."""
    return {
        "test": task.name,
        "unit": task.unit.value,
        "amount": rounded(task.amount),
        "repeats": task.repeats,
        "per_second": _spread(task.per_second),
        "seconds": _spread(task.seconds),
        "noisy": task.noisy,
    }


def _spread(spread: Spread) -> dict[str, float | None]:
    names = ("median", "lower_quartile", "upper_quartile", "least", "most")
    return {name: rounded(getattr(spread, name)) for name in names}


def level_object(level: Level) -> dict[str, Any]:
    """Return a level as JSON."""
    return {
        "streams": level.load.streams,
        "prompt_words": level.load.prompt_words,
        "max_tokens": level.load.max_tokens,
        "requests": level.requests,
        "failed": level.failed,
        "failures": [{"reason": reason, "count": count} for reason, count in level.failures],
        "seconds": rounded(level.seconds),
        "requests_per_second": rounded(level.requests_per_second),
        "tokens_per_second": rounded(level.tokens_per_second),
        "prompt_tokens": level.prompt_tokens,
        "completion_tokens": level.completion_tokens,
        "cached_tokens": level.cached_tokens,
        "first_token_seconds": _percentiles(level.first_token_seconds),
        "inter_token_seconds": _percentiles(level.inter_token_seconds),
        "end_to_end_seconds": _percentiles(level.end_to_end_seconds),
        "stated": _stated(level.stated),
    }


def _percentiles(percentiles: Percentiles | None) -> dict[str, float | None] | None:
    names = ("p25", "p50", "p75", "p90", "p99")
    return None if percentiles is None else {name: rounded(getattr(percentiles, name)) for name in names}


def _stated(speeds: StatedSpeeds | None) -> dict[str, float | None] | None:
    if speeds is None:
        return None
    return {"prompt_tokens_per_second": rounded(speeds.prompt), "tokens_per_second": rounded(speeds.generation)}


def rounded(value: float | None) -> float | None:
    """Round to six decimal places."""
    return None if value is None else round(value, 6)


def text(result: ModelSpeed | ServerSpeed, server: str | None, width: int | None) -> str:
    """Return the result for a terminal; for the arguments see ``document``; the width is None for a file or a pipe."""
    lines = [f"{name}: {printable(value)}" for name, value in _facts(result, server)]
    notes = [f"Note: {printable(each)}" for each in (*_failures(result), *result.notes)]
    tables = "".join(f"\n{table(titles, rows, width, last=_WIDEST)}" for titles, rows in _tables(result))
    return "".join(f"{line}\n" for line in lines) + tables + "".join(f"\n{line}\n" for line in notes)


def markdown(result: ModelSpeed | ServerSpeed, server: str | None) -> str:
    """Return the result in Markdown; for the arguments see ``document``."""
    lines = [f"- {name}: {escaped(value)}" for name, value in _facts(result, server)]
    for header, rows in _tables(result):
        lines += ["", f"| {' | '.join(header)} |", f"|{'---|' + '--:|' * (len(header) - 1)}"]
        lines += [f"| {' | '.join(map(escaped, row))} |" for row in rows]
    notes = [*_failures(result), *result.notes]
    lines += ["", *(f"- {escaped(each)}" for each in notes)] if notes else []
    return "".join(f"{line}\n" for line in lines)


def escaped(text: str) -> str:
    """Return a text as a cell of a table in Markdown."""
    return printable(text).replace("|", "\\|")


def machine_text(machine: Machine) -> str:
    """Return a machine in one line."""
    memory = "" if machine.memory_bytes is None else f", {decimal_size(machine.memory_bytes)} of memory"
    processor = machine.processor
    host = f"{machine.system}, {machine.architecture}, {processor.name or 'processor unknown'}"
    return f"{host}, {processor.cores} cores{memory}"


def _facts(result: ModelSpeed | ServerSpeed, server: str | None) -> list[tuple[str, str]]:
    """Return title and text of each line above the tables: model or server, machine, versions, memory."""
    machine = result.machine
    versions = ", ".join(f"{name} {version}" for name, version in _versions(machine))
    measured_on = ("Measured on" if server is None else "Measured from", machine_text(machine))
    if not isinstance(result, ModelSpeed):
        facts = [("Server", str(server)), ("Model", name_of(result)), measured_on, ("Versions", versions)]
        load_seconds = result.load_seconds
        return (
            facts if load_seconds is None else [*facts, ("Load time, as the server says", seconds_text(load_seconds))]
        )
    description, library = result.model, machine.matrix_library
    commit = f"@{description.handle.commit[:SHORT_HASH]}" if description.handle.commit else ""
    process = result.peak_process_bytes
    of_process = f", of the process {decimal_size(process)}" if process is not None else ""
    return [
        ("Model", f"{name_of(result)}{commit}"),
        measured_on,
        ("Computed by", f"CPU{f', matrices by {library}' if library else ''}" if machine.on_cpu else "GPU"),
        ("Versions", versions),
        *([] if result.load_seconds is None else [("Load time", seconds_text(result.load_seconds))]),
        ("Peak memory", f"of arrays {decimal_size(result.peak_array_bytes)}{of_process}"),
    ]


def _tables(result: ModelSpeed | ServerSpeed) -> list[tuple[Sequence[str], list[list[str]]]]:
    """Return titles and rows of each table."""
    if isinstance(result, ModelSpeed):
        rows = [_row_cells(each) for each in result.rows]
        tasks = [_task_cells(each) for each in result.tasks]
        return [(titles, cells) for titles, cells in ((_ROW_TITLES, rows), (_TASK_TITLES, tasks)) if cells]
    rows = [_level_cells(each) for each in result.levels]
    if all(each.stated is None for each in result.levels):
        return [(_LEVEL_TITLES, rows)]
    stated = [[*row, _stated_cell(each.stated)] for row, each in zip(rows, result.levels, strict=True)]
    return [((*_LEVEL_TITLES, _STATED_TITLE), stated)]


def _task_cells(task: TaskRow) -> list[str]:
    speed = task.per_second
    return [
        task.name,
        f"{speed.median:.1f} {task.unit.value}/s",
        f"{speed.interquartile_range:.1f}" if task.repeats >= _LEAST_REPEATS else "-",
        seconds_text(task.seconds.median),
        "noisy" if task.noisy else "-",
    ]


def _stated_cell(stated: StatedSpeeds | None) -> str:
    speeds = (None, None) if stated is None else (stated.prompt, stated.generation)
    return " / ".join("-" if each is None else f"{each:.1f}" for each in speeds)


def _row_cells(row: Row) -> list[str]:
    speed, first = row.tokens_per_second, row.first_token_seconds
    noise = "noisy" if row.noisy else "-"
    return [
        row.shape.name,
        str(row.shape.streams),
        f"{speed.median:.1f}",
        f"{speed.interquartile_range:.1f}" if row.repeats >= _LEAST_REPEATS else "-",
        seconds_text(first.median),
        noise,
    ]


def _level_cells(level: Level) -> list[str]:
    prompt, output = (
        "-" if total is None else f"{total / level.succeeded:.0f}"
        for total in (level.prompt_tokens, level.completion_tokens)
    )
    speed = level.tokens_per_second
    return [
        str(level.load.streams),
        prompt,
        output,
        str(level.requests),
        str(level.failed),
        "-" if speed is None else f"{speed:.1f}",
        *map(_times, (level.first_token_seconds, level.inter_token_seconds, level.end_to_end_seconds)),
    ]


def _times(percentiles: Percentiles | None) -> str:
    return (
        "-"
        if percentiles is None
        else " / ".join(seconds_text(each) for each in (percentiles.p50, percentiles.p90, percentiles.p99))
    )


def seconds_text(seconds: float) -> str:
    """Return a time in seconds, or in milliseconds below one second."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.1f} ms"


def _failures(result: ModelSpeed | ServerSpeed) -> list[str]:
    if isinstance(result, ModelSpeed):
        return []
    return [
        f"{count} of {level.requests} requests, {level.load.streams} at once, failed: {reason}"
        for level in result.levels
        for reason, count in level.failures
    ]
