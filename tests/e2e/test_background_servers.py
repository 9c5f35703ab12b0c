"""Servers in the background: started, listed, asked, read and stopped, each by one command."""

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from serving.running import eventually

from mlxk.adapters.unix_socket.servers import socket_folders
from mlxk.entrypoints.settings import read_settings

pytestmark = [pytest.mark.e2e, pytest.mark.mlx]
Program = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def stopping(mlxk: Program) -> Iterator[None]:
    """Leave no server behind."""
    yield
    assert mlxk("stop", "--all").returncode == 0


def data_of(done: "subprocess.CompletedProcess[str]") -> Any:
    """Return the data of a JSON document."""
    assert done.returncode == 0, done
    return json.loads(done.stdout)["data"]


@pytest.mark.usefixtures("stopping")
def test_a_server_in_the_background_lives_until_it_is_stopped(
    mlxk: Program, program_environment: dict[str, str]
) -> None:
    started = data_of(mlxk("serve", "--background", "--port", "0", "--keep-alive", "600", "--json"))
    log = Path(started["log"])
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    assert stat.S_IMODE(log.parent.stat().st_mode) == 0o700
    shown = mlxk("ps").stdout
    assert shown == f"{started['url']} (process {started['pid']}) has no model in memory.\n"

    done = mlxk("run", "demo", "Hello!", "--verbose", "--max-tokens", "4")
    assert f"[computed by the server {started['url']}]" in done.stderr
    running = data_of(mlxk("ps", "--json"))
    assert running["servers"] == [{"url": started["url"], "pid": started["pid"], "version": "0.2.0"}]
    (model,) = running["models"]
    assert (model["model"], model["in_use"], model["context_length"]) == ("demo", False, 2048)
    assert 0 < model["idle_seconds_left"] <= 600
    assert model["tokens_per_second"] > 0
    table = mlxk("ps").stdout
    assert "Name | Size" in table
    assert "in 10m" in table or "in 9m" in table

    assert mlxk("stop", "demo").stdout == f"demo was unloaded ({started['url']})\n"
    assert data_of(mlxk("ps", "--json"))["models"] == []
    again = json.loads(mlxk("stop", "demo", "--json").stdout)["error"]
    assert (again["type"], again["hint"]) == ("model_not_found", "No model is in memory.")

    assert "unloaded a model" in mlxk("logs", "--lines", "3").stdout
    assert data_of(mlxk("logs", "--port", str(started["port"]), "--json"))["path"] == started["log"]
    assert log.name == f"server-{started['port']}.log"
    assert "no log of a server on port 1" in mlxk("logs", "--port", "1").stderr

    stopped = data_of(mlxk("stop", "--all", "--json"))
    assert stopped["servers"] == running["servers"]
    assert mlxk("ps").stdout == "No server of yours is running. Start one: mlxk serve --background\n"
    with socket.create_server(("127.0.0.1", started["port"])):  # the port is free again
        pass
    sockets = Path(program_environment["HOME"]) / ".local" / "state" / "mlxk" / "sockets"
    assert not sockets.exists() or os.listdir(sockets) == []


@pytest.mark.usefixtures("stopping")
def test_several_servers_run_side_by_side_and_the_one_with_the_model_is_used(mlxk: Program) -> None:
    first = data_of(mlxk("serve", "--background", "--port", "0", "--json"))
    second = data_of(mlxk("serve", "--background", "--port", "0", "--model", "demo", "--json"))
    assert {each["pid"] for each in data_of(mlxk("ps", "--json"))["servers"]} == {first["pid"], second["pid"]}
    done = mlxk("run", "demo", "Hello!", "--verbose", "--max-tokens", "4")
    assert f"[computed by the server {second['url']}]" in done.stderr
    log = Path(first["log"])
    with log.open("ab") as file:
        file.truncate(9 * 2**20)
    before = log.stat()
    taken = mlxk("serve", "--background", "--port", str(first["port"]))
    assert (log.stat().st_ino, log.stat().st_size) == (before.st_ino, before.st_size)
    assert {each.name for each in log.parent.iterdir()} == {log.name, Path(second["log"]).name}
    assert (taken.returncode, taken.stdout) == (3, "")
    assert f"port {first['port']} is already in use" in taken.stderr
    os.kill(first["pid"], signal.SIGKILL)
    assert eventually(lambda: len(data_of(mlxk("ps", "--json"))["servers"]) == 1, 60)


