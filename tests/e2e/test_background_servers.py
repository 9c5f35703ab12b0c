"""Servers in the background: started, listed, asked, read and stopped, each by one command."""

import json
import os
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
