"""Samples as curves in rows with a common time axis, and shaded regions behind them; adapters draw them."""

from collections.abc import Callable, Iterable, Sequence

import attrs

from mlxk.domain.monitoring import LEVELS, GpuReading, MachineSample, Period, engine_memory, server_memory

GB = 10**9


@attrs.frozen
class Series:
    """A curve: its name, and one value for each sample; None leaves a gap."""

    name: str
    values: tuple[float | None, ...]


@attrs.frozen
class ChartRow:
    """One of the diagrams that share the time axis."""

    title: str
    unit: str
    series: tuple[Series, ...]
    right_unit: str = ""
    right_series: tuple[Series, ...] = ()
    """Curves on the right axis."""
    right_levels: tuple[tuple[int, str], ...] = ()
    """Value and name of each level of the right axis, ascending; empty for an axis of numbers."""
    most: float | None = None
    """Upper end of the left axis; None fits it to the values."""


@attrs.frozen
class Chart:
    """Diagrams, from top to bottom."""

    title: str
    seconds: tuple[float, ...]
    """The time of each sample."""
    rows: tuple[ChartRow, ...]
    regions: tuple[Period, ...]


_Curve = tuple[str, Callable[[MachineSample], float | None]]
"""Name of a curve, and the function that reads its value from a sample."""


JOINED_SECONDS = 1.0
"""Longest gap between two regions of the same label that are joined."""


def joined(regions: Iterable[Period]) -> tuple[Period, ...]:
    """Return regions by start; regions of the same label with hardly a gap between them are joined."""
    merged: list[Period] = []
    for region in sorted(regions, key=lambda region: (region.start, region.end)):
        index = next((i for i, former in enumerate(merged) if _follows(region, former)), None)
        if index is None:
            merged.append(region)
        else:
            merged[index] = attrs.evolve(merged[index], end=max(merged[index].end, region.end))
    return tuple(merged)


def _follows(region: Period, former: Period) -> bool:
    return region.label == former.label and region.start <= former.end + JOINED_SECONDS


def chart_of(samples: Sequence[MachineSample], regions: Sequence[Period], title: str) -> Chart:
    """Return the curves of samples in three rows: memory, processor and GPU, swap and pressure.

    Args:
        samples: At least one, in chronological order.
        regions: Periods in which models were loaded; they are clipped to the time of the samples.
        title: Title of the chart.
    """
    end = samples[-1].elapsed
    clipped = [
        Period(region.label, max(region.start, 0.0), min(region.end, end))
        for region in joined(regions)
        if region.end >= 0 and region.start <= end
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
    return Chart(title, tuple(sample.elapsed for sample in samples), rows, tuple(clipped))


def _series(samples: Sequence[MachineSample], curves: Sequence[_Curve]) -> tuple[Series, ...]:
    """Return the curves that have a value in at least one sample."""
    series = (Series(name, tuple(map(read, samples))) for name, read in curves)
    return tuple(one for one in series if any(value is not None for value in one.values))


def _gb(size: int | None) -> float | None:
    return None if size is None else size / GB


_MEMORY: Sequence[_Curve] = (
    ("used", lambda sample: _gb(sample.machine.used_bytes)),
    ("free", lambda sample: _gb(sample.machine.free_bytes)),
    ("command", lambda sample: _gb(sample.command.memory_bytes) if sample.command else None),
    ("servers", lambda sample: _gb(server_memory(sample))),
    ("arrays of the servers", lambda sample: _gb(engine_memory(sample))),
    ("GPU's own", lambda sample: _gb(_own_gpu_bytes(sample.machine.gpu))),
)
_BUSY: Sequence[_Curve] = (
    ("processor", lambda sample: sample.machine.cpu.busy if sample.machine.cpu else None),
    ("the system's part of it", lambda sample: sample.machine.cpu.system if sample.machine.cpu else None),
    ("GPU", lambda sample: sample.machine.gpu.busy_percent if sample.machine.gpu else None),
)
_LOAD: Sequence[_Curve] = (("load", lambda sample: sample.machine.load[0] if sample.machine.load else None),)
_SWAP: Sequence[_Curve] = (("swap", lambda sample: _gb(sample.machine.swap_used_bytes)),)
_PRESSURE: Sequence[_Curve] = (("pressure", lambda sample: sample.machine.pressure),)
_WAITING: Sequence[_Curve] = (("waiting for memory", lambda sample: sample.machine.stalled_percent),)


def _own_gpu_bytes(gpu: GpuReading | None) -> int | None:
    """Return the used bytes of dedicated GPU memory; None without any."""
    return gpu.used_bytes if gpu and gpu.total_bytes else None
