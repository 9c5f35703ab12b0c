"""Servers at one moment, for ``top``: a screen, a line a server, or JSON."""

import datetime
from collections.abc import Iterator, Sequence

import attrs

from mlxk.domain.monitoring import LEVELS, MachineReading, MachineSample, WatchedModel, WatchedServer
from mlxk.entrypoints.cli.render.formatting import counted, decimal_size, printable, table_lines
from mlxk.entrypoints.cli.render.monitoring import server_json

_BLOCKS, _PLAIN_BLOCKS = "▁▂▃▄▅▆▇█", "_.-=+*%#"
_WIDEST_TABLE = 100
NOTHING = "-"


@attrs.frozen
class Moment:
    """What is shown at one moment."""

    sample: MachineSample
    servers: tuple[WatchedServer, ...]
    gone: tuple[tuple[str, float], ...]
    """Servers that were there, and since when they are not, in the time of the samples."""

    @property
    def clock(self) -> str:
        """The time on this machine's clock."""
        return datetime.datetime.fromtimestamp(self.sample.time).strftime("%H:%M:%S")

    def absences(self) -> Iterator[str]:
        """Yield why there is nothing to show of servers, a sentence each."""
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
    """Return a line for each server, and one for each that is not there."""
    return [
        *(f"{moment.clock} {each.reading.url} {', '.join(_facts(each))}" for each in moment.servers),
        *(f"{moment.clock} {each}" for each in moment.absences()),
    ]


def _facts(server: WatchedServer) -> Iterator[str]:
    yield printable(server.reading.label) or "no model"
    yield from _work(server)
    yield from _memory(server)


def screen(moment: Moment, columns: int, rows: int, *, plain: bool = False) -> list[tuple[str, bool]]:
    """Return the lines of a screen, and whether each is a heading; what does not fit is left out.

    Args:
        moment: What is shown.
        columns: Of the terminal.
        rows: Of the terminal.
        plain: Whether it shows ASCII only.
    """
    title = f"mlxk top  {moment.clock}  {counted(len(moment.servers), 'server')}  (q ends)"
    found = [(title, True), (", ".join(_machine(moment.sample.machine)), False)]
    for each in moment.servers:
        found += [("", False), *_server(each, columns, plain=plain)]
    absences = list(moment.absences())
    found += [("", False)] * bool(absences) + [(each, False) for each in absences]
    return [(_cut(text, columns, plain=plain), heading) for text, heading in found[:rows]]


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
    """Return the last values as bars, with the greatest of them as a number."""
    shown = values[-width:]
    return f"{bars_of(shown, plain=plain)} at most {max(shown):.1f} tokens/s"


def bars_of(values: Sequence[float], *, plain: bool = False) -> str:
    """Return values as bars, a character each; the highest is that of the greatest."""
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
