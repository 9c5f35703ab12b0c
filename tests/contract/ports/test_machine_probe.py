"""The contract of the machine's probe, and what its adapters read: files of Linux, and what commands of macOS print."""

import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from doubles.machine_probe import InMemoryMachineProbe

from mlxk.adapters.system import swap_usage
from mlxk.adapters.system.machine_probe import (
    MacMachineProbe,
    ProcMachineProbe,
    accelerators,
    nvidia_gpus,
    ps_processes,
    stalled,
    system_machine_probe,
    three_numbers,
)
from mlxk.application.ports.measuring import MachineProbe
from mlxk.domain.monitoring import CpuShares, GpuReading, MachineReading, MachineSample, MemoryKind, ProcessTree
from mlxk.entrypoints.cli.render.monitoring import sample_json

MIB, GIB = 1024**2, 1024**3

SYSCTL = {
    "macOS 13": """\
hw.memsize: 17179869184
vm.swapusage: total = 2048.00M  used = 1024.25M  free = 1023.75M  (encrypted)
vm.loadavg: { 1.93 3.04 6.90 }
vm.memory_pressure: 0
kern.memorystatus_vm_pressure_level: 2
""",
    "macOS 15": """\
hw.memsize: 17179869184
iogpu.wired_limit_mb: 12288
vm.swapusage: total = 2.00G  used = 1.00G  free = 1.00G  (encrypted)
vm.loadavg: { 1,93 3,04 6,90 }
vm.memory_pressure: 1048
kern.memorystatus_vm_pressure_level: 4
""",
    "macOS 26": """\
hw.memsize: 17179869184
iogpu.wired_limit_mb: 0
vm.swapusage: total = 0.00M  used = 0.00M  free = 0.00M
vm.loadavg: { 1.93 3.04 6.90 }
vm.memory_pressure: 0
kern.memorystatus_vm_pressure_level: 1
""",
}
VM_STAT = """\
Mach Virtual Memory Statistics: (page size of 16384 bytes)
Pages free:                               65536.
Pages active:                            393216.
Pages inactive:                          131072.
Pages speculative:                         6553.
Pages throttled:                              0.
Pages wired down:                        154321.
Pages purgeable:                           4321.
"Translation faults":                1234567890.
Pages copy-on-write:                   12345678.
File-backed pages:                       200000.
Anonymous pages:                         330841.
Pages stored in compressor:              500000.
Pages occupied by compressor:            180000.
Swapins:                                     12.
Swapouts:                                    34.
"""
STATISTICS = (
    '"In use system memory (driver)"=0,"Alloc system memory"=5062574080,"Tiler Utilization %"=9,"recoveryCount"=0,'
    '"lastRecoveryTime"=0,"Renderer Utilization %"=10,"TiledSceneBytes"=3014656,"Device Utilization %"=11,'
    '"SplitSceneCount"=0,"Allocated PB Size"=65929216,"In use system memory"=1263484928'
)
IOREG = f"""\
+-o AGXAcceleratorG14X  <class AGXAcceleratorG14X, id 0x1000004a8, registered, matched, active, busy 0 (0 ms)>
    {{
      "IOClass" = "AGXAcceleratorG14X"
      "PerformanceStatistics" = {{{STATISTICS}}}
      "model" = "Apple M2 Max"
      "gpu-core-count" = 30
    }}
"""
IOREG_INTEL = """\
+-o IntelAccelerator  <class IntelAccelerator, id 0x100000404, registered, matched, active, busy 0 (2 ms), retain 128>
    {
      "PerformanceStatistics" = {"Device Utilization %"=3,"vramUsedBytes"=0,"Renderer Utilization %"=2}
    }

+-o AMDRadeonX6000_AMDNavi14GraphicsAccelerator  <class AMDRadeonX6000_AMDNavi14GraphicsAccelerator, id 0x1000004d1>
    {
      "PerformanceStatistics" = {"GPU Activity(%)"=42,"vramUsedBytes"=412307456}
    }
"""
PS = """\
    0     0      0   0:00.00  61:02.75
    1     0  21456   1:23.45   3:33.33
  501     1 104857   0:01.00   0:01.50
  502   501  51200   0:10.00   0:12.00
  503   502   1024   0:00.10   0:00.20
  600     1   9999  12:00.00  13:00.00
"""
PS_LATER = PS.replace("0:10.00   0:12.00", "0:11.00   0:14.00") + "  700   503    100   0:00.50   0:01.00\n"


