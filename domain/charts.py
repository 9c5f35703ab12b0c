"""Samples as curves in rows with one axis of time, and regions behind them; how they are drawn is not decided here."""

from collections.abc import Callable, Iterable, Sequence

import attrs

from mlxk.domain.monitoring import LEVELS, GpuReading, MachineSample, Period, engine_memory, server_memory

GB = 10**9


@attrs.frozen
class Series:
    """A curve: a name, and its values at the times of the samples, of which None are left out."""

    name: str
    values: tuple[float | None, ...]


@attrs.frozen
class ChartRow:
    """One of the diagrams that share the time."""

    title: str
    unit: str
    series: tuple[Series, ...]
    right_unit: str = ""
    right_series: tuple[Series, ...] = ()
    """Drawn by the axis at the right."""
    right_levels: tuple[tuple[int, str], ...] = ()
    """The names of its values, where they are levels, from the lowest on."""
    most: float | None = None
    """The upper end of the axis at the left; None for that of the values."""


@attrs.frozen
class Chart:
    """Diagrams above one another."""

    title: str
    seconds: tuple[float, ...]
    """The time of each sample."""
    rows: tuple[ChartRow, ...]
    regions: tuple[Period, ...]


_Curve = tuple[str, Callable[[MachineSample], float | None]]


JOINED_SECONDS = 1.0
"""Regions of one label that lie no further apart are one."""


def joined(regions: Iterable[Period]) -> tuple[Period, ...]:
    """Return regions by start, those of one label that follow one another as one."""
    found: list[Period] = []
    for each in sorted(regions, key=lambda each: (each.start, each.end)):
        index = next((i for i, one in enumerate(found) if _follows(each, one)), None)
        if index is None:
            found.append(each)
        else:
            found[index] = attrs.evolve(found[index], end=max(found[index].end, each.end))
    return tuple(found)


def _follows(region: Period, former: Period) -> bool:
    return region.label == former.label and region.start <= former.end + JOINED_SECONDS


def chart_of(samples: Sequence[MachineSample], regions: Sequence[Period], title: str) -> Chart:
    """Return the curves of samples in three rows: memory, processor and GPU, swap and pressure.

    Args:
        samples: At least one, in the order of time.
        regions: Of models; what lies outside the samples is cut off or left out.
        title: Stands above all.
    """
    end = samples[-1].elapsed
    shown = [
        Period(each.label, max(each.start, 0.0), min(each.end, end))
        for each in joined(regions)
        if each.end >= 0 and each.start <= end
    ]
    pressure, waiting = _series(samples, _PRESSURE), _series(samples, _WAITING)
    swap = ChartRow("Swap and pressure", "GB", _series(samples, _SWAP), "%", waiting)
    if pressure:
        swap = attrs.evolve(swap, right_unit="", right_series=pressure, right_levels=LEVELS)
    rows = (
        ChartRow("Memory", "GB", _series(samples, _MEMORY)),
        ChartRow("Processor and GPU", "%", _series(samples, _BUSY), "processes", _series(samples, _LOAD), most=100.0),
        swap,
    )
    return Chart(title, tuple(each.elapsed for each in samples), rows, tuple(shown))


def _series(samples: Sequence[MachineSample], curves: Sequence[_Curve]) -> tuple[Series, ...]:
    series = (Series(name, tuple(map(read, samples))) for name, read in curves)
    return tuple(each for each in series if any(value is not None for value in each.values))


def _gb(size: int | None) -> float | None:
    return None if size is None else size / GB


_MEMORY: Sequence[_Curve] = (
    ("used", lambda each: _gb(each.machine.used_bytes)),
    ("free", lambda each: _gb(each.machine.free_bytes)),
    ("command", lambda each: _gb(each.command.memory_bytes) if each.command else None),
    ("servers", lambda each: _gb(server_memory(each))),
    ("arrays of the servers", lambda each: _gb(engine_memory(each))),
    ("GPU's own", lambda each: _gb(_own_gpu_bytes(each.machine.gpu))),
)
_BUSY: Sequence[_Curve] = (
    ("processor", lambda each: each.machine.cpu.busy if each.machine.cpu else None),
    ("the system's part of it", lambda each: each.machine.cpu.system if each.machine.cpu else None),
    ("GPU", lambda each: each.machine.gpu.busy_percent if each.machine.gpu else None),
)
_LOAD: Sequence[_Curve] = (("load", lambda each: each.machine.load[0] if each.machine.load else None),)
_SWAP: Sequence[_Curve] = (("swap", lambda each: _gb(each.machine.swap_used_bytes)),)
_PRESSURE: Sequence[_Curve] = (("pressure", lambda each: each.machine.pressure),)
_WAITING: Sequence[_Curve] = (("waiting for memory", lambda each: each.machine.stalled_percent),)


def _own_gpu_bytes(gpu: GpuReading | None) -> int | None:
    """Return what is used of memory that only the GPU has."""
    return gpu.used_bytes if gpu and gpu.total_bytes else None
