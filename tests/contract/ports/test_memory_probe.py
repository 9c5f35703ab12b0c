"""The contract of the memory probe, held by every adapter."""

from collections.abc import Callable
from pathlib import Path

import pytest
from doubles.memory_probe import InMemoryMemoryProbe

from mlxk.adapters.system import ProcMemoryProbe, SysctlMemoryProbe
from mlxk.application.ports.memory import MemoryProbe
from mlxk.domain.models.footprint import MemoryReading

GIB = 1024**3
Build = Callable[[int, int], MemoryProbe]


@pytest.fixture(params=["proc", "sysctl", "in_memory"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def build(kind: str, tmp_path: Path) -> Build:
    """Build a probe of a machine with so much memory in all, and so much of it left, in GiB."""

    def build(total: int, available: int) -> MemoryProbe:
        if kind == "in_memory":
            return InMemoryMemoryProbe(MemoryReading(total * GIB, available * GIB))
        if kind == "sysctl":
            sysctl = f"hw.memsize: {total * GIB}\n"
            vm_stat = f"(page size of 16384 bytes)\nPages free: {available * GIB // 16384}.\n"
            return SysctlMemoryProbe(lambda command: sysctl if "hw.memsize" in command else vm_stat)
        (tmp_path / "proc").mkdir()
        lines = f"MemTotal: {total * GIB // 1024} kB\nMemAvailable: {available * GIB // 1024} kB\n"
        (tmp_path / "proc/meminfo").write_text(lines)
        return ProcMemoryProbe(str(tmp_path))

    return build


@pytest.fixture
def silent(kind: str, tmp_path: Path) -> MemoryProbe:
    probes: dict[str, MemoryProbe] = {
        "in_memory": InMemoryMemoryProbe(),
        "sysctl": SysctlMemoryProbe(lambda command: ""),
        "proc": ProcMemoryProbe(str(tmp_path)),
    }
    return probes[kind]


class TestMemoryProbe:
    def test_readings_are_in_bytes(self, build: Build) -> None:
        reading = build(16, 6).read()
        assert reading is not None
        assert (reading.total, reading.available) == (16 * GIB, 6 * GIB)

    def test_a_machine_that_does_not_tell_has_no_reading(self, silent: MemoryProbe) -> None:
        assert silent.read() is None