class Library:
    """The system's library of a Mac, on which this user has two processes."""

    footprints: ClassVar = {501: 300 * MIB, 502: 200 * MIB}

    def proc_pid_rusage(self, process: int, version: int, usage: Any) -> int:
        if process not in self.footprints:
            return -1
        fields = [0] * 35
        fields[7] = self.footprints[process]  # after seven others
        struct.pack_into("=16s35Q", usage, 0, b"\xff" * 16, *fields)
        return 0


def mac(settings: str = SYSCTL["macOS 26"], ps: tuple[str, ...] = (PS, PS_LATER), **others: str) -> MacMachineProbe:
    """Return a probe of a Mac, two seconds of which lie between readings."""
    listings, moments = iter(ps), iter(range(0, 100, 2))
    answers = {"sysctl": settings, "vm_stat": VM_STAT, "ioreg": IOREG, **others}

    def run(command: tuple[str, ...]) -> str:
        name = os.path.basename(command[0])
        return next(listings, "") if name == "ps" else answers[name]

    return MacMachineProbe(run, Library, lambda: float(next(moments)), cores=4)


def linux(root: Path) -> ProcMachineProbe:
    """Return a probe of files, two seconds of which lie between readings."""
    proc = root / "proc"
    (proc / "pressure").mkdir(parents=True)
    (proc / "meminfo").write_text(
        f"MemTotal: {16 * GIB // 1024} kB\nMemFree: {4 * GIB // 1024} kB\nMemAvailable: {6 * GIB // 1024} kB\n"
        f"SwapTotal: {2 * GIB // 1024} kB\nSwapFree: {GIB // 1024} kB\n"
    )
    (proc / "pressure" / "memory").write_text("some avg10=1.25 avg60=0.10 avg300=0.00 total=12\nfull avg10=0.00\n")
    (proc / "loadavg").write_text("0.52 0.58 0.59 2/1234 5678\n")
    (proc / "stat").write_text("cpu  100 0 100 800 0 0 0 0 0 0\ncpu0 100 0 100 800 0 0 0 0 0 0\n")
    for process, parent, ticks in ((501, 1, 100), (502, 501, 200), (503, 502, 0), (600, 1, 0)):
        write_process(root, process, parent, ticks)
    moments = iter(range(0, 100, 2))
    return ProcMachineProbe(root=str(root), now=lambda: float(next(moments)))


def write_process(root: Path, process: int, parent: int, ticks: int) -> None:
    """Write what Linux says of a process, whose name has spaces and a bracket."""
    folder = root / "proc" / str(process)
    folder.mkdir(exist_ok=True)
    fields = ["S", parent, 1, 1, 0, -1, 4194304, 0, 0, 0, 0, ticks, 0, 0, 0, 20, 0, 1, 0, 0, 2**30, 25600]
    (folder / "stat").write_text(f"{process} (a (b) c) {' '.join(map(str, fields))} 18446744073709551615\n")
    (folder / "smaps_rollup").write_text("55f1-7fff ---p 00000000 00:00 0 [rollup]\nRss: 102400 kB\nPss: 51200 kB\n")


@pytest.fixture(params=["this machine", "proc", "mac", "in_memory"])
def probe(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[MachineProbe, int]]:
    """A probe and the id of a process that runs."""
    if request.param == "this machine":
        kind = MacMachineProbe if sys.platform == "darwin" else ProcMachineProbe
        yield kind(), os.getpid()
    elif request.param == "in_memory":
        double = InMemoryMachineProbe(MachineReading(total_bytes=16 * GIB, available_bytes=8 * GIB))
        double.trees[501] = ProcessTree(3, 500 * MIB, MemoryKind.RESIDENT)
        yield double, 501
    else:
        yield (mac() if request.param == "mac" else linux(tmp_path)), 501


