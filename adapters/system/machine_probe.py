"""Readings of this machine and its processes, by procfs and ``nvidia-smi``, or by commands of macOS and libproc.

Pure functions parse the output of the commands.
"""

import functools
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import attrs

from mlxk.adapters.system import (
    VM_STAT,
    ProcFiles,
    ProcMemoryProbe,
    Run,
    mac_memory,
    numbers,
    page_bytes,
    run_quietly,
    swap_usage,
    swap_used,
    sysctl_lines,
)
from mlxk.adapters.system.machine_meter import footprint, system_library
from mlxk.application.ports.measuring import MachineProbe
from mlxk.domain.monitoring import CpuShares, GpuReading, MachineReading, MemoryKind, ProcessTree

_MIB = 1024**2


@attrs.frozen
class Process:
    """A process in the process list."""

    parent: int
    resident_bytes: int
    user_seconds: float
    """Processor time; like ``system_seconds`` 0 if the list lacks it."""
    system_seconds: float


Footprints = Callable[[int], tuple[int, MemoryKind] | None]
"""Returns the memory of a process and its kind; None to use the resident memory of the process list."""


@attrs.define
class ProcessTimes:
    """Computes processor times from successive process lists."""

    now: Callable[[], float]
    former: dict[int, Process] = attrs.field(factory=dict)
    """The last process list, by id."""
    seconds: float | None = None
    """Time between the last two lists; None before the second one."""
    _taken: float | None = None
    """Time of the last list."""

    def take(self, processes: dict[int, Process]) -> dict[int, tuple[float, float]]:
        """Return user and system time of each process since the list before; those of a new process began at 0."""
        now = self.now()
        self.seconds = None if self._taken is None or now <= self._taken else now - self._taken
        former = {} if self._taken is None else self.former
        used = {}
        for number, process in processes.items():
            before = former.get(number)
            if before is None or _time(before) > _time(process):  # the id was reused
                before = Process(0, 0, 0.0, 0.0)
            used[number] = (process.user_seconds - before.user_seconds, process.system_seconds - before.system_seconds)
        self.former, self._taken = processes, now
        return used


def _time(process: Process) -> float:
    return process.user_seconds + process.system_seconds


def tree_of(
    root: int,
    processes: Mapping[int, Process],
    used: Mapping[int, tuple[float, float]],
    seconds: float | None,
    memory: Footprints,
) -> ProcessTree | None:
    """Return the sums over a process and its descendants; None if it does not run.

    Args:
        root: Id of the process.
        processes: All processes of the machine, by id.
        used: User and system time of each since the list before.
        seconds: Time since the list before; None for the first one.
        memory: Returns the memory of one process.
    """
    if root not in processes:
        return None
    tree = list(_descendants(root, processes))
    memories = [memory(number) or (processes[number].resident_bytes, MemoryKind.RESIDENT) for number in tree]
    kind = next((kind for _, kind in memories if kind is not MemoryKind.RESIDENT), MemoryKind.RESIDENT)
    busy = None if seconds is None else 100 * sum(sum(used[number]) for number in tree) / seconds
    return ProcessTree(len(tree), sum(size for size, _ in memories), kind, busy)


def _descendants(root: int, processes: Mapping[int, Process]) -> Iterator[int]:
    """Yield the ids of a process and its descendants."""
    children: dict[int, list[int]] = {}
    for number, process in processes.items():
        if number != root and process.parent != number:
            children.setdefault(process.parent, []).append(number)
    pending = [root]
    while pending:
        number = pending.pop()
        yield number
        pending += children.get(number, ())


# Linux


