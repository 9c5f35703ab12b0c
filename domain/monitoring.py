"""Samples of a machine, of a command and of servers over time: their summary, and what servers do between them."""

import enum
from collections.abc import Iterable

import attrs

from mlxk.domain.generation.request import EngineFigures

LEVELS = ((1, "normal"), (2, "warning"), (4, "critical"))
"""Of pressure."""


class MemoryKind(enum.Enum):
    """What of a process's memory is counted."""

    PROPORTIONAL = "pss"
    """Resident memory; what several processes share is divided among them, that of large ones excepted."""
    RESIDENT = "rss"
    """Resident memory; what several processes share counts for each."""
    FOOTPRINT = "footprint"
    """What macOS charges the process with, compressed memory and that of the GPU included."""


@attrs.frozen
class ProcessTree:
    """A process and its descendants, together."""

    processes: int
    memory_bytes: int
    kind: MemoryKind
    cpu_percent: float | None = None
    """Processor time since the sample before, 100 for one core; None in the first sample."""


@attrs.frozen
class CpuShares:
    """What all cores did since the sample before, in percent of them."""

    user: float
    system: float
    idle: float

    @property
    def busy(self) -> float:
        """What is not idle."""
        return 100 - self.idle


@attrs.frozen
class GpuReading:
    """All GPUs together. None is what the system does not say."""

    busy_percent: float | None = None
    renderer_percent: float | None = None
    tiler_percent: float | None = None
    used_bytes: int | None = None
    total_bytes: int | None = None
    """None where it is the machine's memory."""


@attrs.frozen
class MachineReading:
    """The machine at one moment. None is what the system does not say."""

    total_bytes: int | None = None
    """Memory, as far as this process may use it."""
    available_bytes: int | None = None
    """What can be taken without swapping."""
    free_bytes: int | None = None
    """What holds nothing, not even copies of files."""
    swap_total_bytes: int | None = None
    swap_used_bytes: int | None = None
    pressure: int | None = None
    """The system's own level: 1 is normal, 2 a warning, 4 critical."""
    scan_pressure: int | None = None
    """How hard the system looks for pages to take, 0 when it need not."""
    stalled_percent: float | None = None
    """Time of the last ten seconds in which something waited for memory."""
    load: tuple[float, float, float] | None = None
    """Processes that ran or wanted to, on average of 1, 5 and 15 minutes."""
    cpu: CpuShares | None = None
    gpu: GpuReading | None = None

    @property
    def used_bytes(self) -> int | None:
        """Memory that is not available."""
        if self.total_bytes is None or self.available_bytes is None:
            return None
        return self.total_bytes - self.available_bytes


@attrs.frozen
class WatchedModel:
    """A model in a server's memory."""

    name: str
    weight_bytes: int
    in_use: bool = False
    tokens_per_second: float | None = None
    """Of the answer that ended last."""


@attrs.frozen
class ServerReading:
    """A server at one moment."""

    url: str
    process: int | None
    """None for a server that was asked by its address."""
    models: tuple[WatchedModel, ...]
    engine: EngineFigures | None = None
    """None where the server does not say."""
    memory: ProcessTree | None = None
    """None where its processes cannot be read."""

    @property
    def label(self) -> str:
        """The names of its models."""
        return ", ".join(each.name for each in self.models)


@attrs.frozen
class MachineSample:
    """Everything at one moment."""

    time: float
    """Seconds since 1970."""
    elapsed: float
    """Seconds since the first sample."""
    machine: MachineReading
    command: ProcessTree | None = None
    """The command that is watched; None without one, and while it does not run."""
    servers: tuple[ServerReading, ...] = ()
    faults: tuple[str, ...] = ()
    """Why a server is not among them, a sentence each."""


@attrs.frozen
class Period:
    """A part of the time, in seconds since the first sample."""

    label: str
    start: float
    end: float


@attrs.frozen
class Extent:
    """Least, greatest and mean of a figure."""

    least: float
    greatest: float
    mean: float
    count: int = 1
    """Of the values."""

    @classmethod
    def with_value(cls, extent: "Extent | None", value: float | None) -> "Extent | None":
        """Return an extent with a further value; None stands for one without values, and for no value."""
        if value is None or extent is None:
            return extent if value is None else cls(value, value, value)
        count = extent.count + 1
        mean = extent.mean + (value - extent.mean) / count
        return cls(min(extent.least, value), max(extent.greatest, value), mean, count)


