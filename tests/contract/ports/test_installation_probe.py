"""The contract of the installation probe, held by the adapter and the double; and what only the adapter can see."""

import datetime
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from doubles.installation_probe import InMemoryInstallationProbe

from mlxk.adapters.installation import SystemInstallationProbe
from mlxk.application.ports.installation import InstallationProbe
from mlxk.domain.diagnosis import FolderFacts, PlatformFacts, PortFacts


def probe_of(search_path: str, system: str = sys.platform, said: str = "", **options: Any) -> SystemInstallationProbe:
    """Return the adapter, on a system whose commands say this, without a GPU."""
    return SystemInstallationProbe(search_path, lambda _: said, lambda: False, system, **options)


@pytest.fixture(params=["system", "in_memory"])
def probe(request: pytest.FixtureRequest, tmp_path: Path) -> InstallationProbe:
    """Probe a machine with a folder, a file and a link to nowhere."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("secret")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    (tmp_path / "file").chmod(0o644)
    if request.param == "system":
        return probe_of(os.environ["PATH"])
    double = InMemoryInstallationProbe(PlatformFacts("linux", "Linux 6", "x86_64", (3, 11, 0)))
    for name, facts in (
        ("file", {"exists": True, "is_directory": False, "writable": False}),
        ("link", {"exists": True, "leads_nowhere": True}),
        ("link/new", {"exists": False, "leads_nowhere": True}),
        ("new", {"exists": False}),
    ):
        double.folders[str(tmp_path / name)] = FolderFacts(str(tmp_path / name), **facts)
    double.exposed_files.add(str(tmp_path / "file"))
    return double


def test_the_platform_is_known(probe: InstallationProbe) -> None:
    facts = probe.platform()
    assert facts.system in {"linux", "darwin"}
    assert facts.release
    assert facts.python >= (3, 11)


def test_folders_are_told_apart(probe: InstallationProbe, tmp_path: Path) -> None:
    here, new, file = (probe.folder(str(tmp_path / name)) for name in ("folder", "new", "file"))
    assert (here.exists, here.is_directory, here.writable, here.leads_nowhere) == (True, True, True, False)
    assert (new.exists, new.is_directory, new.writable) == (False, True, True)
    assert (file.exists, file.is_directory) == (True, False)
    for name in ("link", "link/new"):
        assert probe.folder(str(tmp_path / name)).leads_nowhere, name


def test_a_file_that_others_may_read_is_exposed(probe: InstallationProbe, tmp_path: Path) -> None:
    assert probe.exposed(str(tmp_path / "file"))
    assert not probe.exposed(str(tmp_path / "none"))


def test_a_free_port_is_free(probe: InstallationProbe) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]
    assert probe.port(number) == PortFacts(number, taken=False)


def test_the_program_was_installed_before_now(probe: InstallationProbe) -> None:
    assert probe.installed_at() < datetime.datetime.now(datetime.UTC)
    assert probe.own_program()


def test_packages_are_sorted(probe: InstallationProbe) -> None:
    names = [each.name for each in probe.packages()]
    assert names == sorted(names)


@pytest.mark.skipif(not os.path.exists("/proc/net/tcp"), reason="the holder is read from /proc")
def test_the_holder_of_a_port_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        facts = probe_of("").port(taken.getsockname()[1])
    assert (facts.taken, f"(process {os.getpid()})" in str(facts.holder)) == (True, True)


def test_the_holder_of_a_port_is_named_on_macos() -> None:
    """Replays the output of lsof with fields, as its manual describes it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        probe = probe_of("", "darwin", "p512\ncControlCe\nf10\n")
        assert probe.port(taken.getsockname()[1]).holder == "ControlCe (process 512)"


def test_macos_says_whether_it_translates_and_what_the_gpu_may_use() -> None:
    said = "sysctl.proc_translated: 1\niogpu.wired_limit_mb: 24576\n"
    probe = probe_of("", "darwin", said)
    assert probe.platform().translated
    assert not probe_of("", "darwin").platform().translated


def distribution(folder: Path, name: str, version: str) -> None:
    """Install a package that has nothing but metadata."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_a_limit_of_the_process_is_that_of_its_shell_and_none_is_none() -> None:
    asked = (
        "from mlxk.adapters.installation import SystemInstallationProbe as Probe\n"
        "facts = Probe('', lambda _: '', lambda: False, 'linux').platform()\n"
        "print(facts.descriptors, facts.address_space_bytes)"
    )
    command = ["/bin/sh", "-c", 'ulimit -n 300; exec "$0" -c "$1"', sys.executable, asked]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "300 None\n"


def test_packages_are_missing_untested_and_installed_twice(tmp_path: Path) -> None:
    distribution(tmp_path / "one", "mlx-lm", "0.1.0")
    distribution(tmp_path / "one", "attrs", "99.0")
    distribution(tmp_path / "two", "attrs", "99.0")
    places = [str(tmp_path / "one"), str(tmp_path / "two")]
    found = {each.name: each for each in probe_of("", packages=places).packages()}
    assert (found["mlx-lm"].version, found["mlx-lm"].tested) == ("0.1.0", False)
    assert (found["attrs"].tested, found["attrs"].places) == (True, tuple(places))
    assert found["falcon"].version is None
    assert "mcp" not in found  # which only an extra needs


def test_every_program_of_the_name_is_found_once(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "a/mlxk").write_text("#!/bin/sh\n")
    (tmp_path / "a/mlxk").chmod(0o755)
    (tmp_path / "b/mlxk").symlink_to(tmp_path / "a/mlxk")
    path = os.pathsep.join([str(tmp_path / "b"), "", str(tmp_path / "a"), str(tmp_path / "none")])
    assert probe_of(path).programs() == (str(tmp_path / "a/mlxk"),)


@pytest.mark.mlx
def test_libraries_say_what_they_compute_on() -> None:
    facts = probe_of("", modules=("mlx.core", "no_such_module")).computing()
    assert facts.device in {"cpu", "gpu"}
    assert [name for name, _ in facts.failures] == ["no_such_module"]


def test_a_crash_of_an_import_is_a_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "crashing.py").write_text("import os\nos.kill(os.getpid(), 11)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    facts = probe_of("", modules=("crashing",)).computing()
    assert (facts.device, facts.failures) == (None, (("mlx.core", "the process ended with status -11"),))
