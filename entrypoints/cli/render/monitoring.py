"""Samples of the monitor as lines of a file, and their summary as text and JSON.

The names of mlx-knife's memory monitor are kept, and its units: ``_gb`` is 1024³ bytes and ``_mb`` 1024².
"""

import html
from collections.abc import Iterator, Sequence

import attrs

from mlxk.domain.monitoring import (
    Extent,
    GpuReading,
    MachineSample,
    Period,
    ProcessTree,
    ServerReading,
    WatchSummary,
)
from mlxk.entrypoints.cli.render.formatting import counted, decimal_size, printable

GIB, MIB = 1024**3, 1024**2
_LEVELS = {1: "normal", 2: "a warning", 4: "critical"}


def sample_json(sample: MachineSample) -> dict[str, object]:
    """Return a sample as one line's object; what is not known is left out."""
    machine, gpu = sample.machine, sample.machine.gpu or GpuReading()
    used, swap = machine.used_bytes, machine.swap_used_bytes
    load = machine.load or (None, None, None)
    fields = {
        "ram_free_gb": _in(machine.free_bytes, GIB),
        "ram_used_gb": _in(used, GIB),
        "ram_percent": _share(used, machine.total_bytes),
        "swap_used_mb": _in(swap, MIB),
        "swap_percent": _share(swap, machine.swap_total_bytes),
        "memory_pressure": machine.pressure,
        "vm_pressure": machine.scan_pressure,
        **dict(zip(("load_1", "load_5", "load_15"), load, strict=True)),
        "cpu_user": _rounded(machine.cpu.user if machine.cpu else None),
        "cpu_sys": _rounded(machine.cpu.system if machine.cpu else None),
        "cpu_idle": _rounded(machine.cpu.idle if machine.cpu else None),
        "gpu_active": machine.gpu is not None,
        "gpu_device_util": _rounded(gpu.busy_percent),
        "gpu_renderer_util": _rounded(gpu.renderer_percent),
        "gpu_tiler_util": _rounded(gpu.tiler_percent),
        "ts": round(sample.time, 3),
        "elapsed_s": round(sample.elapsed, 3),
        "ram_total_bytes": machine.total_bytes,
        "ram_available_bytes": machine.available_bytes,
        "swap_total_bytes": machine.swap_total_bytes,
        "memory_stall_percent": machine.stalled_percent,
        "gpu_used_bytes": gpu.used_bytes,
        "gpu_total_bytes": gpu.total_bytes,
        "command": _tree_json(sample.command),
        "servers": [server_json(each) for each in sample.servers],
    }
    return {name: value for name, value in fields.items() if value is not None}


def server_json(server: ServerReading) -> dict[str, object]:
    """Return a server's reading as JSON."""
    return {
        "url": server.url,
        "pid": server.process,
        "models": [
            {**attrs.asdict(each), "tokens_per_second": _rounded(each.tokens_per_second, 2)} for each in server.models
        ],
        "engine": None if server.engine is None else attrs.asdict(server.engine),
        "memory": _tree_json(server.memory),
    }


def _tree_json(tree: ProcessTree | None) -> dict[str, object] | None:
    if tree is None:
        return None
    return {
        "processes": tree.processes,
        "memory_bytes": tree.memory_bytes,
        "memory_kind": tree.kind.value,
        "cpu_percent": _rounded(tree.cpu_percent),
    }


def _in(size: float | None, unit: int) -> float | None:
    return None if size is None else round(size / unit, 2)


def _share(part: int | None, whole: int | None) -> float | None:
    return None if part is None or not whole else round(100 * part / whole, 1)


def _rounded(value: float | None, places: int = 1) -> float | None:
    return None if value is None else round(value, places)


def summary_json(summary: WatchSummary, interval: float | None, **facts: object) -> dict[str, object]:
    """Return a summary as JSON.

    Args:
        summary: Of all samples.
        interval: Seconds between samples; None when unknown.
        facts: ``exit_code``, ``command`` and ``timestamp``, where they apply.
    """
    free, swap, command = summary.free_bytes, summary.swap_used_bytes, summary.command
    return {
        "duration_s": round(summary.seconds, 2),
        "samples": summary.samples,
        "interval_ms": None if interval is None else round(interval * 1000),
        "ram_free_min_gb": _in(free.least, GIB) if free else None,
        "ram_free_max_gb": _in(free.greatest, GIB) if free else None,
        "ram_free_avg_gb": _in(free.mean, GIB) if free else None,
        "swap_max_mb": _in(swap.greatest, MIB) if swap else None,
        "swap_avg_mb": _in(swap.mean, MIB) if swap else None,
        "exit_code": facts.get("exit_code"),
        "command": facts.get("command"),
        "timestamp": facts.get("timestamp"),
        "ram_total_bytes": summary.total_bytes,
        "ram_used_max_bytes": _greatest(summary.used_bytes),
        "memory_pressure_max": summary.pressure,
        "cpu_percent": _extent_json(summary.cpu_percent),
        "gpu_percent": _extent_json(summary.gpu_percent),
        "command_max_bytes": command.memory_bytes if command else None,
        "command_memory_kind": command.kind.value if command else None,
        "servers_max_bytes": _greatest(summary.server_bytes),
        "arrays_max_bytes": _greatest(summary.array_bytes),
    }


