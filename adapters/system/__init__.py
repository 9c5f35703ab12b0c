"""The machine: memory in bytes (procfs and cgroups on Linux, sysctl and vm_stat on macOS), and clocks."""

import contextlib
import datetime
import os
import re
import subprocess
import time
from collections.abc import Callable, Mapping

import attrs

from mlxk.application.ports.memory import MemoryProbe
from mlxk.application.ports.system import Clock
from mlxk.domain.models.footprint import Matrices, MemoryReading, Widening


@attrs.frozen
class _CgroupVersion:
    """Paths of one version of control groups."""

    mount: str
    limit: str
    used: str
    inactive: str
    """Name in ``memory.stat`` of the page cache that can be reclaimed at once."""


_V2 = _CgroupVersion("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file")
_V1 = _CgroupVersion("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


class ProcFiles:
    """Files of ``/proc`` and ``/sys``, read as text; an unreadable file counts as empty.

    Args:
        root: Directory with ``proc`` and ``sys``; only tests need another one.
    """

    def __init__(self, root: str = "/") -> None:
        self._root = root

    def text(self, path: str) -> str:
        """Return the content of a file."""
        try:
            with open(os.path.join(self._root, path), encoding="ascii", errors="replace") as file:
                return file.read()
        except OSError:
            return ""

    def number(self, path: str) -> int | None:
        """Return the content of a file as a number; None if it is no number."""
        text = self.text(path).strip()
        return int(text) if text.isdecimal() else None

    def numbers(self, path: str) -> dict[str, int]:
        """Return the second word of the lines where it is a number, by the first word."""
        lines = (line.replace(":", " ").split() for line in self.text(path).splitlines())
        return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdecimal()}

    def memory(self) -> dict[str, int]:
        """Return the lines of ``/proc/meminfo``, in bytes."""
        return {name: kibibytes * 1024 for name, kibibytes in self.numbers("proc/meminfo").items()}

    def names(self, path: str) -> list[str]:
        """Return the names in a directory; none if it cannot be read."""
        try:
            return os.listdir(os.path.join(self._root, path))
        except OSError:
            return []


class ProcMemoryProbe(MemoryProbe):
    """Reads ``/proc/meminfo`` and the control groups.

    Args:
        root: Directory with ``proc`` and ``sys``; only tests need another one.
    """

    def __init__(self, root: str = "/") -> None:
        self._files = ProcFiles(root)

    def read(self) -> MemoryReading | None:
        """Return the current memory; None without ``/proc/meminfo``."""
        return self.within_groups(self._files.memory())

    def within_groups(self, machine: Mapping[str, int]) -> MemoryReading | None:
        """Return the machine's memory, further limited by the control groups of this process.

        Args:
            machine: The lines of ``/proc/meminfo``, in bytes.
        """
        total = machine.get("MemTotal")
        if not total:
            return None
        unused = sum(machine.get(name, 0) for name in ("MemFree", "Buffers", "Cached"))
        available = machine.get("MemAvailable", unused)
        for version, folder in self._groups():
            limit = self._files.number(f"{folder}/{version.limit}")
            if limit is None or limit >= machine["MemTotal"]:
                continue  # no limit: "max", or in version 1 a huge number
            used = self._files.number(f"{folder}/{version.used}") or 0
            inactive = self._files.numbers(f"{folder}/memory.stat").get(version.inactive, 0)
            total, available = min(total, limit), min(available, limit - max(used - inactive, 0))
        return MemoryReading(total, max(0, min(available, total)), swap_used=swap_used(machine))

    def matrices(self) -> Matrices:
        return Matrices()

    def _groups(self) -> list[tuple[_CgroupVersion, str]]:
        """Return the control groups of this process and their ancestors, as paths below the root."""
        found = []
        for line in self._files.text("proc/self/cgroup").splitlines():
            _, controllers, path = ([*line.split(":", 2), "", ""])[:3]
            if controllers and "memory" not in controllers.split(","):
                continue
            version = _V1 if controllers else _V2
            # In a container the path may be the host's and not exist here; the mount always does.
            parts = [part for part in path.split("/") if part not in {"", ".", ".."}]
            found += [(version, "/".join([version.mount, *parts[:depth]])) for depth in range(len(parts), -1, -1)]
        return found


def swap_used(machine: Mapping[str, int]) -> int | None:
    """Return the swap in use by the lines of ``/proc/meminfo``, in bytes; None if they lack it."""
    total = machine.get("SwapTotal")
    return None if total is None else total - machine.get("SwapFree", total)


LARGE_MEMORY_BYTES = 36 * 1024**3
"""Total memory from which Metal's recommended working set is three quarters of it; below, two thirds."""

_SYSCTL = ("/usr/sbin/sysctl", "hw.memsize", "iogpu.wired_limit_mb", "vm.swapusage")
VM_STAT = ("/usr/bin/vm_stat",)
_AVAILABLE = ("Pages free", "Pages inactive", "Pages speculative")
_DEFAULT_PAGE_BYTES = 16384

Run = Callable[[tuple[str, ...]], str]
"""Runs a command, program and arguments; returns its output, empty if it cannot be run."""


_COMMAND_SECONDS = 10.0
"""Timeout of a command; ``nvidia-smi`` takes seconds where it has to start the driver of several GPUs."""

