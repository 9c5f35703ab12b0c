"""Memory on macOS, in bytes.

total             = hw.memsize
available         = (free + inactive + speculative pages) * page size, from vm_stat
accelerator_limit = iogpu.wired_limit_mb when someone set it, else Apple's recommended working set:
                    three quarters of the memory from 36 GiB on, two thirds below
"""

import os
from collections.abc import Callable

from mlxk.application.ports.memory_probe import MemoryProbe
from mlxk.domain.memory import MemoryReading

LARGE_MEMORY_BYTES = 36 * 1024**3
"""From here on Metal recommends three quarters of the memory as working set."""

_SYSCTL = ("/usr/sbin/sysctl", "hw.memsize", "iogpu.wired_limit_mb")
_VM_STAT = ("/usr/bin/vm_stat",)
_AVAILABLE = ("Pages free", "Pages inactive", "Pages speculative")
_DEFAULT_PAGE_BYTES = 16384

Run = Callable[[tuple[str, ...]], str]
"""Runs a command, program and arguments, and returns what it printed, empty when it cannot be run."""


def run_quietly(command: tuple[str, ...]) -> str:
    """Run a command with nothing on its standard error and return its output; ``subprocess`` would cost more."""
    reading, writing = os.pipe()
    try:
        actions = [(os.POSIX_SPAWN_DUP2, writing, 1), (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0)]
        process = os.posix_spawn(command[0], command, {"LC_ALL": "C"}, file_actions=actions)
    except OSError:
        os.close(reading)
        return ""
    finally:
        os.close(writing)
    with open(reading, encoding="ascii", errors="replace") as output:
        text = output.read()
    os.waitpid(process, 0)
    return text


class SysctlMemoryProbe(MemoryProbe):
    """Reads ``sysctl`` and ``vm_stat``.

    Args:
        run: Runs a command; only tests need another one.
    """

    def __init__(self, run: Run = run_quietly) -> None:
        self._run = run

    def read(self) -> MemoryReading | None:
        """Return the reading of this moment, or None when ``sysctl`` does not tell."""
        settings = _numbers(self._run(_SYSCTL))
        total = settings.get("hw.memsize")
        if not total:
            return None
        statistics = self._run(_VM_STAT)
        pages = _numbers(statistics)
        free = sum(pages.get(name, 0) for name in _AVAILABLE) * _page_bytes(statistics)
        wired_limit = settings.get("iogpu.wired_limit_mb", 0) * 1024**2
        return MemoryReading(total, min(free, total), wired_limit or _recommended(total))


def _recommended(total: int) -> int:
    return total * 3 // 4 if total >= LARGE_MEMORY_BYTES else total * 2 // 3


def _numbers(text: str) -> dict[str, int]:
    """The numbers of lines such as ``hw.memsize: 17179869184`` and ``Pages free:  12345.``."""
    pairs = (line.partition(":") for line in text.splitlines())
    return {name: int(value.strip(" .")) for name, _, value in pairs if value.strip(" .").isdecimal()}


def _page_bytes(statistics: str) -> int:
    words = statistics.partition("\n")[0].partition("page size of ")[2].split()
    return int(words[0]) if words and words[0].isdecimal() else _DEFAULT_PAGE_BYTES
