"""Reads files of samples, written by ``monitor`` or mlx-knife's memory monitor, and the periods in benchmark reports.

A faulty line is reported by its number, and the other lines are read.
"""

import datetime
from collections.abc import Mapping
from typing import Any

import attrs

from mlxk.domain.errors import ValidationError
from mlxk.domain.generation.request import EngineFigures
from mlxk.domain.monitoring import (
    CpuShares,
    GpuReading,
    MachineReading,
    MachineSample,
    MemoryKind,
    Period,
    ProcessTree,
    ServerReading,
    WatchedModel,
)
from mlxk.entrypoints.cli.render.benchmark_reports import (
    FaultyLineError,
    LineFault,
    first_fault,
    json_object,
    numbered_lines,
)
from mlxk.entrypoints.cli.render.monitoring import GIB, MIB

_MAXIMUM = 1e18
"""Largest plausible value of a sample, in any unit."""
_UNKNOWN = -1.0
"""Elapsed time of a line that has only a timestamp."""
_MALFORMED = (ValueError, TypeError, KeyError, AttributeError)


def read_samples(path: str) -> tuple[list[MachineSample], list[LineFault]]:
    """Return the samples of a file, in the order of time, and its faulty lines.

    Raises:
        StorageError: The file cannot be read.
        ValidationError: It has no sample.
    """
    samples: list[MachineSample] = []
    faults: list[LineFault] = []
    for number, line in numbered_lines(path):
        try:
            document = json_object(line)
            if "summary" not in document:
                samples.append(_sample(document))
        except _MALFORMED as error:
            faults.append(LineFault(path, number, _reason(error, "it is no sample of the monitor")))
    if not samples:
        raise ValidationError(
            f"'{path}' is no file of samples{first_fault(faults)}", hint="Write one: mlxk monitor -o FILE"
        )
    began = samples[0].time
    timed = (
        attrs.evolve(each, elapsed=max(0.0, each.time - began)) if each.elapsed == _UNKNOWN else each
        for each in samples
    )
    return sorted(timed, key=lambda each: each.elapsed), faults


def _reason(error: Exception, otherwise: str) -> str:
    return str(error) if isinstance(error, ValueError) else otherwise


def _sample(line: Mapping[str, Any]) -> MachineSample:
    elapsed, time = _number(line, "elapsed_s"), _number(line, "ts")
    if elapsed is None and time is None:
        raise FaultyLineError("it has neither 'elapsed_s' nor 'ts'")
    user, system, idle = (_number(line, f"cpu_{name}") for name in ("user", "sys", "idle"))
    busy, used = _number(line, "gpu_device_util"), _whole(line, "gpu_used_bytes")
    load = [_number(line, f"load_{minutes}") for minutes in (1, 5, 15)]
    machine = MachineReading(
        total_bytes=_whole(line, "ram_total_bytes"),
        available_bytes=_whole(line, "ram_available_bytes"),
        free_bytes=_whole(line, "ram_free_gb", GIB),
        swap_total_bytes=_whole(line, "swap_total_bytes"),
        swap_used_bytes=_whole(line, "swap_used_mb", MIB),
        pressure=_whole(line, "memory_pressure"),
        scan_pressure=_whole(line, "vm_pressure"),
        stalled_percent=_number(line, "memory_stall_percent"),
        load=None if None in load else (load[0] or 0.0, load[1] or 0.0, load[2] or 0.0),
        cpu=None if user is None or system is None or idle is None else CpuShares(user, system, idle),
        gpu=None
        if busy is None and used is None
        else GpuReading(
            busy,
            _number(line, "gpu_renderer_util"),
            _number(line, "gpu_tiler_util"),
            used,
            _whole(line, "gpu_total_bytes"),
        ),
    )
    servers = tuple(map(_server, line.get("servers", ())))
    return MachineSample(
        time or 0.0, _UNKNOWN if elapsed is None else elapsed, machine, _tree(line.get("command")), servers
    )


def _number(line: Mapping[str, Any], name: str) -> float | None:
    value = line.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _MAXIMUM:
        raise FaultyLineError(f"its '{name}' is no number from 0 on")
    return float(value)


def _whole(line: Mapping[str, Any], name: str, unit: int = 1) -> int | None:
    value = _number(line, name)
    return None if value is None else round(value * unit)


def _tree(known: Mapping[str, Any] | None) -> ProcessTree | None:
    if known is None:
        return None
    memory, kind = _whole(known, "memory_bytes"), MemoryKind(known["memory_kind"])
    return ProcessTree(_whole(known, "processes") or 0, memory or 0, kind, _number(known, "cpu_percent"))


def _server(known: Mapping[str, Any]) -> ServerReading:
    models = (
        WatchedModel(
            str(each["name"]),
            _whole(each, "weight_bytes") or 0,
            each.get("in_use") is True,
            _number(each, "tokens_per_second"),
        )
        for each in known["models"]
    )
    engine, process = known.get("engine"), _whole(known, "pid")
    figures = None if engine is None else _figures(engine)
    return ServerReading(str(known["url"]), process, tuple(models), figures, _tree(known.get("memory")))


def _figures(known: Mapping[str, Any]) -> EngineFigures:
    return EngineFigures(
        running=_whole(known, "running") or 0,
        waiting=_whole(known, "waiting") or 0,
        prompt_tokens=_whole(known, "prompt_tokens") or 0,
        cached_tokens=_whole(known, "cached_tokens") or 0,
        generated_tokens=_whole(known, "generated_tokens") or 0,
        array_bytes=_whole(known, "array_bytes") or 0,
        kept_prompt_bytes=_whole(known, "kept_prompt_bytes") or 0,
        responding=known.get("responding") is not False,
    )


def report_regions(path: str, began: float) -> tuple[list[Period], list[LineFault]]:
    """Return the periods of a benchmark report's measurements, and its faulty lines.

    Args:
        path: A file in the report schema of mlx-knife.
        began: The time of the first sample, in seconds since 1970; periods are relative to it.

    Raises:
        StorageError: The file cannot be read.
    """
    periods: list[Period] = []
    faults: list[LineFault] = []
    for number, line in numbered_lines(path):
        try:
            start, end, label = _measured(json_object(line))
            periods.append(Period(label, start - began, end - began))
        except (*_MALFORMED, OverflowError) as error:
            faults.append(LineFault(path, number, _reason(error, "it is no line of a report")))
    return periods, faults


def _measured(record: Mapping[str, Any]) -> tuple[float, float, str]:
    """Return start and end in seconds since 1970, and a label: the last part of the model's name, or of the test's."""
    start, end, duration = (_number(record, name) for name in ("test_start_ts", "test_end_ts", "duration"))
    if end is None:
        moment = datetime.datetime.fromisoformat(record["timestamp"])
        end = (moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)).timestamp()
    if start is None and duration is None:
        raise FaultyLineError("it says neither when it began nor how long it took")
    label = (record.get("model") or {}).get("id") or record["test"]
    return end - (duration or 0.0) if start is None else start, end, str(label).rsplit("/", 1)[-1]