_END_SECONDS = 1.0
"""How long to wait for the end of a killed command, which a driver that hangs may delay for ever."""


def run_quietly(command: tuple[str, ...], search_path: str = "", seconds: float = _COMMAND_SECONDS) -> str:
    """Run a command, discard its standard error, and return its output; empty if it does not end in time.

    Args:
        command: Program and arguments.
        search_path: Directories of programs, as in ``PATH``; relative ones are ignored, and those of the system added.
        seconds: Timeout, after which it is killed.
    """
    folders = [folder for folder in search_path.split(os.pathsep) if os.path.isabs(folder)]
    try:
        process = subprocess.Popen(
            command,
            env={"LC_ALL": "C", "PATH": os.pathsep.join((*folders, os.defpath))},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="ascii",
            errors="replace",
        )
    except OSError:
        return ""
    try:
        return process.communicate(timeout=seconds)[0]
    except BaseException as error:
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_END_SECONDS)
        if isinstance(error, subprocess.TimeoutExpired):
            return ""
        raise
    finally:
        if process.stdout is not None:
            process.stdout.close()


class SysctlMemoryProbe(MemoryProbe):
    """Reads ``sysctl`` and ``vm_stat``.

    Args:
        run: Runs a command; only tests need another one.
    """

    def __init__(self, run: Run = run_quietly) -> None:
        self._run = run

    def read(self) -> MemoryReading | None:
        """Return the current memory; None if ``sysctl`` does not report it."""
        settings = self._run(_SYSCTL)
        reading = mac_memory(numbers(settings), self._run(VM_STAT))
        swap = swap_usage(sysctl_lines(settings).get("vm.swapusage", ""))
        return reading and attrs.evolve(reading, swap_used=swap[1] if swap else None)

    def matrices(self) -> Matrices:
        return Matrices()


def mac_memory(settings: Mapping[str, int], statistics: str) -> MemoryReading | None:
    """Return the memory by the numbers of ``sysctl`` and the output of ``vm_stat``; None without the total."""
    total = settings.get("hw.memsize")
    if not total:
        return None
    pages = numbers(statistics)
    free = sum(pages.get(name, 0) for name in _AVAILABLE) * page_bytes(statistics)
    wired_limit = settings.get("iogpu.wired_limit_mb", 0) * 1024**2
    return MemoryReading(total, min(free, total), wired_limit or _recommended(total))


def _recommended(total: int) -> int:
    return total * 3 // 4 if total >= LARGE_MEMORY_BYTES else total * 2 // 3


def numbers(text: str) -> dict[str, int]:
    """Return the numbers of lines such as ``hw.memsize: 17179869184`` and ``Pages free:  12345.``."""
    pairs = (line.partition(":") for line in text.splitlines())
    return {name: int(value.strip(" .")) for name, _, value in pairs if value.strip(" .").isdecimal()}


def sysctl_lines(text: str) -> dict[str, str]:
    """Return the values of ``sysctl``'s output by name."""
    return {name: value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}


_UNITS = {"K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}


def swap_usage(text: str) -> tuple[int, int] | None:
    """Return total and used bytes of ``total = 2048.00M  used = 1024.25M  free = …``; None for another text.

    The decimal separator is a comma in some languages.
    """
    values = dict(re.findall(r"(total|used) = (\d+(?:[.,]\d+)?[KMGT]?)", text))
    if len(values) < 2:
        return None
    sizes = [_size(values[name]) for name in ("total", "used")]
    return sizes[0], sizes[1]


def _size(text: str) -> int:
    unit = _UNITS.get(text[-1])
    return round(float((text[:-1] if unit else text).replace(",", ".")) * (unit or 1))


def page_bytes(statistics: str) -> int:
    """Return the page size in the output of ``vm_stat``, bytes."""
    words = statistics.partition("\n")[0].partition("page size of ")[2].split()
    return int(words[0]) if words and words[0].isdecimal() else _DEFAULT_PAGE_BYTES


def system_memory_probe(platform: str) -> MemoryProbe:
    """Return the probe for a platform.

    Args:
        platform: As in ``sys.platform``. Any other than macOS gets the probe for Linux, which reads None without
            ``/proc``.
    """
    return SysctlMemoryProbe() if platform == "darwin" else ProcMemoryProbe()


class CpuMemoryProbe(MemoryProbe):
    """Reads the memory of a machine that computes models on its CPU.

    Args:
        probe: Reads the memory.
        widening: When 16-bit weights are stored in 32 bits.
        matrices: Returns how matrices are multiplied.
    """

    def __init__(self, probe: MemoryProbe, widening: Widening, matrices: Callable[[], Matrices]) -> None:
        self._probe = probe
        self._widening = widening
        self._matrices = matrices

    def read(self) -> MemoryReading | None:
        reading = self._probe.read()
        return None if reading is None else attrs.evolve(reading, widening=self._widening)

    def matrices(self) -> Matrices:
        return self._matrices()


class SystemClock(Clock):
    """The wall clock in UTC and the monotonic clock."""

    def now(self) -> datetime.datetime:
        return datetime.datetime.now(datetime.UTC)

    def monotonic(self) -> float:
        return time.monotonic()
