"""The contract of the memory probe, held by every adapter."""

from collections.abc import Callable
from pathlib import Path

import pytest
from doubles.memory_probe import InMemoryMemoryProbe

from mlxk.adapters.system import ProcMemoryProbe, SysctlMemoryProbe
from mlxk.application.ports.memory import MemoryProbe
from mlxk.domain.models.footprint import MemoryReading

GIB = 1024**3
Build = Callable[..., MemoryProbe]


@pytest.fixture(params=["proc", "sysctl", "in_memory"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def build(kind: str, tmp_path: Path) -> Build:
    """Build a probe of a machine with so much memory in all, so much of it left, and so much in swap, in GiB."""

    def build(total: int, available: int, swap: int | None = None) -> MemoryProbe:
        if kind == "in_memory":
            used = None if swap is None else swap * GIB
            return InMemoryMemoryProbe(MemoryReading(total * GIB, available * GIB, swap_used=used))
        if kind == "sysctl":
            sysctl = f"hw.memsize: {total * GIB}\n"
            if swap is not None:
                sysctl += f"vm.swapusage: total = 8192,00M  used = {swap}.00G  free = 1024.00M  (encrypted)\n"
            vm_stat = f"(page size of 16384 bytes)\nPages free: {available * GIB // 16384}.\n"
            return SysctlMemoryProbe(lambda command: sysctl if "hw.memsize" in command else vm_stat)
        (tmp_path / "proc").mkdir()
        lines = f"MemTotal: {total * GIB // 1024} kB\nMemAvailable: {available * GIB // 1024} kB\n"
        if swap is not None:
            lines += f"SwapTotal: {8 * GIB // 1024} kB\nSwapFree: {(8 - swap) * GIB // 1024} kB\n"
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

    def test_what_lies_in_swap_is_read_where_the_system_says_it(self, build: Build) -> None:
        reading = build(16, 6, 3).read()
        assert reading is not None
        assert reading.swap_used == 3 * GIB

    def test_without_it_swap_is_unknown(self, build: Build) -> None:
        reading = build(16, 6).read()
        assert reading is not None
        assert reading.swap_used is None

    def test_a_machine_that_does_not_tell_has_no_reading(self, silent: MemoryProbe) -> None:
        assert silent.read() is None
