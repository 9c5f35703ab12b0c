"""Memory on Linux, in bytes.

    total     = the smaller of MemTotal and the limits of the control groups this process is in
    available = the smaller of MemAvailable and, for each such limit, limit - (used - inactive page cache)

Both generations of control groups are read, with every parent group, because a parent's limit holds for its children.
"""

import os

import attrs

from mlxk.application.ports.memory_probe import MemoryProbe
from mlxk.domain.memory import MemoryReading


@attrs.frozen
class _Generation:
    """How one generation of control groups names its files."""

    mount: str
    limit: str
    used: str
    inactive: str
    """The line of ``memory.stat`` with the page cache that can be given up at once."""


_SECOND = _Generation("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file")
_FIRST = _Generation("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


class ProcMemoryProbe(MemoryProbe):
    """Reads ``/proc/meminfo`` and the control groups.

    Args:
        root: Where ``proc`` and ``sys`` are; only tests need another one.
    """

    def __init__(self, root: str = "/") -> None:
        self._root = root

    def read(self) -> MemoryReading | None:
        """Return the reading of this moment, or None where there is no ``/proc/meminfo``."""
        machine = {name: kibibytes * 1024 for name, kibibytes in self._numbers("proc/meminfo").items()}
        total = machine.get("MemTotal")
        if not total:
            return None
        unused = sum(machine.get(name, 0) for name in ("MemFree", "Buffers", "Cached"))
        available = machine.get("MemAvailable", unused)
        for generation, folder in self._groups():
            limit = self._number(f"{folder}/{generation.limit}")
            if limit is None or limit >= machine["MemTotal"]:
                continue  # "max", or the first generation's astronomical number
            used = self._number(f"{folder}/{generation.used}") or 0
            inactive = self._numbers(f"{folder}/memory.stat").get(generation.inactive, 0)
            total, available = min(total, limit), min(available, limit - max(used - inactive, 0))
        return MemoryReading(total, max(0, min(available, total)))

    def _groups(self) -> list[tuple[_Generation, str]]:
        """Every group that limits this process, as a folder below the root."""
        found = []
        for line in self._text("proc/self/cgroup").splitlines():
            _, controllers, path = ([*line.split(":", 2), "", ""])[:3]
            if controllers and "memory" not in controllers.split(","):
                continue
            generation = _FIRST if controllers else _SECOND
            # Inside a container the path may be the host's, which does not exist here; its own root then holds.
            parts = [part for part in path.split("/") if part not in {"", ".", ".."}]
            found += [(generation, "/".join([generation.mount, *parts[:depth]])) for depth in range(len(parts), -1, -1)]
        return found

    def _number(self, path: str) -> int | None:
        text = self._text(path).strip()
        return int(text) if text.isdecimal() else None

    def _numbers(self, path: str) -> dict[str, int]:
        """The first number of every line, by the line's first word."""
        lines = (line.replace(":", " ").split() for line in self._text(path).splitlines())
        return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdecimal()}

    def _text(self, path: str) -> str:
        try:
            with open(os.path.join(self._root, path), encoding="ascii", errors="replace") as file:
                return file.read()
        except OSError:
            return ""