def test_a_server_that_cannot_start_says_why_and_leaves_nothing_running(
    mlxk: Program, program_environment: dict[str, str]
) -> None:
    done = mlxk("serve", "--background", "--port", "0", "--model", "nosuch")
    assert done.returncode == 1
    assert "no model found matching 'nosuch'" in done.stderr
    refused = mlxk("serve", "--background", "--port", "0", "--chunk", "9", "--json")
    assert json.loads(refused.stdout)["error"]["type"] == "validation_error"
    assert data_of(mlxk("ps", "--json"))["servers"] == []
    assert list(logs_of(program_environment).iterdir()) == []


@pytest.mark.usefixtures("stopping")
def test_what_ends_a_server_is_said_as_it_is_with_a_socket_and_without(
    mlxk: Program, program_environment: dict[str, str]
) -> None:
    said = mlxk("serve", "--background", "--port", "0").stdout
    assert said.splitlines()[-1] == "Its log: mlxk logs. Stop it: mlxk stop --all"
    assert "has stopped" in mlxk("stop", "--all").stdout
    folders = list(map(Path, socket_folders(read_settings(program_environment).server_sockets)))
    for each in folders:
        each.parent.mkdir(parents=True, exist_ok=True)
        each.touch()
    try:
        said = mlxk("serve", "--background", "--port", "0").stdout
    finally:
        for each in folders:
            each.unlink()
    process = re.search(r"\(process (\d+)\)", said)
    assert process is not None
    assert said.splitlines()[-1] == f"Its log: mlxk logs. Stop it: kill {process[1]}"
    os.kill(int(process[1]), signal.SIGTERM)


REPORTING = """
import os, signal
from mlxk.entrypoints.container import build
from mlxk.entrypoints.http.process.sockets import listen
from mlxk.entrypoints.http.process.supervisor import WorkerOrders
from mlxk.entrypoints.http.process.worker import serve_in_process
from mlxk.entrypoints.settings import ServerSettings, read_settings
settings = read_settings()
def report(error):
    running = build(settings).adapters.running_servers()
    print(error, [each.process == os.getpid() for each in running.servers(60)], running.unseen())
    os.kill(os.getpid(), signal.SIGTERM)
serve_in_process(listen("127.0.0.1", 0), settings, WorkerOrders(ServerSettings()), report)
"""


def test_a_server_that_reports_that_it_is_ready_is_listed_by_ps(program_environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", REPORTING], env=program_environment, capture_output=True, text=True, check=False
    )
    assert done.stdout == "None [True] ()\n", done


def logs_of(environment: dict[str, str]) -> Path:
    """Return the folder of logs."""
    return Path(environment["HOME"]) / ".local" / "state" / "mlxk" / "logs"


def test_a_server_that_does_not_respond_is_named_by_ps_and_stop(mlxk: Program) -> None:
    started = data_of(mlxk("serve", "--background", "--port", "0", "--no-supervisor", "--json"))
    os.kill(started["pid"], signal.SIGSTOP)
    try:
        fact = f"the server with the process {started['pid']} does not respond"
        shown = mlxk("ps")
        assert (shown.returncode, shown.stdout, fact in shown.stderr) == (0, "", True)
        refused = mlxk("stop", "--all")
        assert (refused.returncode, fact in refused.stderr) == (1, True)
        assert fact in mlxk("stop", "demo").stderr
    finally:
        os.kill(started["pid"], signal.SIGCONT)
    assert mlxk("stop", "--all").returncode == 0


def test_a_log_is_followed_until_ctrl_c(program_environment: dict[str, str]) -> None:
    logs = logs_of(program_environment)
    logs.mkdir(parents=True)
    log = logs / "server-8000.log"
    log.write_bytes(b"one\ntwo \x1b[31m\ncaf\xc3")
    command = [sys.executable, "-m", "mlxk", "logs", "--follow", "-n", "1"]
    with subprocess.Popen(command, env=program_environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "two \\x1b[31m\n"
        with log.open("ab") as file:
            file.write(b"\xa9\nfo")
            file.flush()
            assert process.stdout.readline() == "caf\xe9\n"
            file.write(b"ur\n")
        assert process.stdout.readline() == "four\n"
        log.unlink()
        log.write_text("five\n")
        assert process.stdout.readline() == "five\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130


def test_a_port_without_a_log_is_answered_with_those_that_have_one(
    program_environment: dict[str, str], mlxk_here: Program
) -> None:
    logs = logs_of(program_environment)
    logs.mkdir(parents=True)
    for name in ("server-9000.log", "server-8000.log", "server-8000.log.1", "server-failed.log"):
        (logs / name).touch()
    (logs / "server-8000.log").write_text("".join(f"line {number}\n" for number in range(60)))
    assert mlxk_here("logs", "--port", "8000").stdout.splitlines() == [f"line {number}" for number in range(10, 60)]
    done = mlxk_here("logs", "--port", "8001")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, "There are logs of the ports 8000, 9000.")
