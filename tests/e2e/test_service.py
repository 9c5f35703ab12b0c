"""``mlxk service``: the files of systemd and launchd, as the programs that read them take them."""

import json
import os
import plistlib
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e
Program = Callable[..., "subprocess.CompletedProcess[str]"]
FLAGS = ["--", "--port", "9000", "--model", "demo"]
SECRETS = {"MLXK2_API_KEY": "sekret-1", "HF_TOKEN": "hf_sekret2"}


@pytest.fixture
def home(program_environment: dict[str, str]) -> Path:
    """A home whose name needs every kind of quoting."""
    home = Path(program_environment["HOME"]) / 'a $NOBODY 100%s "b" \\n'
    home.mkdir()
    program_environment.update({"HOME": str(home), "HF_HOME": str(home / "hf")})
    return home


def unit_of(home: Path) -> Path:
    """Return the path of the unit."""
    return home / ".config" / "systemd" / "user" / "mlxk.service"


def files_below(folder: Path) -> set[Path]:
    """Return all files below a folder."""
    return {path for path in folder.rglob("*") if not path.is_dir()}


def test_the_unit_is_what_systemd_takes_and_holds_no_secret(mlxk_here: Program, home: Path, tmp_path: Path) -> None:
    done = mlxk_here("service", "install", "--manager", "systemd", *FLAGS, **SECRETS)
    assert done.returncode == 0, done
    assert "It is not started yet" in done.stdout
    assert "systemctl --user restart mlxk.service" in done.stdout
    unit = unit_of(home)
    text = unit.read_text()
    assert "sekret" not in text
    assert '"serve" "--port" "9000" "--model" "demo"' in text
    assert "EnvironmentFile=-" in text
    assert stat.S_IMODE(unit.stat().st_mode) == 0o600
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd is not installed")
    environment = {"XDG_RUNTIME_DIR": str(tmp_path), "HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    checked = subprocess.run(
        ["systemd-analyze", "verify", "--user", str(unit)], env=environment, capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stderr) == (0, "")


def test_the_property_list_is_what_launchd_takes(mlxk: Program, home: Path) -> None:
    programs = {"PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"}
    assert mlxk("service", "install", "--manager", "launchd", *FLAGS, **SECRETS, **programs).returncode == 0
    path = home / "Library" / "LaunchAgents" / "dev.mlxk.server.plist"
    content = path.read_bytes()
    assert b"sekret" not in content
    known = plistlib.loads(content)
    assert known["Label"] == "dev.mlxk.server"
    command = [sys.executable, "-P", "-m", "mlxk", "serve", "--port", "9000", "--model", "demo"]
    assert known["ProgramArguments"] == command
    hub = home / "hf"
    variables = known["EnvironmentVariables"]
    assert os.path.dirname(sys.executable) in variables.pop("PATH").split(":")
    assert variables == {
        "HF_HUB_CACHE": str(hub / "hub"),
        "HF_TOKEN_PATH": str(hub / "token"),
        "MLXK2_BLAS": "off",
        "MLX_DISABLE_COMPILE": "1",
    }
    log = Path(known["StandardErrorPath"])
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    assert known["RunAtLoad"] is True
    assert mlxk("service", "uninstall", "--manager", "launchd").returncode == 0
    assert not path.exists()
    assert not log.exists()


def test_uninstall_removes_what_install_wrote_and_nothing_else(mlxk_here: Program, home: Path) -> None:
    other = unit_of(home).with_name("other.service")
    other.parent.mkdir(parents=True)
    other.write_text("[Unit]\n")
    before = files_below(home)
    assert mlxk_here("service", "install", "--manager", "systemd").returncode == 0
    assert "installed" in mlxk_here("service", "status", "--manager", "systemd").stdout
    done = mlxk_here("service", "uninstall", "--manager", "systemd")
    assert "systemctl --user disable --now mlxk.service" in done.stdout
    assert files_below(home) == before
    again = mlxk_here("service", "uninstall", "--manager", "systemd", "--json")
    assert json.loads(again.stdout)["data"]["state"] == "absent"


@pytest.mark.parametrize("manager", ["systemd", "launchd"])
def test_a_file_of_somebody_else_is_left_alone(mlxk_here: Program, home: Path, manager: str) -> None:
    paths = {"systemd": unit_of(home), "launchd": home / "Library" / "LaunchAgents" / "dev.mlxk.server.plist"}
    path = paths[manager]
    path.parent.mkdir(parents=True)
    path.write_text("[Unit]\nDescription=mine\n")
    for action in ("install", "uninstall"):
        done = mlxk_here("service", action, "--manager", manager)
        assert (done.returncode, "mlxk" in done.stderr) == (1, True), done
    assert path.read_text() == "[Unit]\nDescription=mine\n"
    status = json.loads(mlxk_here("service", "status", "--manager", manager, "--json").stdout)
    assert status["data"]["state"] == "foreign"


def test_start_and_stop_run_the_commands_that_are_printed(
    mlxk_here: Program, program_environment: dict[str, str], tmp_path: Path
) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "systemctl").write_text(f'#!/bin/sh\necho "systemctl $*" >> {tmp_path}/calls\n')
    (programs / "systemctl").chmod(0o755)
    path = f"{programs}:{program_environment['PATH']}"
    shown = mlxk_here("service", "install", "--manager", "systemd", "--start", "--json", PATH=path)
    data = json.loads(shown.stdout)["data"]
    assert data["started"] is True
    assert mlxk_here("service", "uninstall", "--manager", "systemd", "--stop", PATH=path).returncode == 0
    assert (tmp_path / "calls").read_text().splitlines() == [*data["start_commands"], *data["stop_commands"]]
    (programs / "systemctl").write_text("#!/bin/sh\necho no bus >&2; exit 1\n")
    failed = mlxk_here("service", "install", "--manager", "systemd", "--start", PATH=path)
    assert (failed.returncode, "no bus" in failed.stderr) == (1, True)


def test_flags_that_serve_does_not_know_are_refused_before_anything_is_written(mlxk_here: Program, home: Path) -> None:
    for flags, named in (
        (["--prot", "1"], "--port"),
        (["--background"], "--background"),
        (["--chunk", "9"], "--chunk"),
    ):
        done = mlxk_here("service", "install", "--manager", "systemd", "--", *flags)
        assert (done.returncode > 0, named in done.stderr) == (True, True), done
    assert not unit_of(home).exists()