@attrs.define
class WatchSummary:
    """What the samples so far were like. None is what no sample says."""

    seconds: float = 0.0
    samples: int = 0
    free_bytes: Extent | None = None
    used_bytes: Extent | None = None
    total_bytes: int | None = None
    swap_used_bytes: Extent | None = None
    pressure: int | None = None
    """The highest level."""
    cpu_percent: Extent | None = None
    gpu_percent: Extent | None = None
    command: ProcessTree | None = None
    """The sample in which it had the most memory."""
    server_bytes: Extent | None = None
    """Memory of the processes of all servers."""
    array_bytes: Extent | None = None
    """Arrays of the engines of all servers."""
    _ended: list[Period] = attrs.field(factory=list)
    _begun: dict[tuple[str, str], float] = attrs.field(factory=dict)

    @classmethod
    def of(cls, samples: Iterable[MachineSample]) -> "WatchSummary":
        """Return that of samples in the order of time."""
        summary = cls()
        for each in samples:
            summary.add(each)
        return summary

    def add(self, sample: MachineSample) -> None:
        """Take in a further sample."""
        machine, gpu = sample.machine, sample.machine.gpu
        self.seconds = sample.elapsed
        self.samples += 1
        self.total_bytes = machine.total_bytes or self.total_bytes
        if machine.pressure is not None:
            self.pressure = max(machine.pressure, self.pressure or 0)
        if sample.command and (self.command is None or sample.command.memory_bytes > self.command.memory_bytes):
            self.command = sample.command
        self.free_bytes = Extent.with_value(self.free_bytes, machine.free_bytes)
        self.used_bytes = Extent.with_value(self.used_bytes, machine.used_bytes)
        self.swap_used_bytes = Extent.with_value(self.swap_used_bytes, machine.swap_used_bytes)
        self.cpu_percent = Extent.with_value(self.cpu_percent, machine.cpu.busy if machine.cpu else None)
        self.gpu_percent = Extent.with_value(self.gpu_percent, gpu.busy_percent if gpu else None)
        self.server_bytes = Extent.with_value(self.server_bytes, server_memory(sample))
        self.array_bytes = Extent.with_value(self.array_bytes, engine_memory(sample))
        present = {(server.url, model.name) for server in sample.servers for model in server.models}
        for key in self._begun.keys() - present:
            self._ended.append(Period(key[1], self._begun.pop(key), sample.elapsed))
        for key in present - self._begun.keys():
            self._begun[key] = sample.elapsed

    @property
    def models(self) -> tuple[Period, ...]:
        """When which model was in a server's memory, by start and name; a model may have several regions."""
        present = (Period(name, start, self.seconds) for (_, name), start in self._begun.items())
        return tuple(sorted((*self._ended, *present), key=lambda each: (each.start, each.label, each.end)))


def server_memory(sample: MachineSample) -> int | None:
    """Return the memory of the processes of all servers; None without any that can be read."""
    return _sum(each.memory.memory_bytes for each in sample.servers if each.memory)


def engine_memory(sample: MachineSample) -> int | None:
    """Return what the arrays of all servers take; None where no server says."""
    return _sum(each.engine.array_bytes for each in sample.servers if each.engine)


def _sum(values: Iterable[int]) -> int | None:
    known = list(values)
    return sum(known) if known else None


@attrs.frozen
class Rates:
    """What a server did between two readings, each a second."""

    prompt_tokens: float
    """Computed, those from a cache not included."""
    generated_tokens: float

    @classmethod
    def between(cls, before: EngineFigures, after: EngineFigures, seconds: float) -> "Rates | None":
        """Return them; None where no time passed, or the server began anew in between."""
        computed = _computed(after) - _computed(before)
        generated = after.generated_tokens - before.generated_tokens
        return None if seconds <= 0 or computed < 0 or generated < 0 else cls(computed / seconds, generated / seconds)


def _computed(figures: EngineFigures) -> int:
    return figures.prompt_tokens - figures.cached_tokens


@attrs.frozen
class WatchedServer:
    """A server at one moment, with what the readings before show."""

    reading: ServerReading
    rates: Rates | None
    """Since the reading before; None without one, and where the engine did not answer."""
    speeds: tuple[float, ...]
    """Tokens generated a second between the last readings, the oldest first."""

    @property
    def cached_share(self) -> float | None:
        """The part of all tokens of prompts that was not computed again; None before there were any."""
        engine = self.reading.engine
        return engine.cached_tokens / engine.prompt_tokens if engine and engine.prompt_tokens else None


MOST_SPEEDS = 300


@attrs.define
class ServerHistory:
    """The last readings of servers, by address."""

    _before: dict[str, tuple[float, EngineFigures]] = attrs.field(factory=dict)
    _speeds: dict[str, tuple[float, ...]] = attrs.field(factory=dict)
    _gone: dict[str, float] = attrs.field(factory=dict)

    def add(self, sample: MachineSample) -> tuple[WatchedServer, ...]:
        """Take in a further sample, and return its servers."""
        found = tuple(self._watched(each, sample.elapsed) for each in sample.servers)
        present = {each.url for each in sample.servers}
        for url in self._speeds.keys() - present - self._gone.keys():
            self._gone[url] = sample.elapsed
        for url in present & self._gone.keys():
            del self._gone[url]
        return found

    @property
    def gone(self) -> tuple[tuple[str, float], ...]:
        """The addresses of servers that were there and are not any more, and since when, by address."""
        return tuple(sorted(self._gone.items()))

    def _watched(self, server: ServerReading, elapsed: float) -> WatchedServer:
        speeds, engine, rates = self._speeds.get(server.url, ()), server.engine, None
        if engine is not None and engine.responding:
            if before := self._before.get(server.url):
                rates = Rates.between(before[1], engine, elapsed - before[0])
            self._before[server.url] = (elapsed, engine)
        if rates is not None:
            speeds = (*speeds, rates.generated_tokens)[-MOST_SPEEDS:]
        self._speeds[server.url] = speeds
        return WatchedServer(server, rates, speeds)
