"""Samples of a machine, a command and servers over time: their summary, and the servers' rates between samples."""

import enum
from collections.abc import Iterable

import attrs

from mlxk.domain.generation.request import EngineFigures

LEVELS = ((1, "normal"), (2, "warning"), (4, "critical"))
"""Levels of memory pressure, as macOS numbers them."""


class MemoryKind(enum.Enum):
    """How the memory of a process is counted."""

    PROPORTIONAL = "pss"
    """Resident memory; pages that processes share are divided among them, except in large processes."""
    RESIDENT = "rss"
    """Resident memory; shared pages count for each process."""
    FOOTPRINT = "footprint"
    """The memory that macOS charges to the process, compressed and GPU memory included."""


@attrs.frozen
class ProcessTree:
    """A process and its descendants, together."""

    processes: int
    memory_bytes: int
    kind: MemoryKind
    cpu_percent: float | None = None
    """CPU time since the previous sample, 100 for one core; None in the first sample."""


@attrs.frozen
class CpuShares:
    """Use of all cores since the previous sample, in percent."""

    user: float
    system: float
    idle: float

    @property
    def busy(self) -> float:
        """All time but idle time."""
        return 100 - self.idle


@attrs.frozen
class GpuReading:
    """All GPUs together; None for what the system does not report."""

    busy_percent: float | None = None
    renderer_percent: float | None = None
    tiler_percent: float | None = None
    used_bytes: int | None = None
    total_bytes: int | None = None
    """None where the GPU uses the machine's memory."""


@attrs.frozen
class MachineReading:
    """The machine at one moment; None for what the system does not report."""

    total_bytes: int | None = None
    """Memory that this process may use."""
    available_bytes: int | None = None
    """Memory that can be allocated without swapping."""
    free_bytes: int | None = None
    """Unused memory; the file cache does not count as free."""
    swap_total_bytes: int | None = None
    swap_used_bytes: int | None = None
    pressure: int | None = None
    """Memory pressure, one of ``LEVELS``."""
    scan_pressure: int | None = None
    """The system's scan for pages to reclaim; 0 when it does not scan."""
    stalled_percent: float | None = None
    """Share of the last ten seconds in which a task waited for memory."""
    load: tuple[float, float, float] | None = None
    """Load averages of 1, 5 and 15 minutes: running and runnable processes."""
    cpu: CpuShares | None = None
    gpu: GpuReading | None = None

    @property
    def used_bytes(self) -> int | None:
        """Total minus available memory."""
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
    """Decoding speed of the last completion."""


@attrs.frozen
class ServerReading:
    """A server at one moment."""

    url: str
    process: int | None
    """Process id; None for a server that was given by its address."""
    models: tuple[WatchedModel, ...]
    engine: EngineFigures | None = None
    """None where the server does not report them."""
    memory: ProcessTree | None = None
    """None where its processes cannot be read."""

    @property
    def label(self) -> str:
        """The names of its models."""
        return ", ".join(model.name for model in self.models)


@attrs.frozen
class MachineSample:
    """One sample of everything that is watched."""

    time: float
    """Seconds since 1970."""
    elapsed: float
    """Seconds since the first sample."""
    machine: MachineReading
    command: ProcessTree | None = None
    """The watched command; None without one, and while it does not run."""
    servers: tuple[ServerReading, ...] = ()
    faults: tuple[str, ...] = ()
    """Why a server is missing from ``servers``, a sentence each."""


@attrs.frozen
class Period:
    """A labelled period, in seconds since the first sample."""

    label: str
    start: float
    end: float


@attrs.frozen
class Extent:
    """Minimum, maximum and mean of a figure."""

    least: float
    greatest: float
    mean: float
    count: int = 1
    """Number of values."""

    @classmethod
    def with_value(cls, extent: "Extent | None", value: float | None) -> "Extent | None":
        """Return the extent with another value; an extent of None has no values yet, a value of None adds nothing."""
        if value is None or extent is None:
            return extent if value is None else cls(value, value, value)
        count = extent.count + 1
        mean = extent.mean + (value - extent.mean) / count
        return cls(min(extent.least, value), max(extent.greatest, value), mean, count)