class TestMachineProbe:
    def test_figures_are_in_their_ranges(self, probe: tuple[MachineProbe, int]) -> None:
        machine, _ = probe[0].read([])
        assert machine.total_bytes is not None
        assert machine.available_bytes is not None
        assert 0 < machine.available_bytes <= machine.total_bytes
        assert machine.used_bytes == machine.total_bytes - machine.available_bytes

    def test_a_process_is_read_with_its_descendants_and_one_that_does_not_run_is_none(
        self, probe: tuple[MachineProbe, int]
    ) -> None:
        _, (tree, nothing) = probe[0].read([probe[1], 2**22 - 1])
        assert tree is not None
        assert tree.processes >= 1
        assert tree.memory_bytes > 10**6
        assert nothing is None

    def test_the_first_reading_has_no_shares_of_the_processor(self, probe: tuple[MachineProbe, int]) -> None:
        machine, (tree,) = probe[0].read([probe[1]])
        assert (machine.cpu, tree and tree.cpu_percent) == (None, None)


@pytest.mark.skipif(sys.platform not in {"linux", "darwin"}, reason="another system is not read")
def test_the_memory_of_a_child_of_this_process_counts() -> None:
    probe = MacMachineProbe() if sys.platform == "darwin" else ProcMachineProbe()
    program = "import sys; block = b'\\1' * 2**27; print(); sys.stdin.read()"
    child = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with child:
        assert child.stdout is not None
        child.stdout.readline()
        _, (tree, whole) = probe.read([child.pid, os.getpid()])
        child.communicate()
    assert tree is not None
    assert whole is not None
    assert (tree.processes, whole.processes >= 2) == (1, True)
    assert 2**27 < tree.memory_bytes < 2**28
    assert whole.memory_bytes > tree.memory_bytes


