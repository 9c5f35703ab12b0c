"""``mlxk service``: the service is the server that the shell would start, and its files are nobody else's."""

import json
import operator
import os
import plistlib
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from mlxk.entrypoints.setting_kinds import SWITCH
from mlxk.entrypoints.setting_table import TABLES
from mlxk.entrypoints.settings import read_settings

pytestmark = pytest.mark.e2e
Program = Callable[..., "subprocess.CompletedProcess[str]"]
VALUES = {
    "log_level": "debug",
    "cpu_dtype": "model",
    "blas": "off",
    "workspace_home": "/spaces",
    "cache": '/cache/100% "a" $HOME\\n',
    "endpoint": "http://localhost:9",
    "token": "hf_sekret2",
    "token_file": "/token",
    "host": "127.0.0.2",
    "port": "9123",
    "model": "demo",
    "max_tokens": "77",
    "api_key": "sekret-1",
    "chunk": "3",
    "metadata_timeout": "5",
    "timeout": "6",
}
SETTINGS = [each for table in ("", "hub", "serve") for each in TABLES[table] if each.variables]
MANAGERS = ("systemd", "launchd")
XDG = {"XDG_CONFIG_HOME": ".config", "XDG_STATE_HOME": ".local/state"}


def shell() -> dict[str, str]:
    """Return a value other than the default for every variable."""
    switches = {each.key: str(int((not each.default) is not each.inverted)) for each in SETTINGS if each.kind is SWITCH}
    return {each.variables[0]: (VALUES | switches)[each.key] for each in SETTINGS} | {"MLXK2_RELOAD": "1", "MLX_X": "3"}


def installed(mlxk: Program, manager: str, *flags: str, **variables: str) -> str:
    """Return the file of a service."""
    done = mlxk("service", "install", "--manager", manager, "--print", *flags, **variables)
    assert done.returncode == 0, done
    return done.stdout


def refused(mlxk: Program, *words: str, **variables: str) -> str:
    """Return what is said about a service that is not installed, whichever manager it is for."""
    said = [mlxk("service", "install", "--manager", each, *words, **variables) for each in MANAGERS]
    assert all(each.returncode in (1, 2) and "fault of mlxk" not in each.stderr for each in said), said
    return said[0].stderr


def test_a_service_has_every_variable_of_the_shell_but_its_secrets(
    mlxk: Program, program_environment: dict[str, str]
) -> None:
    variables = shell()
    done = mlxk("service", "install", "--manager", "launchd", "--print", **variables)
    assert "HF_TOKEN and MLXK2_API_KEY of this shell" in done.stderr
    given = plistlib.loads(done.stdout.encode())["EnvironmentVariables"]
    home = {"HOME": program_environment["HOME"]}
    here, there = read_settings(home | variables), read_settings(home | given)
    for setting in SETTINGS:
        assert setting.field
        if not setting.secret:
            values = [operator.attrgetter(setting.field)(each) for each in (read_settings(home), here, there)]
            assert values[0] != values[1] == values[2], setting.key
    assert there.serve.reload
    assert ("MLX_X", "3") in there.engine_variables
    unit = installed(mlxk, "systemd", **variables)
    assert "sekret" not in unit + done.stdout
    assert all(f'Environment="{name}=' in unit for name in given.keys() - {"PATH"})


def test_a_service_has_the_variables_of_opentelemetry_but_for_credentials(mlxk_here: Program) -> None:
    variables = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://user:sekret-5@collector:4318/v1/traces",
        "OTEL_EXPORTER_OTLP_HEADERS": "authorization=sekret-6",
        "OTEL_RESOURCE_ATTRIBUTES": "a=b,c=100%",
    }
    done = mlxk_here("service", "install", "--manager", "launchd", "--print", "--", "--otlp", **variables)
    given = plistlib.loads(done.stdout.encode())["EnvironmentVariables"]
    assert {name: value for name, value in given.items() if name.startswith("OTEL_")} == {
        name: variables[name] for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_RESOURCE_ATTRIBUTES")
    }
    assert "OTEL_EXPORTER_OTLP_HEADERS and OTEL_EXPORTER_OTLP_TRACES_ENDPOINT of this shell" in done.stderr
    assert "sekret" not in done.stdout + done.stderr


