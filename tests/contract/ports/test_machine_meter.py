"""The contract of the machine's figures, held by the adapter and the double; and what the adapter reads."""

import sys
from pathlib import Path

import pytest
from doubles.machine_meter import InMemoryMachineMeter

from mlxk.adapters.system.machine_meter import SystemMachineMeter
from mlxk.application.ports.measuring import MachineMeter
from mlxk.domain.benchmark import Processor


@pytest.fixture(params=["system", "in_memory"])
def meter(request: pytest.FixtureRequest) -> MachineMeter:
    return SystemMachineMeter() if request.param == "system" else InMemoryMachineMeter()


def test_figures_are_in_their_ranges(meter: MachineMeter) -> None:
    load, peak = meter.load(), meter.peak_process_bytes()
    assert meter.processor().cores >= 1
    assert load is None or load >= 0
    assert peak is None or peak > 10**7


@pytest.mark.skipif(sys.platform not in {"linux", "darwin"}, reason="another system may not say")
def test_the_peak_grows_with_the_memory_of_this_process() -> None:
    before = SystemMachineMeter().peak_process_bytes()
    assert before is not None
    block = bytearray(b"\1") * (before + 2**26)
    after = SystemMachineMeter().peak_process_bytes()
    assert after is not None
    assert after - before > 2**25
    del block


def test_the_processor_of_linux_is_read_from_its_list(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Example 9000: fast\n")
    meter = SystemMachineMeter("linux", root=str(tmp_path))
    assert meter.processor().name == "Example 9000: fast"
    assert meter.peak_process_bytes() is None


def test_the_processor_of_a_mac_is_asked_for(tmp_path: Path) -> None:
    asked: list[tuple[str, ...]] = []

    def run(command: tuple[str, ...]) -> str:
        asked.append(command)
        return "Apple M2 Max\n"

    assert SystemMachineMeter("darwin", run).processor() == Processor(
        "Apple M2 Max", SystemMachineMeter().processor().cores
    )
    assert asked == [("/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string")]