class TestLinux:
    def test_memory_swap_load_and_waiting_are_read(self, tmp_path: Path) -> None:
        machine, _ = linux(tmp_path).read([])
        assert (machine.total_bytes, machine.available_bytes, machine.free_bytes) == (16 * GIB, 6 * GIB, 4 * GIB)
        assert (machine.swap_total_bytes, machine.swap_used_bytes) == (2 * GIB, GIB)
        assert (machine.stalled_percent, machine.load) == (1.25, (0.52, 0.58, 0.59))
        assert (machine.pressure, machine.gpu) == (None, None)

    @pytest.mark.parametrize(
        ("group", "folder", "limit", "used"),
        [
            ("0::/work", "sys/fs/cgroup/work", "memory.max", "memory.current"),
            ("5:memory:/work", "sys/fs/cgroup/memory/work", "memory.limit_in_bytes", "memory.usage_in_bytes"),
        ],
    )
    def test_a_limit_of_a_container_counts(
        self, tmp_path: Path, group: str, folder: str, limit: str, used: str
    ) -> None:
        probe = linux(tmp_path)
        (tmp_path / "proc" / "self").mkdir()
        (tmp_path / "proc" / "self" / "cgroup").write_text(f"{group}\n")
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / limit).write_text(f"{4 * GIB}\n")
        (tmp_path / folder / used).write_text(f"{3 * GIB}\n")
        machine, _ = probe.read([])
        assert (machine.total_bytes, machine.available_bytes) == (4 * GIB, GIB)

    def test_shares_are_those_of_the_time_between_two_readings(self, tmp_path: Path) -> None:
        probe = linux(tmp_path)
        probe.read([501])
        (tmp_path / "proc" / "stat").write_text("cpu  130 10 110 840 5 2 3 0 0 0\n")
        write_process(tmp_path, 502, 501, 300)
        machine, (tree,) = probe.read([501])
        assert machine.cpu == CpuShares(40.0, 15.0, 45.0)
        ticks = os.sysconf("SC_CLK_TCK")
        assert tree is not None
        assert tree.cpu_percent == pytest.approx(100 * 100 / ticks / 2)

    def test_shared_pages_are_divided_and_only_descendants_count(self, tmp_path: Path) -> None:
        _, (tree, other) = linux(tmp_path).read([501, 600])
        assert tree == ProcessTree(3, 3 * 50 * MIB, MemoryKind.PROPORTIONAL)
        assert other is not None
        assert other.processes == 1

    def test_where_the_division_may_not_be_read_resident_memory_counts(self, tmp_path: Path) -> None:
        probe = linux(tmp_path)
        for file in tmp_path.glob("proc/*/smaps_rollup"):
            file.unlink()
        _, (tree,) = probe.read([501])
        page = os.sysconf("SC_PAGE_SIZE")
        assert tree == ProcessTree(3, 3 * 25600 * page, MemoryKind.RESIDENT)

    def test_a_machine_without_these_files_says_nothing(self, tmp_path: Path) -> None:
        assert ProcMachineProbe(root=str(tmp_path)).read([1]) == (MachineReading(), (None,))

    @pytest.mark.parametrize(
        ("printed", "read"),
        [
            ("35, 1024, 143771\n", GpuReading(35.0, used_bytes=1024 * MIB, total_bytes=143771 * MIB)),
            ("10, 100, 1000\n30, 300, 1000\n", GpuReading(20.0, used_bytes=400 * MIB, total_bytes=2000 * MIB)),
            ("[N/A], [N/A], [N/A]\n", GpuReading()),
            ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n", None),
            ("", None),
        ],
    )
    def test_gpus_of_nvidia_are_read_together(self, printed: str, read: GpuReading | None) -> None:
        assert nvidia_gpus(printed) == read

    def test_a_gpu_is_asked_only_where_there_is_one(self, tmp_path: Path) -> None:
        asked: list[tuple[str, ...]] = []

        def run(command: tuple[str, ...]) -> str:
            asked.append(command)
            return "35, 1024, 143771\n"

        assert ProcMachineProbe(lambda: False, run, str(tmp_path)).read([])[0].gpu is None
        assert asked == []
        gpu = ProcMachineProbe(lambda: True, run, str(tmp_path)).read([])[0].gpu
        assert gpu is not None
        assert (gpu.busy_percent, len(asked)) == (35.0, 1)

    def test_what_asks_a_gpu_is_found_in_the_folders_of_the_user(self, tmp_path: Path) -> None:
        program = tmp_path / "nvidia-smi"
        program.write_text("#!/bin/sh\necho 35, 1024, 143771\n")
        program.chmod(0o755)
        machine, _ = system_machine_probe("linux", lambda: True, str(tmp_path)).read([])
        assert machine.gpu == GpuReading(35.0, used_bytes=1024 * MIB, total_bytes=143771 * MIB)

    def test_other_forms_are_not_numbers(self) -> None:
        assert (stalled(""), stalled("full avg10=1.00"), three_numbers("1.5 2.5")) == (None, None, None)