def test_a_home_of_the_hub_and_of_caches_is_that_of_the_service(mlxk_here: Program) -> None:
    for name, folder in (("HF_HOME", "/h"), ("XDG_CACHE_HOME", "/c/huggingface")):
        text = installed(mlxk_here, "systemd", **{"HF_HOME": "", name: folder.removesuffix("/huggingface")})
        assert f'"HF_TOKEN_PATH={folder}/token"' in text
        assert f'"HF_HUB_CACHE={folder}/hub"' in text


def test_folders_of_settings_and_state_are_those_of_the_service(
    mlxk_here: Program, program_environment: dict[str, str]
) -> None:
    usual = {name: f"{program_environment['HOME']}/{folder}" for name, folder in XDG.items()}
    for variables in ({}, usual):
        assert "XDG_" not in installed(mlxk_here, "systemd", **variables)
    unit = installed(mlxk_here, "systemd", XDG_CONFIG_HOME="/c d", XDG_STATE_HOME="/s")
    lines = set(unit.splitlines())
    assert {'Environment="XDG_CONFIG_HOME=/c d"', 'Environment="XDG_STATE_HOME=/s"'} <= lines
    assert "EnvironmentFile=-/c d/mlxk/service.env" in lines
    property_list = plistlib.loads(installed(mlxk_here, "launchd", XDG_STATE_HOME="/s").encode())
    assert property_list["EnvironmentVariables"]["XDG_STATE_HOME"] == "/s"
    assert "XDG_CONFIG_HOME" not in property_list["EnvironmentVariables"]
    assert property_list["StandardOutPath"].startswith("/s/mlxk/")


def test_a_server_for_others_is_not_installed_without_the_key_that_the_shell_has(
    mlxk_here: Program, program_environment: dict[str, str], tmp_path: Path
) -> None:
    open_to_all, key = ("--", "--host", "0.0.0.0"), {"MLXK2_API_KEY": "sekret-1"}
    assert "without a key" in refused(mlxk_here, *open_to_all, **key)
    assert "without a key" in refused(mlxk_here, MLXK2_HOST="192.0.2.1", **key)
    (tmp_path / "keys").write_text("sekret-2\n")
    for manager in MANAGERS:
        assert "0.0.0.0" in installed(mlxk_here, manager, *open_to_all, "--api-key-file", "keys", **key)
        installed(mlxk_here, manager, *open_to_all)  # a server that has no key in the shell either
    folder = Path(program_environment["HOME"]) / ".config" / "mlxk"
    folder.mkdir(parents=True)
    (folder / "service.env").write_text("# MLXK2_API_KEY=no\nMLXK2_API_KEY=\n")
    assert "without a key" in refused(mlxk_here, *open_to_all, **key)
    (folder / "service.env").write_text("MLXK2_HOST=\u2028MLXK2_API_KEY=sekret-3\n", encoding="utf-8")
    assert "without a key" in refused(mlxk_here, *open_to_all, **key)
    (folder / "service.env").write_text("# mine\nMLXK2_API_KEY=sekret-3\n")
    installed(mlxk_here, "systemd", *open_to_all, **key)
    (folder / "service.env").unlink()
    (folder / "config.toml").write_text('[serve]\napi_key = "sekret-4"\n')
    for manager in MANAGERS:
        assert "sekret" not in installed(mlxk_here, manager, *open_to_all, **key)


def write_adapter_files(directory: Path) -> None:
    """Write the files of an adapter of one number."""
    directory.mkdir()
    parameters = {"rank": 1, "scale": 1.0, "dropout": 0.0}
    config = {"fine_tune_type": "lora", "num_layers": 1, "lora_parameters": parameters}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    header = json.dumps({"lora_a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (directory / "adapters.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))


