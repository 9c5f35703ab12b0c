"""Reading memory: recorded machines, and this one."""

import os
import sys
from pathlib import Path

import pytest

from mlxk.adapters.system import ProcMemoryProbe, SysctlMemoryProbe, run_quietly, system_memory_probe
from mlxk.domain.models.footprint import MemoryReading

MIB, GIB = 1024**2, 1024**3

MEMINFO = f"""\
MemTotal:       {64 * GIB // 1024} kB
MemFree:         2000000 kB
MemAvailable:   {48 * GIB // 1024} kB
Buffers:          500000 kB
Cached:         40000000 kB
HugePages_Total:       0
"""


def machine(root: Path, meminfo: str = MEMINFO, **files: str) -> ProcMemoryProbe:
    """A file system with the given files; in their names ``__`` stands for a slash."""
    for name, content in {"proc__meminfo": meminfo, **files}.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return ProcMemoryProbe(str(root))


def test_a_machine_without_control_groups_has_all_its_memory(tmp_path: Path) -> None:
    assert machine(tmp_path).read() == MemoryReading(64 * GIB, 48 * GIB)


def test_an_old_kernel_counts_what_it_could_give_up(tmp_path: Path) -> None:
    meminfo = "MemTotal: 8000 kB\nMemFree: 1000 kB\nBuffers: 200 kB\nCached: 3000 kB\n"
    assert machine(tmp_path, meminfo).read() == MemoryReading(8000 * 1024, 4200 * 1024)


def test_the_lowest_limit_of_all_parent_groups_holds(tmp_path: Path) -> None:
    probe = machine(
        tmp_path,
        proc__self__cgroup="0::/user.slice/app.scope\n",
        **{
            "sys__fs__cgroup__user.slice__memory.max": f"{8 * GIB}\n",
            "sys__fs__cgroup__user.slice__memory.current": f"{5 * GIB}\n",
            "sys__fs__cgroup__user.slice__memory.stat": f"anon 1\ninactive_file {1 * GIB}\nactive_file 7\n",
            "sys__fs__cgroup__user.slice__app.scope__memory.max": "max\n",
        },
    )
    assert probe.read() == MemoryReading(8 * GIB, 4 * GIB)


def test_a_container_that_sees_its_own_root_only_is_limited_by_it(tmp_path: Path) -> None:
    probe = machine(
        tmp_path,
        proc__self__cgroup="0::/docker/0123456789ab\n",
        **{"sys__fs__cgroup__memory.max": f"{4 * GIB}\n", "sys__fs__cgroup__memory.current": f"{1 * GIB}\n"},
    )
    assert probe.read() == MemoryReading(4 * GIB, 3 * GIB)


def test_the_first_generation_of_control_groups_is_read_too(tmp_path: Path) -> None:
    group = "sys__fs__cgroup__memory__docker__ab__memory"
    probe = machine(
        tmp_path,
        proc__self__cgroup="12:cpu,cpuacct:/docker/ab\n4:memory:/docker/ab\n1:name=systemd:/docker/ab\n",
        **{
            f"{group}.limit_in_bytes": f"{2 * GIB}\n",
            f"{group}.usage_in_bytes": f"{1 * GIB}\n",
            f"{group}.stat": f"cache 1\ntotal_inactive_file {512 * MIB}\n",
            "sys__fs__cgroup__memory__memory.limit_in_bytes": "9223372036854771712\n",
        },
    )
    assert probe.read() == MemoryReading(2 * GIB, 1536 * MIB)


def test_a_group_over_its_limit_has_nothing_available(tmp_path: Path) -> None:
    probe = machine(
        tmp_path,
        proc__self__cgroup="0::/\n",
        **{"sys__fs__cgroup__memory.max": f"{1 * GIB}", "sys__fs__cgroup__memory.current": f"{2 * GIB}"},
    )
    assert probe.read() == MemoryReading(1 * GIB, 0)


@pytest.mark.parametrize("cgroup", ["", "nonsense", "0::", "0::/../../..", ":::", "4:memory"])
def test_a_control_group_that_cannot_be_understood_limits_nothing(tmp_path: Path, cgroup: str) -> None:
    assert machine(tmp_path, proc__self__cgroup=cgroup).read() == MemoryReading(64 * GIB, 48 * GIB)