@attrs.define
class WatchSummary:
    """Summary of the samples so far; None for what no sample has."""

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
    """The watched command when it used the most memory."""
    server_bytes: Extent | None = None
    """Memory of the processes of all servers."""
    array_bytes: Extent | None = None
    """Memory of the arrays of all servers' engines."""
    _ended: list[Period] = attrs.field(factory=list)
    _begun: dict[tuple[str, str], float] = attrs.field(factory=dict)

    @classmethod
    def of(cls, samples: Iterable[MachineSample]) -> "WatchSummary":
        """Return the summary of samples in chronological order."""
        summary = cls()
        for sample in samples:
            summary.add(sample)
        return summary

    def add(self, sample: MachineSample) -> None:
        """Add the next sample."""
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
        """The periods in which each model was in a server's memory, by start and name; a model may have several."""
        present = (Period(name, start, self.seconds) for (_, name), start in self._begun.items())
        return tuple(sorted((*self._ended, *present), key=lambda period: (period.start, period.label, period.end)))


def server_memory(sample: MachineSample) -> int | None:
    """Return the memory of all servers' processes; None where none can be read."""
    return _sum(server.memory.memory_bytes for server in sample.servers if server.memory)


def engine_memory(sample: MachineSample) -> int | None:
    """Return the memory of the arrays of all servers' engines; None where no server reports it."""
    return _sum(server.engine.array_bytes for server in sample.servers if server.engine)


def _sum(values: Iterable[int]) -> int | None:
    known = list(values)
    return sum(known) if known else None


@attrs.frozen
class Rates:
    """A server's throughput between two readings, tokens a second."""

    prompt_tokens: float
    """Computed prompt tokens; those from a cache do not count."""
    generated_tokens: float

    @classmethod
    def between(cls, before: EngineFigures, after: EngineFigures, seconds: float) -> "Rates | None":
        """Return the rates; None where no time passed, or the server restarted in between."""
        computed = _computed(after) - _computed(before)
        generated = after.generated_tokens - before.generated_tokens
        return None if seconds <= 0 or computed < 0 or generated < 0 else cls(computed / seconds, generated / seconds)


def _computed(figures: EngineFigures) -> int:
    return figures.prompt_tokens - figures.cached_tokens


@attrs.frozen
class WatchedServer:
    """A server at one moment, with its rates since earlier readings."""

    reading: ServerReading
    rates: Rates | None
    """Since the previous reading; None without one, and where the engine did not respond."""
    speeds: tuple[float, ...]
    """Generated tokens a second between the last readings, the oldest first."""

    @property
    def cached_share(self) -> float | None:
        """Share of all prompt tokens that came from the prefix cache; None before the first prompt."""
        engine = self.reading.engine
        return engine.cached_tokens / engine.prompt_tokens if engine and engine.prompt_tokens else None


MOST_SPEEDS = 300
"""Length of a server's history of speeds, in readings."""


@attrs.define
class ServerHistory:
    """The last readings of each server, by URL."""

    _previous: dict[str, tuple[float, EngineFigures]] = attrs.field(factory=dict)
    """Time and figures of the last reading in which the engine responded."""
    _speeds: dict[str, tuple[float, ...]] = attrs.field(factory=dict)
    _gone: dict[str, float] = attrs.field(factory=dict)

    def add(self, sample: MachineSample) -> tuple[WatchedServer, ...]:
        """Add the next sample, and return its servers."""
        servers = tuple(self._watched(server, sample.elapsed) for server in sample.servers)
        present = {server.url for server in sample.servers}
        for url in self._speeds.keys() - present - self._gone.keys():
            self._gone[url] = sample.elapsed
        for url in present & self._gone.keys():
            del self._gone[url]
        return servers

    @property
    def gone(self) -> tuple[tuple[str, float], ...]:
        """URL of each server that has disappeared and the time since when, sorted by URL."""
        return tuple(sorted(self._gone.items()))

    def _watched(self, server: ServerReading, elapsed: float) -> WatchedServer:
        speeds, engine, rates = self._speeds.get(server.url, ()), server.engine, None
        if engine is not None and engine.responding:
            if previous := self._previous.get(server.url):
                rates = Rates.between(previous[1], engine, elapsed - previous[0])
            self._previous[server.url] = (elapsed, engine)
        if rates is not None:
            speeds = (*speeds, rates.generated_tokens)[-MOST_SPEEDS:]
        self._speeds[server.url] = speeds
        return WatchedServer(server, rates, speeds)