def test_paths_of_flags_and_variables_are_whole(mlxk_here: Program, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("sekret-2\n")
    flags = ("-m./a", "--default-model", "../b", "--alias=x=./c d", "--alias", "y=demo", "--api-key-file=keys")
    write_adapter_files(tmp_path / "lora")
    flags = (*flags, "--adapter", "z=lora")
    known = plistlib.loads(installed(mlxk_here, "launchd", "--", *flags).encode())
    command = known["ProgramArguments"][5:]
    expected = (f"-m{tmp_path}/a", "--default-model", f"{tmp_path.parent}/b", f"--alias=x={tmp_path}/c d")
    last = ("--adapter", f"z={tmp_path}/lora")
    assert command == [*expected, "--alias", "y=demo", f"--api-key-file={tmp_path}/keys", *last]
    blanks = ("--model", " ./a ", "--alias", "x= ./c ", "--alias= y = ./d", "--adapter", "z= lora")
    known = plistlib.loads(installed(mlxk_here, "launchd", "--", *blanks).encode())
    whole = ("--model", f"{tmp_path}/a", "--alias", f"x={tmp_path}/c", f"--alias= y ={tmp_path}/d", *last)
    assert tuple(known["ProgramArguments"][5:]) == whole
    assert f'"MLXK2_PRELOAD_MODEL={tmp_path}/a"' in installed(mlxk_here, "systemd", MLXK2_PRELOAD_MODEL="./a")


@pytest.mark.parametrize("key", ["model", "default_model"])
def test_a_path_of_the_settings_file_that_depends_on_a_directory_is_refused(
    mlxk_here: Program, program_environment: dict[str, str], key: str
) -> None:
    file = Path(program_environment["HOME"]) / ".config" / "mlxk" / "config.toml"
    file.parent.mkdir(parents=True)
    file.write_text(f'[serve]\n{key} = "./a"\n')
    assert "'./a' depends on the directory" in refused(mlxk_here)
    file.write_text(f'[serve]\n{key} = "~/a"\n')
    installed(mlxk_here, "systemd")


def test_what_a_service_cannot_have_is_refused(mlxk_here: Program) -> None:
    for flag in ("--until-eof", "--background"):
        assert flag in refused(mlxk_here, "--", flag)
    for text in ("a\x01", "a\x0b", "a\udcff"):
        assert "cannot stand in the file" in refused(mlxk_here, "--", "--thinking-start-token", text)
        assert "cannot stand in the file" in refused(mlxk_here, HF_HUB_CACHE=f"/{text}")
    for text in ("a\nb", "a\rb", "a\x7f"):
        done = mlxk_here("service", "install", "--manager", "systemd", HF_HUB_CACHE=f"/{text}")
        assert (done.returncode, "cannot stand in the file" in done.stderr) == (1, True), done


def test_a_key_file_that_cannot_be_read_again_is_refused(mlxk_here: Program) -> None:
    flags = ("--", "--api-key-file", "/dev/stdin")
    done = mlxk_here("service", "install", "--manager", "systemd", *flags, stdin="sekret-1\n")
    assert (done.returncode, "not a file that a service can read again" in done.stderr) == (1, True), done


def test_a_line_break_in_a_flag_is_no_line_of_a_unit(mlxk_here: Program) -> None:
    text = '<t>\n\tExecStartPre=/bin/evil\\n "'
    flags = ("--", "--thinking-start-token", text)
    unit = installed(mlxk_here, "systemd", *flags)
    plain = installed(mlxk_here, "systemd", "--", "--thinking-start-token", "t")
    assert len(unit.splitlines()) == len(plain.splitlines())
    assert '"<t>\\n\\tExecStartPre=/bin/evil\\\\n \\""' in unit
    assert plistlib.loads(installed(mlxk_here, "launchd", *flags).encode())["ProgramArguments"][-1] == text


DICT = "<plist><dict><key>Label</key><string>dev.mlxk.server</string><key>ProgramArguments</key>{}</dict></plist>"
FOREIGN = {
    "unfinished": b"<plist>",
    "empty": b"",
    "bytes": b"\xff\x00",
    "binary": b"bplist00" + bytes(40),
    "key": b"<plist><key>a</key></plist>",
    "date": b"<plist><date>x</date></plist>",
    "encoding": b"<?xml version='1.0' encoding='x'?><plist/>",
    "data": b"<plist><data>=</data></plist>",
    "integer": b"<plist><integer></integer></plist>",
    "array": b"<plist><array/></plist>",
    "number": DICT.format("<integer>1</integer>").encode(),
    "text": DICT.format("<string>mlxk</string>").encode(),
    "nested": DICT.format("<array><array/></array>").encode(),
    "long": b"<plist>" + b" " * 2**22,
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
@pytest.mark.parametrize("manager", MANAGERS)
def test_a_damaged_file_is_left_alone(
    mlxk_here: Program, program_environment: dict[str, str], manager: str, content: bytes
) -> None:
    status = json.loads(mlxk_here("service", "status", "--manager", manager, "--json").stdout)["data"]
    path = Path(status["path"])
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    again = json.loads(mlxk_here("service", "status", "--manager", manager, "--json").stdout)["data"]
    assert (status["state"], again["state"]) == ("absent", "foreign")
    assert path.read_bytes() == content


def test_a_pipe_is_not_waited_for_and_a_link_and_a_draft_are_no_obstacle(
    mlxk_here: Program, program_environment: dict[str, str], tmp_path: Path
) -> None:
    unit = Path(program_environment["HOME"]) / ".config" / "systemd" / "user" / "mlxk.service"
    unit.parent.mkdir(parents=True)
    os.mkfifo(unit)
    for action in ("status", "install", "uninstall"):
        assert "no regular file" in mlxk_here("service", action, "--manager", "systemd").stderr
    unit.unlink()
    assert mlxk_here("service", "install", "--manager", "systemd").returncode == 0
    unit.rename(tmp_path / "real")
    unit.symlink_to(tmp_path / "real")
    assert mlxk_here("service", "install", "--manager", "systemd", "--", "--port", "9000").returncode == 0
    assert unit.is_symlink()
    assert '"9000"' in (tmp_path / "real").read_text()
    assert os.listdir(unit.parent) == [unit.name]


PROGRAM = """#!/bin/sh
echo "$(basename $0) $*" >> {folder}/calls
for each in $(cat {folder}/$1 2> {folder}/none); do
  sed -i 1d {folder}/$1
  exit $each
done
"""


@pytest.fixture
def programs(program_environment: dict[str, str], tmp_path: Path) -> Path:
    """A folder of service managers; a file named as an action has the statuses of its next calls, one a line."""
    folder = tmp_path / "programs"
    folder.mkdir()
    for name in ("systemctl", "launchctl"):
        (folder / name).write_text(PROGRAM.format(folder=folder))
        (folder / name).chmod(0o755)
    program_environment["PATH"] = f"{folder}:{program_environment['PATH']}"
    return folder


def called(programs: Path) -> list[str]:
    """Return what the service managers were asked since the last time, without their flags and objects."""
    calls = (programs / "calls").read_text().splitlines()
    (programs / "calls").unlink()
    return [next(word for word in line.split()[1:] if not word.startswith("-")) for line in calls]


def test_a_start_takes_the_new_flags_also_where_the_service_runs(mlxk_here: Program, programs: Path) -> None:
    assert mlxk_here("service", "install", "--manager", "systemd", "--start").returncode == 0
    assert called(programs) == ["daemon-reload", "enable", "restart"]
    start, stop = ("service", "install", "--manager", "launchd", "--start"), ("bootout", "bootstrap")
    assert mlxk_here(*start).returncode == 0
    assert called(programs) == list(stop)
    (programs / "bootout").write_text("113\n")  # nothing is loaded
    assert mlxk_here(*start).returncode == 0
    (programs / "bootstrap").write_text("5\n37\n")  # the one before is still ending
    assert mlxk_here(*start).returncode == 0
    assert called(programs) == [*stop, *stop, "bootstrap", "bootstrap"]
    (programs / "bootout").write_text("3\n")
    (programs / "bootstrap").write_text("5\n")
    assert mlxk_here(*start).returncode == 1


def test_what_does_not_run_is_uninstalled(mlxk_here: Program, programs: Path) -> None:
    for manager, action, status, calls in (
        ("systemd", "--user", "5", ["disable", "daemon-reload"]),
        ("launchd", "bootout", "3", ["bootout"]),
        ("launchd", "bootout", "113", ["bootout"]),
    ):
        assert mlxk_here("service", "install", "--manager", manager).returncode == 0
        (programs / action).write_text(f"{status}\n")
        done = mlxk_here("service", "uninstall", "--manager", manager, "--stop", "--json")
        data = json.loads(done.stdout)["data"]
        assert (data["state"], os.path.exists(data["path"])) == ("uninstalled", False)
        assert called(programs) == calls
        assert mlxk_here("service", "install", "--manager", manager).returncode == 0
        (programs / action).write_text("1\n")
        failed = mlxk_here("service", "uninstall", "--manager", manager, "--stop")
        assert (failed.returncode, "failed" in failed.stderr, os.path.exists(data["path"])) == (1, True, True)
        (programs / "calls").unlink()
