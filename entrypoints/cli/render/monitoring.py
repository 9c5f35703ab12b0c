"""Renders samples of ``monitor`` as JSON lines, their summary as text, JSON and HTML, and the screen of ``top``.

Fields have the names and units of mlx-knife's memory monitor: ``_gb`` is 1024³ bytes and ``_mb`` 1024².
"""

import datetime
import html
from collections.abc import Iterator, Sequence

import attrs

from mlxk.domain.monitoring import (
    LEVELS,
    Extent,
    GpuReading,
    MachineReading,
    MachineSample,
    Period,
    ProcessTree,
    ServerReading,
    WatchedModel,
    WatchedServer,
    WatchSummary,
)
from mlxk.entrypoints.cli.render.formatting import counted, decimal_size, printable, table_lines

GIB, MIB = 1024**3, 1024**2
_PRESSURE_WORDS = {1: "normal", 2: "a warning", 4: "critical"}


def sample_json(sample: MachineSample) -> dict[str, object]:
    """Return a sample as JSON, without the values that are unknown."""
    machine, gpu = sample.machine, sample.machine.gpu or GpuReading()
    used, swap = machine.used_bytes, machine.swap_used_bytes
    load = machine.load or (None, None, None)
    fields = {
        "ram_free_gb": _in_unit(machine.free_bytes, GIB),
        "ram_used_gb": _in_unit(used, GIB),
        "ram_percent": _percent(used, machine.total_bytes),
        "swap_used_mb": _in_unit(swap, MIB),
        "swap_percent": _percent(swap, machine.swap_total_bytes),
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


def _in_unit(size: float | None, unit: int) -> float | None:
    return None if size is None else round(size / unit, 2)


def _percent(part: int | None, whole: int | None) -> float | None:
    return None if part is None or not whole else round(100 * part / whole, 1)


def _rounded(value: float | None, places: int = 1) -> float | None:
    return None if value is None else round(value, places)


def summary_json(summary: WatchSummary, interval: float | None, **facts: object) -> dict[str, object]:
    """Return a summary as JSON.

    Args:
        summary: The summary of all samples.
        interval: Seconds between samples; None when unknown.
        facts: ``exit_code``, ``command`` and ``timestamp``, where they apply.
    """
    free, swap, command = summary.free_bytes, summary.swap_used_bytes, summary.command
    return {
        "duration_s": round(summary.seconds, 2),
        "samples": summary.samples,
        "interval_ms": None if interval is None else round(interval * 1000),
        "ram_free_min_gb": _in_unit(free.least, GIB) if free else None,
        "ram_free_max_gb": _in_unit(free.greatest, GIB) if free else None,
        "ram_free_avg_gb": _in_unit(free.mean, GIB) if free else None,
        "swap_max_mb": _in_unit(swap.greatest, MIB) if swap else None,
        "swap_avg_mb": _in_unit(swap.mean, MIB) if swap else None,
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
    """Return a summary as text."""
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
        yield "Pressure", _PRESSURE_WORDS.get(summary.pressure, str(summary.pressure))
    for name, extent in (("Processor", summary.cpu_percent), ("GPU", summary.gpu_percent)):
        if extent is not None:
            yield name, f"{extent.mean:.0f} % on average, at most {extent.greatest:.0f} %"


_STYLE = """body { font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 1.5rem auto; padding: 0 1rem; }
svg { width: 100%; height: auto; } td, th { padding: .15em 1.2em .15em 0; text-align: left; }
.end { text-align: right; }"""


def page(title: str, picture: str, summary: WatchSummary, regions: Sequence[Period]) -> str:
    """Return an HTML page with an SVG picture, the summary and the regions; it loads nothing."""
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


_BLOCKS, _PLAIN_BLOCKS = "▁▂▃▄▅▆▇█", "_.-=+*%#"
_WIDEST_TABLE = 100
NOTHING = "-"


@attrs.frozen
class Moment:
    """One reading of ``top``."""

    sample: MachineSample
    servers: tuple[WatchedServer, ...]
    gone: tuple[tuple[str, float], ...]
    """Addresses of servers that are gone, each with the ``elapsed`` seconds of the first sample without it."""

    @property
    def clock(self) -> str:
        """The time on this machine's clock."""
        return datetime.datetime.fromtimestamp(self.sample.time).strftime("%H:%M:%S")

    def absences(self) -> Iterator[str]:
        """Yield a sentence for each server that is gone or did not answer, or one that says that there is none."""
        for url, since in self.gone:
            yield f"{url} is gone since {self.sample.elapsed - since:.0f}s; waiting for it"
        for fault in self.sample.faults:
            yield f"{fault}; waiting for it"
        if not self.servers and not self.gone and not self.sample.faults:
            yield "no server of yours is running; waiting for one (mlxk serve --background starts one)"


def moment_json(moment: Moment) -> dict[str, object]:
    """Return a moment as JSON."""
    machine, time = moment.sample.machine, datetime.datetime.fromtimestamp(moment.sample.time, datetime.UTC)
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "elapsed_seconds": round(moment.sample.elapsed, 3),
        "machine": {
            "memory_total_bytes": machine.total_bytes,
            "memory_used_bytes": machine.used_bytes,
            "swap_used_bytes": machine.swap_used_bytes,
            "pressure": machine.pressure,
            "cpu_percent": None if machine.cpu is None else round(machine.cpu.busy, 1),
            "gpu_percent": machine.gpu.busy_percent if machine.gpu else None,
        },
        "servers": [
            {
                **server_json(each.reading),
                "prompt_tokens_per_second": None if each.rates is None else round(each.rates.prompt_tokens, 2),
                "generated_tokens_per_second": None if each.rates is None else round(each.rates.generated_tokens, 2),
                "cached_share": None if each.cached_share is None else round(each.cached_share, 4),
            }
            for each in moment.servers
        ],
        "absent": list(moment.absences()),
    }


def lines(moment: Moment) -> list[str]:
    """Return a line for each server, and for each absence."""
    return [
        *(f"{moment.clock} {each.reading.url} {', '.join(_facts(each))}" for each in moment.servers),
        *(f"{moment.clock} {each}" for each in moment.absences()),
    ]


def _facts(server: WatchedServer) -> Iterator[str]:
    yield printable(server.reading.label) or "no model"
    yield from _work(server)
    yield from _memory(server)


def screen(moment: Moment, columns: int, rows: int, *, plain: bool = False) -> list[tuple[str, bool]]:
    """Return the lines of a screen, each with whether it is a heading, cut to the size of the terminal.

    Args:
        moment: The reading.
        columns: Width of the terminal in characters.
        rows: Height of the terminal in lines.
        plain: Use ASCII only.
    """
    title = f"mlxk top  {moment.clock}  {counted(len(moment.servers), 'server')}  (q ends)"
    screen_lines = [(title, True), (", ".join(_machine(moment.sample.machine)), False)]
    for each in moment.servers:
        screen_lines += [("", False), *_server(each, columns, plain=plain)]
    absences = list(moment.absences())
    screen_lines += [("", False)] * bool(absences) + [(each, False) for each in absences]
    return [(_cut(text, columns, plain=plain), heading) for text, heading in screen_lines[:rows]]


def _server(server: WatchedServer, columns: int, *, plain: bool) -> Iterator[tuple[str, bool]]:
    reading = server.reading
    process = "" if reading.process is None else f" (process {reading.process})"
    yield f"{reading.url}{process}", True
    yield f"  {', '.join(_work(server))}", False
    if server.speeds:
        yield f"  {sparkline(server.speeds, max(columns - 28, 10), plain=plain)}", False
    memory = ", ".join(_memory(server))
    if memory:
        yield f"  {memory}", False
    models = [
        [
            each.name,
            decimal_size(each.weight_bytes),
            _speed(each),
            "in use" if each.in_use else "idle",
        ]
        for each in reading.models
    ]
    if not models:
        yield "  no model in memory", False
        return
    for line in table_lines(["Model", "Size", "Tokens/s", ""], models, min(columns - 2, _WIDEST_TABLE)):
        yield from ((f"  {part}", False) for part in line.split("\n"))


def _work(server: WatchedServer) -> Iterator[str]:
    engine, rates, share = server.reading.engine, server.rates, server.cached_share
    if engine is None:
        yield "it does not say what it does"
        return
    if not engine.responding:
        yield "its engine is busy and has not answered"
        return
    yield f"{engine.running} running, {engine.waiting} waiting"
    if rates is not None:
        yield f"{rates.generated_tokens:.1f} tokens/s generated, {rates.prompt_tokens:.1f} tokens/s of prompts"
    if share is not None:
        yield f"{100 * share:.0f} % of prompts kept from earlier ones"


def _memory(server: WatchedServer) -> Iterator[str]:
    reading = server.reading
    if reading.memory is not None:
        yield f"memory {decimal_size(reading.memory.memory_bytes)}"
    engine = reading.engine
    if engine is not None and engine.responding:
        weights = sum(each.weight_bytes for each in reading.models)
        rest = max(0, engine.array_bytes - weights - engine.kept_prompt_bytes)
        yield (
            f"arrays {decimal_size(engine.array_bytes)} (weights {decimal_size(weights)}, kept prompts "
            f"{decimal_size(engine.kept_prompt_bytes)}, answers and others {decimal_size(rest)})"
        )


def _machine(machine: MachineReading) -> Iterator[str]:
    if machine.used_bytes is not None and machine.total_bytes is not None:
        yield f"memory {decimal_size(machine.used_bytes)} of {decimal_size(machine.total_bytes)} used"
    if machine.swap_used_bytes is not None:
        yield f"swap {decimal_size(machine.swap_used_bytes)}"
    if machine.pressure is not None:
        yield f"pressure {dict(LEVELS).get(machine.pressure, machine.pressure)}"
    if machine.cpu is not None:
        yield f"processor {machine.cpu.busy:.0f} %"
    if machine.gpu is not None and machine.gpu.busy_percent is not None:
        yield f"GPU {machine.gpu.busy_percent:.0f} %"


def sparkline(values: Sequence[float], width: int, *, plain: bool = False) -> str:
    """Return the last values as bars, and their maximum as a number."""
    latest = values[-width:]
    return f"{bars_of(latest, plain=plain)} at most {max(latest):.1f} tokens/s"


def bars_of(values: Sequence[float], *, plain: bool = False) -> str:
    """Return one bar, a character, for each value; the maximum has the highest bar."""
    blocks = _PLAIN_BLOCKS if plain else _BLOCKS
    highest = max(values)
    step = highest / (len(blocks) - 1) if highest else 1.0
    return "".join(blocks[round(value / step)] for value in values)


def _speed(model: WatchedModel) -> str:
    return NOTHING if model.tokens_per_second is None else f"{model.tokens_per_second:.1f}"


def _cut(text: str, columns: int, *, plain: bool) -> str:
    text = printable(text)
    if plain:
        text = text.encode("ascii", "replace").decode()
    return text if len(text) <= columns else text[: max(0, columns - 1)] + (">" if plain else "…")