def regions_json(regions: Sequence[Period]) -> list[dict[str, object]]:
    """Return regions as JSON."""
    return [{"label": each.label, "start_s": round(each.start, 2), "end_s": round(each.end, 2)} for each in regions]


def _extent_json(extent: Extent | None) -> dict[str, float] | None:
    if extent is None:
        return None
    return {"least": round(extent.least, 1), "greatest": round(extent.greatest, 1), "mean": round(extent.mean, 1)}


def _greatest(extent: Extent | None) -> int | None:
    return None if extent is None else round(extent.greatest)


def summary_text(summary: WatchSummary, interval: float, exit_code: int | None) -> str:
    """Return a summary as lines for people."""
    rows = [("Time", f"{summary.seconds:.1f}s, {counted(summary.samples, 'sample')}, one every {interval:g}s")]
    if exit_code is not None:
        taken = ""
        if summary.command is not None:
            several = summary.command.processes != 1
            processes = f"{summary.command.processes} process{'es' if several else ''}"
            taken = (
                f"; at most {decimal_size(summary.command.memory_bytes)} in {processes} ({summary.command.kind.value})"
            )
        rows.append(("Command", f"exit status {exit_code}{taken}"))
    rows += _machine_rows(summary)
    if summary.server_bytes is not None:
        rows.append(("Servers", f"at most {decimal_size(round(summary.server_bytes.greatest))}"))
    if summary.array_bytes is not None:
        rows.append(("Arrays", f"at most {decimal_size(round(summary.array_bytes.greatest))} in the servers' engines"))
    for each in summary.models:
        rows.append(("Model", f"{printable(each.label)} in memory from {each.start:.1f}s to {each.end:.1f}s"))
    return "\n".join(f"{name:<10} {value}" for name, value in rows)


def _machine_rows(summary: WatchSummary) -> Iterator[tuple[str, str]]:
    used, free = summary.used_bytes, summary.free_bytes
    if used is not None and summary.total_bytes:
        of_all = f"of {decimal_size(summary.total_bytes)}"
        yield "Memory", f"{decimal_size(round(used.least))} to {decimal_size(round(used.greatest))} {of_all} used"
    elif free is not None:
        yield "Memory", f"{decimal_size(round(free.least))} to {decimal_size(round(free.greatest))} free"
    if summary.swap_used_bytes is not None:
        yield "Swap", f"at most {decimal_size(round(summary.swap_used_bytes.greatest))}"
    if summary.pressure is not None:
        yield "Pressure", _LEVELS.get(summary.pressure, str(summary.pressure))
    for name, extent in (("Processor", summary.cpu_percent), ("GPU", summary.gpu_percent)):
        if extent is not None:
            yield name, f"{extent.mean:.0f} % on average, at most {extent.greatest:.0f} %"


_STYLE = """body { font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 1.5rem auto; padding: 0 1rem; }
svg { width: 100%; height: auto; } td, th { padding: .15em 1.2em .15em 0; text-align: left; }
.end { text-align: right; }"""


def page(title: str, picture: str, summary: WatchSummary, regions: Sequence[Period]) -> str:
    """Return a page with a picture in SVG, the summary and the regions; it asks for nothing from elsewhere."""
    facts = ["<tr><th>Time<td>" + html.escape(f"{summary.seconds:.1f}s, {counted(summary.samples, 'sample')}")]
    facts += [f"<tr><th>{html.escape(name)}<td>{html.escape(value)}" for name, value in _machine_rows(summary)]
    table = ""
    if regions:
        rows = "".join(
            f'<tr><td>{html.escape(each.label)}<td class="end">{each.start:.1f}s<td class="end">{each.end:.1f}s\n'
            for each in regions
        )
        table = f"<h2>Models</h2>\n<table>\n<tr><th>Model<th>from<th>to\n{rows}</table>\n"
    drawn = picture[picture.index("<svg") :]
    lines = "\n".join(facts)
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>\n'
        f"<style>\n{_STYLE}\n</style>\n{drawn}\n<h2>Summary</h2>\n<table>\n{lines}\n</table>\n{table}</html>\n"
    )