class ProcMachineProbe(MachineProbe):
    """Reads ``/proc``, the control groups, and ``nvidia-smi`` if there is an NVIDIA GPU.

    Args:
        gpu: Whether there is one.
        run: Runs a command; only tests need another one.
        root: Directory with ``proc`` and ``sys``; only tests need another one.
        now: Seconds of a monotonic clock; only tests need another one.
    """

    def __init__(
        self,
        gpu: Callable[[], bool] = lambda: False,
        run: Run = run_quietly,
        root: str = "/",
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._files = ProcFiles(root)
        self._memory = ProcMemoryProbe(root)
        self._gpu = gpu
        self._run = run
        self._times = ProcessTimes(now)
        self._ticks: tuple[int, ...] = ()

    def read(self, roots: Sequence[int]) -> tuple[MachineReading, tuple[ProcessTree | None, ...]]:
        memory = self._files.memory()
        reading = self._memory.within_groups(memory)
        machine = MachineReading(
            total_bytes=reading.total if reading else None,
            available_bytes=reading.available if reading else None,
            free_bytes=memory.get("MemFree"),
            swap_total_bytes=memory.get("SwapTotal"),
            swap_used_bytes=swap_used(memory),
            stalled_percent=stalled(self._files.text("proc/pressure/memory")),
            load=three_numbers(self._files.text("proc/loadavg")),
            cpu=self._cpu(),
            gpu=nvidia_gpus(self._run(_NVIDIA)) if self._gpu() else None,
        )
        if not roots:
            return machine, ()
        processes = dict(self._processes())
        used = self._times.take(processes)
        return machine, tuple(tree_of(root, processes, used, self._times.seconds, self._proportional) for root in roots)

    def _cpu(self) -> CpuShares | None:
        former, self._ticks = self._ticks, cpu_ticks(self._files.text("proc/stat"))
        return shares(former, self._ticks)

    def _processes(self) -> Iterator[tuple[int, Process]]:
        for name in self._files.names("proc"):
            if name.isdecimal() and (process := stat_process(self._files.text(f"proc/{name}/stat"))):
                yield int(name), process

    def _proportional(self, process: int) -> tuple[int, MemoryKind] | None:
        if self._times.former[process].resident_bytes > _LARGE_BYTES:
            return None
        size = self._files.numbers(f"proc/{process}/smaps_rollup").get("Pss")
        return None if size is None else (size * 1024, MemoryKind.PROPORTIONAL)


_LARGE_BYTES = 512 * _MIB
"""Resident memory from which the proportional one is not read: shared pages are a small part, and reading stalls the
process."""
_NVIDIA = ("nvidia-smi", "--query-gpu=utilization.gpu,memory.used,memory.total", "--format=csv,noheader,nounits")


def cpu_ticks(text: str) -> tuple[int, ...]:
    """Return user, system and idle ticks since the start by ``/proc/stat``; empty if it lacks them."""
    words = text.partition("\n")[0].split()
    if len(words) < 5 or words[0] != "cpu" or not all(each.isdecimal() for each in words[1:]):
        return ()
    user, nice, system, idle, wait, *others = [*map(int, words[1:9])] + [0] * (9 - len(words))
    return user + nice, system + sum(others), idle + wait


def shares(former: Sequence[int], ticks: Sequence[int]) -> CpuShares | None:
    """Return the shares of user, system and idle ticks between two readings; None without two, or without ticks."""
    if not former or not ticks:
        return None
    spent = [max(0, after - before) for before, after in zip(former, ticks, strict=True)]
    return CpuShares(*(100 * part / sum(spent) for part in spent)) if sum(spent) else None


def stat_process(text: str) -> Process | None:
    """Return a process by its ``/proc/PID/stat``, whose second field may have spaces and brackets."""
    words = text.rpartition(")")[2].split()
    try:
        ticks, page = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
        return Process(int(words[1]), int(words[21]) * page, int(words[11]) / ticks, int(words[12]) / ticks)
    except (IndexError, ValueError):
        return None


def stalled(text: str) -> float | None:
    """Return the percentage of ``some avg10`` in ``/proc/pressure/memory``; None without it."""
    match = re.search(r"^some avg10=(\d+\.?\d*)", text, re.MULTILINE)
    return float(match[1]) if match else None


def three_numbers(text: str) -> tuple[float, float, float] | None:
    """Return the first three numbers of a text; None without three."""
    values = re.findall(r"\d+\.\d+|\d+", text)[:3]
    return (float(values[0]), float(values[1]), float(values[2])) if len(values) == 3 else None


def nvidia_gpus(text: str) -> GpuReading | None:
    """Return all GPUs together by the lines of ``nvidia-smi``: percent, used and total MiB, or ``[N/A]``."""
    rows = [[_decimal(cell) for cell in line.split(",")] for line in text.splitlines()]
    columns = list(zip(*(row for row in rows if len(row) == 3), strict=True))
    if not columns:
        return None
    busy, used, total = ([value for value in column if value is not None] for column in columns)
    return GpuReading(
        sum(busy) / len(busy) if busy else None,
        used_bytes=round(sum(used) * _MIB) if used else None,
        total_bytes=round(sum(total) * _MIB) if total else None,
    )


def _decimal(text: str) -> float | None:
    return float(text) if re.fullmatch(r"\s*\d+(\.\d+)?\s*", text) else None


# macOS


_SYSCTL = (
    "/usr/sbin/sysctl",
    *("hw.memsize", "iogpu.wired_limit_mb", "vm.swapusage", "vm.loadavg", "vm.memory_pressure"),
    "kern.memorystatus_vm_pressure_level",
)
_IOREG = ("/usr/sbin/ioreg", "-r", "-d", "1", "-w", "0", "-c", "IOAccelerator")
_PS = ("/bin/ps", "-A", *("-o", "pid="), *("-o", "ppid="), *("-o", "rss="), *("-o", "utime="), *("-o", "time="))
"""One ``-o`` per column, since all text after the ``=``, commas included, is its title."""


class MacMachineProbe(MachineProbe):
    """Runs ``sysctl``, ``vm_stat``, ``ioreg`` and ``ps``, and reads the memory of processes by libproc.

    Processor shares are computed from the running processes only.

    Args:
        run: Runs a command; only tests need another one.
        library: Returns the system's library; only tests need another one.
        now: Seconds of a monotonic clock; only tests need another one.
        cores: Number of processor cores.
    """

    def __init__(
        self,
        run: Run = run_quietly,
        library: Callable[[], Any] = system_library,
        now: Callable[[], float] = time.monotonic,
        cores: int = os.cpu_count() or 1,
    ) -> None:
        self._run = run
        self._library = library
        self._times = ProcessTimes(now)
        self._cores = cores

    def read(self, roots: Sequence[int]) -> tuple[MachineReading, tuple[ProcessTree | None, ...]]:
        settings, statistics = self._run(_SYSCTL), self._run(VM_STAT)
        known, lines = numbers(settings), sysctl_lines(settings)
        reading, pages = mac_memory(known, statistics), numbers(statistics)
        free, swap = pages.get("Pages free"), swap_usage(lines.get("vm.swapusage", ""))
        processes = ps_processes(self._run(_PS))
        used = self._times.take(processes)
        machine = MachineReading(
            total_bytes=reading.total if reading else None,
            available_bytes=reading.available if reading else None,
            free_bytes=None if free is None else free * page_bytes(statistics),
            swap_total_bytes=swap[0] if swap else None,
            swap_used_bytes=swap[1] if swap else None,
            pressure=known.get("kern.memorystatus_vm_pressure_level"),
            scan_pressure=known.get("vm.memory_pressure"),
            load=three_numbers(lines.get("vm.loadavg", "").replace(",", ".")),
            cpu=self._cpu(used.values()),
            gpu=accelerators(self._run(_IOREG)),
        )
        return machine, tuple(tree_of(root, processes, used, self._times.seconds, self._charged) for root in roots)

    def _cpu(self, used: Iterable[tuple[float, float]]) -> CpuShares | None:
        seconds, times = self._times.seconds, list(used)
        if seconds is None or not times:
            return None
        user, system = (min(100.0, 100 * sum(kind) / seconds / self._cores) for kind in zip(*times, strict=True))
        return CpuShares(user, system, max(0.0, 100 - user - system))

    def _charged(self, process: int) -> tuple[int, MemoryKind] | None:
        size = footprint(self._library(), process)
        return None if size is None else (size, MemoryKind.FOOTPRINT)


def ps_processes(text: str) -> dict[int, Process]:
    """Return all processes by the lines of ``ps``: id, parent, resident KiB, user and total processor time."""
    processes = {}
    for words in map(str.split, text.splitlines()):
        if len(words) < 3 or not all(each.isdecimal() for each in words[:3]):
            continue
        user, total = (_seconds(words[3]), _seconds(words[4])) if len(words) == 5 else (0.0, 0.0)
        processes[int(words[0])] = Process(int(words[1]), int(words[2]) * 1024, user, max(0.0, total - user))
    return processes


def _seconds(text: str) -> float:
    """Return the seconds of a time such as ``1-02:03:04.05``, whose larger units may be missing; 0 if invalid."""
    days, _, clock = text.rpartition("-")
    total = 0.0
    try:
        for part in clock.replace(",", ".").split(":"):
            total = total * 60 + float(part)
        return total + 86400 * float(days or 0)
    except ValueError:
        return 0.0


def accelerators(text: str) -> GpuReading | None:
    """Return the busiest GPU by the statistics in the output of ``ioreg``; None without any.

    Its memory is the machine's; the part in use is included if the driver reports it.
    """
    readings = []
    for block in re.findall(r'"PerformanceStatistics" = \{([^}]*)\}', text):
        values = {name: int(value) for name, value in re.findall(r'"([^"]+)"\s*=\s*(\d+)', block)}
        busy = values.get("Device Utilization %", values.get("GPU Activity(%)"))
        renderer, tiler = (values.get(f"{name} Utilization %") for name in ("Renderer", "Tiler"))
        readings.append(GpuReading(busy, renderer, tiler, values.get("In use system memory")))
    return max(readings, key=lambda reading: reading.busy_percent or 0, default=None)


def system_machine_probe(platform: str, gpu: Callable[[], bool], search_path: str) -> MachineProbe:
    """Return the probe for a platform.

    Args:
        platform: As in ``sys.platform``. Any other than macOS gets the probe for Linux.
        gpu: Whether there is an NVIDIA GPU.
        search_path: Directories of programs, as in ``PATH``; ``nvidia-smi`` may lie in any.
    """
    if platform == "darwin":
        return MacMachineProbe()
    return ProcMachineProbe(gpu, functools.partial(run_quietly, search_path=search_path))
