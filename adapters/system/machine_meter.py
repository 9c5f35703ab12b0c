"""This machine and this process, measured: the processor, how busy it is, and the largest memory of the process."""

import ctypes
import os
import resource
import sys
from collections.abc import Callable
from typing import Any

from mlxk.adapters.system import Run, run_quietly
from mlxk.application.ports.measuring import MachineMeter
from mlxk.domain.benchmark import Processor

_PROCESSOR = ("/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string")

_RUSAGE_INFO_V4, _RUSAGE_BYTES = 4, 512
"""The version of ``struct rusage_info`` that is asked for, and room for it and for longer ones."""
_FOOTPRINT, _LARGEST_FOOTPRINT = slice(72, 80), slice(240, 248)
"""``ri_phys_footprint`` and ``ri_lifetime_max_phys_footprint``, numbers of 8 bytes after an identifier of 16."""


def system_library() -> Any:  # noqa: ANN401 - its functions are those of the system
    """Return the system's library."""
    return ctypes.CDLL(None)


def footprint(library: Any, process: int) -> int | None:  # noqa: ANN401 - as above
    """Return what macOS charges a process with, bytes: with what its GPU holds, which no page of it shows.

    Args:
        library: The system's, which has ``proc_pid_rusage``.
        process: Its id; of another user's process and of one that has ended it is None.
    """
    return _usage(library, process, _FOOTPRINT)


def largest_footprint(library: Any) -> int | None:  # noqa: ANN401 - as above
    """Return the largest footprint of this process."""
    return _usage(library, os.getpid(), _LARGEST_FOOTPRINT)


def _usage(library: Any, process: int, place: slice) -> int | None:  # noqa: ANN401 - as above
    usage = ctypes.create_string_buffer(_RUSAGE_BYTES)
    if library.proc_pid_rusage(process, _RUSAGE_INFO_V4, usage) != 0:
        return None
    return int.from_bytes(usage.raw[place], sys.byteorder) or None


class SystemMachineMeter(MachineMeter):
    """Reads ``/proc`` on Linux, ``sysctl`` on macOS, and what Python knows.

    Args:
        platform: As in ``sys.platform``.
        run: Runs a command; only tests need another one.
        root: Where ``proc`` is; only tests need another one.
        library: Returns the system's library of macOS; only tests need another one.
    """

    def __init__(
        self,
        platform: str = sys.platform,
        run: Run = run_quietly,
        root: str = "/",
        library: Callable[[], Any] = system_library,
    ) -> None:
        self._platform = platform
        self._run = run
        self._root = root
        self._library = library

    def processor(self) -> Processor:
        on_macos = self._platform == "darwin"
        name = self._run(_PROCESSOR).strip() if on_macos else self._line("proc/cpuinfo", "model name")
        return Processor(name, os.cpu_count() or 1)

    def load(self) -> float | None:
        try:
            return os.getloadavg()[0] / (os.cpu_count() or 1)
        except OSError:
            return None

    def peak_process_bytes(self) -> int | None:
        """Return the peak of this program; the usual figure of Linux may be that of the program that started it."""
        if self._platform == "darwin":
            return largest_footprint(self._library()) or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        words = self._line("proc/self/status", "VmHWM").split()
        return int(words[0]) * 1024 if words and words[0].isdecimal() else None

    def _line(self, path: str, name: str) -> str:
        """Return what follows a name and a colon in the first line that begins with it; empty without one."""
        try:
            with open(os.path.join(self._root, path), encoding="utf-8", errors="replace") as file:
                lines = (line.partition(":") for line in file)
                return next((value.strip() for found, _, value in lines if found.strip() == name), "")
        except OSError:
            return ""