class TestMac:
    @pytest.mark.parametrize(
        ("version", "pressure", "scan", "swap"),
        [
            ("macOS 13", 2, 0, (2 * GIB, round(1024.25 * MIB))),
            ("macOS 15", 4, 1048, (2 * GIB, GIB)),
            ("macOS 26", 1, 0, (0, 0)),
        ],
    )
    def test_settings_of_every_version_are_read(
        self, version: str, pressure: int, scan: int, swap: tuple[int, int]
    ) -> None:
        machine, _ = mac(SYSCTL[version]).read([])
        assert (machine.total_bytes, machine.pressure, machine.scan_pressure) == (16 * GIB, pressure, scan)
        assert (machine.swap_total_bytes, machine.swap_used_bytes) == swap
        assert machine.load == (1.93, 3.04, 6.9)
        assert machine.stalled_percent is None

    def test_free_and_available_pages_are_read(self) -> None:
        machine, _ = mac().read([])
        assert machine.free_bytes == GIB
        assert machine.available_bytes == (65536 + 131072 + 6553) * 16384

    def test_the_gpu_is_read_and_its_memory_is_the_machine_s(self) -> None:
        machine, _ = mac().read([])
        assert machine.gpu == GpuReading(11, 10, 9, used_bytes=1263484928)
        assert accelerators(IOREG_INTEL) == GpuReading(42)
        assert accelerators("") is None
        assert accelerators('"PerformanceStatistics" = {}') == GpuReading()

    def test_a_tree_has_the_footprint_of_its_processes_and_their_time(self) -> None:
        probe = mac()
        _, (first,) = probe.read([501])
        assert first == ProcessTree(3, 500 * MIB + 1024 * 1024, MemoryKind.FOOTPRINT)
        machine, (tree, other) = probe.read([501, 600])
        assert tree is not None
        assert (tree.processes, tree.cpu_percent) == (4, pytest.approx(100 * 3 / 2))
        assert other == ProcessTree(1, 9999 * 1024, MemoryKind.RESIDENT, 0.0)
        assert machine.cpu == CpuShares(pytest.approx(100 * 1.5 / 8), pytest.approx(100 * 1.5 / 8), pytest.approx(62.5))

    def test_times_of_hours_and_days_are_read_and_other_lines_are_not(self) -> None:
        found = ps_processes("  7 1 10 123:45.67 2-03:04:05.50\n  PID PPID RSS\n\n 8 1 20 0,50 0:01,00\n 9 1 30\n")
        assert found[7].user_seconds == pytest.approx(123 * 60 + 45.67)
        assert found[7].user_seconds + found[7].system_seconds == pytest.approx(2 * 86400 + 3 * 3600 + 4 * 60 + 5.5)
        assert (found[8].user_seconds, found[8].system_seconds) == (0.5, 0.5)
        assert (found[9].resident_bytes, found[9].user_seconds, len(found)) == (30 * 1024, 0.0, 3)

    def test_a_number_that_another_process_got_begins_anew(self) -> None:
        probe = mac(ps=("1 0 10 0:10.00 0:20.00\n", "1 0 10 0:01.00 0:02.00\n"))
        probe.read([1])
        _, (tree,) = probe.read([1])
        assert tree is not None
        assert tree.cpu_percent == pytest.approx(100.0)

    def test_commands_that_cannot_be_run_leave_everything_open(self) -> None:
        machine, trees = MacMachineProbe(lambda command: "", Library).read([501])
        assert (machine, trees) == (MachineReading(), (None,))

    def test_processes_are_asked_for_a_column_a_flag_since_a_title_may_have_commas(self) -> None:
        asked: list[tuple[str, ...]] = []

        def run(command: tuple[str, ...]) -> str:
            asked.append(command)
            return ""

        MacMachineProbe(run, Library).read([])
        (command,) = (each for each in asked if each[0] == "/bin/ps")
        assert command[1:] == ("-A", "-o", "pid=", "-o", "ppid=", "-o", "rss=", "-o", "utime=", "-o", "time=")

    @pytest.mark.parametrize("text", ["", "total = 1.00M", "total = x  used = y", "used = 1.00M"])
    def test_swap_of_another_form_is_unknown(self, text: str) -> None:
        assert swap_usage(text) is None

    def test_the_line_of_a_sample_has_the_names_and_units_of_mlx_knife_s_monitor(self) -> None:
        probe = mac(SYSCTL["macOS 15"])
        probe.read([501])
        machine, (tree,) = probe.read([501])
        assert sample_json(MachineSample(1790801163.4914, 0.33, machine, tree)) == {
            **{"ram_free_gb": 1.0, "ram_used_gb": 12.9, "ram_percent": 80.6, "swap_used_mb": 1024.0},
            **{"swap_percent": 50.0, "memory_pressure": 4, "vm_pressure": 1048, "load_1": 1.93, "load_5": 3.04},
            **{"load_15": 6.9, "cpu_user": 18.8, "cpu_sys": 18.8, "cpu_idle": 62.5, "gpu_active": True},
            **{"gpu_device_util": 11, "gpu_renderer_util": 10, "gpu_tiler_util": 9, "ts": 1790801163.491},
            **{"elapsed_s": 0.33, "ram_total_bytes": 16 * GIB, "ram_available_bytes": 203161 * 16384},
            **{"swap_total_bytes": 2 * GIB, "gpu_used_bytes": 1263484928, "servers": []},
            "command": {
                "processes": 4,
                "memory_bytes": 500 * MIB + 1124 * 1024,
                "memory_kind": "footprint",
                "cpu_percent": 150.0,
            },
        }
