"""Measurements of this machine and process: processor, load, and peak memory of the process."""

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
"""The requested version of ``struct rusage_info``, and a buffer size for it and later versions."""
_FOOTPRINT, _LARGEST_FOOTPRINT = slice(72, 80), slice(240, 248)
"""Bytes of ``ri_phys_footprint`` and ``ri_lifetime_max_phys_footprint`` in it, 8 each."""


def system_library() -> Any:  # noqa: ANN401 - a ``CDLL`` has the functions of the library
    """Return the C library of the system."""
    return ctypes.CDLL(None)


def footprint(library: Any, process: int) -> int | None:  # noqa: ANN401 - as above
    """Return the physical footprint of a process on macOS, bytes, which includes its GPU memory, unlike resident pages.

    Args:
        library: The system's library, which has ``proc_pid_rusage``.
        process: Id; the footprint of another user's or an ended process is None.
    """
    return _usage(library, process, _FOOTPRINT)


def largest_footprint(library: Any) -> int | None:  # noqa: ANN401 - as above
    """Return the largest footprint of this process."""
    return _usage(library, os.getpid(), _LARGEST_FOOTPRINT)


def _usage(library: Any, process: int, field: slice) -> int | None:  # noqa: ANN401 - as above
    usage = ctypes.create_string_buffer(_RUSAGE_BYTES)
    if library.proc_pid_rusage(process, _RUSAGE_INFO_V4, usage) != 0:
        return None
    return int.from_bytes(usage.raw[field], sys.byteorder) or None


class SystemMachineMeter(MachineMeter):
    """Reads ``/proc`` on Linux, ``sysctl`` and libproc on macOS, and the standard library.

    Args:
        platform: As in ``sys.platform``.
        run: Runs a command; only tests need another one.
        root: Directory with ``proc``; only tests need another one.
        library: Returns the system's library on macOS; only tests need another one.
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
        """Return the peak memory of this process. On Linux ``ru_maxrss`` may be inherited from the parent."""
        if self._platform == "darwin":
            return largest_footprint(self._library()) or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        words = self._line("proc/self/status", "VmHWM").split()
        return int(words[0]) * 1024 if words and words[0].isdecimal() else None

    def _line(self, path: str, name: str) -> str:
        """Return the value of the first line ``NAME: VALUE`` of a file; empty without one."""
        try:
            with open(os.path.join(self._root, path), encoding="utf-8", errors="replace") as file:
                lines = (line.partition(":") for line in file)
                return next((value.strip() for found, _, value in lines if found.strip() == name), "")
        except OSError:
            return ""