@pytest.mark.parametrize("meminfo", ["", "nonsense", "MemTotal: kB", "MemTotal: 0 kB", "MemTotal: -1 kB"])
def test_a_machine_that_reports_no_total_has_no_reading(tmp_path: Path, meminfo: str) -> None:
    assert machine(tmp_path, meminfo).read() is None


VM_STAT = """\
Mach Virtual Memory Statistics: (page size of 16384 bytes)
Pages free:                               65536.
Pages active:                            400000.
Pages inactive:                          131072.
Pages speculative:                         1024.
Pages throttled:                              0.
Pages wired down:                        120000.
Pages purgeable:                           9000.
"Translation faults":                1234567890.
Pages stored in compressor:              200000.
"""


def mac(sysctl: str, vm_stat: str = VM_STAT) -> SysctlMemoryProbe:
    return SysctlMemoryProbe(lambda command: sysctl if command[0].endswith("sysctl") else vm_stat)


@pytest.mark.parametrize(
    ("total", "wired_limit_mb", "limit"),
    [
        (16 * GIB, 0, 16 * GIB * 2 // 3),
        (64 * GIB, 0, 48 * GIB),
        (64 * GIB, 57344, 56 * GIB),
    ],
)
def test_a_mac_tells_what_its_accelerator_may_take(total: int, wired_limit_mb: int, limit: int) -> None:
    reading = mac(f"hw.memsize: {total}\niogpu.wired_limit_mb: {wired_limit_mb}\n").read()
    assert reading == MemoryReading(total, (65536 + 131072 + 1024) * 16384, limit)


def test_an_older_mac_without_a_wired_limit_is_read(tmp_path: Path) -> None:
    reading = mac(f"hw.memsize: {8 * GIB}\n").read()
    assert reading is not None
    assert reading.accelerator_limit == 8 * GIB * 2 // 3


def test_a_mac_whose_statistics_cannot_be_read_has_nothing_available() -> None:
    reading = mac(f"hw.memsize: {64 * GIB}\n", vm_stat="").read()
    assert reading == MemoryReading(64 * GIB, 0, 48 * GIB)


@pytest.mark.parametrize("sysctl", ["", "hw.memsize: many\n", "sysctl: unknown oid"])
def test_a_mac_that_does_not_tell_has_no_reading(sysctl: str) -> None:
    assert mac(sysctl).read() is None


def test_a_command_is_run_and_its_output_returned() -> None:
    assert run_quietly(("/bin/sh", "-c", "echo out; echo err >&2")) == "out\n"


def test_a_command_that_does_not_end_is_killed_and_prints_nothing(tmp_path: Path) -> None:
    script = f"echo $$ > '{tmp_path}/process'; echo out; exec sleep 1000"
    assert run_quietly(("/bin/sh", "-c", script), seconds=1.0) == ""
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "process").read_text()), 0)


def test_a_command_is_found_in_folders_with_an_absolute_path_and_in_those_of_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        program = tmp_path / folder / f"mlxk-test-{folder}"
        program.write_text("#!/bin/sh\necho found\n")
        program.chmod(0o755)
    path = os.pathsep.join(("here", "", str(tmp_path / "there")))
    assert run_quietly(("mlxk-test-there",), path) == "found\n"
    assert run_quietly(("mlxk-test-here",), path) == ""
    assert run_quietly(("sh", "-c", "echo found"), path) == "found\n"


def test_a_command_that_does_not_exist_prints_nothing() -> None:
    assert run_quietly(("/no/such/program",)) == ""


@pytest.mark.parametrize(("platform", "kind"), [("darwin", SysctlMemoryProbe), ("linux", ProcMemoryProbe)])
def test_each_platform_has_its_probe(platform: str, kind: type) -> None:
    assert isinstance(system_memory_probe(platform), kind)


def test_this_machine_has_a_plausible_reading() -> None:
    reading = system_memory_probe(sys.platform).read()
    assert reading is not None
    assert 0 < reading.available <= reading.total <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
