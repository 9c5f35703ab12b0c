"""``ps``, ``stop`` and ``logs`` on servers in memory: what is listed, what ends, and what is said where it does not."""

import json
import os
from pathlib import Path
from typing import Any

import attrs
import pytest
from dependency_injector import providers
from doubles.running_servers import InMemoryRunningServers

from mlxk.application.ports.other_processes import RunningServer
from mlxk.application.ports.text_generator import ResidentModel
from mlxk.domain.errors import ExecutionError
from mlxk.domain.models.model import ModelHandle, Origin
from mlxk.entrypoints.cli.command import CommandContext
from mlxk.entrypoints.cli.program import run
from mlxk.entrypoints.container import Container, build
from mlxk.entrypoints.settings import Settings, read_settings


def resident(name: str, idle_seconds_left: float | None = None, **facts: Any) -> ResidentModel:
    return ResidentModel(
        ModelHandle(name, f"/models/{name}", Origin.CACHE, "c" * 40), 2 * 10**9, idle_seconds_left, **facts
    )


BUSY = resident("org/b", context_length=32768, in_use=True, tokens_per_second=61.25)
IDLE = resident("org/a", idle_seconds_left=90.04)
KEPT = resident("org/c")
ONE = RunningServer("1", 10, "http://127.0.0.1:8000", "1.2", (IDLE, BUSY))
OTHER = RunningServer("2", 20, "http://127.0.0.1:8001", "1.2", (KEPT,))
EMPTY = RunningServer("3", 30, "http://127.0.0.1:8002", "1.2", ())
NONE = "No server of yours is running. Start one: mlxk serve --background\n"


class Stubborn(InMemoryRunningServers):
    """Has a server that does not end."""

    def stop(self, server: RunningServer) -> None:
        if server.key == ONE.key:
            raise ExecutionError(f"the server {server.url} does not end")
        super().stop(server)


@attrs.define
class Program:
    """The command line on servers in memory."""

    home: Path
    capsys: pytest.CaptureFixture[str]
    running: InMemoryRunningServers = attrs.Factory(lambda: InMemoryRunningServers(OTHER, ONE, EMPTY))

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        with open(os.devnull) as null:
            settings = read_settings({"HOME": str(self.home)})
            status = run(arguments, CommandContext(settings, self._build, lambda *_: 1, null.fileno()))
        printed = self.capsys.readouterr()
        return status, printed.out, printed.err

    def _build(self, settings: Settings, *_: Any) -> Container:
        container = build(settings)
        container.adapters.running_servers.override(providers.Object(self.running))
        return container


@pytest.fixture
def mlxk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Program:
    return Program(tmp_path, capsys)


def test_models_are_listed_by_name_and_servers_without_one_below(mlxk: Program) -> None:
    status, out, err = mlxk("ps")
    assert (status, err) == (0, "")
    assert out.splitlines() == [
        "Name  | Size  | Context | Until         | Tokens/s | Server",
        "------+-------+---------+---------------+----------+---------------------------",
        "org/a | 2.0GB | -       | in 2m         | -        | http://127.0.0.1:8000 (10)",
        "org/b | 2.0GB | 32,768  | in use        | 61.2     | http://127.0.0.1:8000 (10)",
        "org/c | 2.0GB | -       | it is stopped | -        | http://127.0.0.1:8001 (20)",
        "http://127.0.0.1:8002 (process 30) has no model in memory.",
    ]


@pytest.mark.parametrize(
    ("left", "shown"), [(0.0, "in 0s"), (59.4, "in 59s"), (60.0, "in 1m"), (3540.0, "in 59m"), (5400.0, "in 1.5h")]
)
def test_the_time_until_a_model_goes_is_in_the_unit_that_fits(mlxk: Program, left: float, shown: str) -> None:
    mlxk.running = InMemoryRunningServers(attrs.evolve(ONE, models=(attrs.evolve(IDLE, idle_seconds_left=left),)))
    assert mlxk("ps")[1].splitlines()[2].split("|")[3].strip() == shown


def test_json_has_servers_and_models_with_null_for_what_is_not_known(mlxk: Program) -> None:
    mlxk.running = InMemoryRunningServers(ONE)
    data = json.loads(mlxk("ps", "--json")[1])["data"]
    assert data["servers"] == [{"url": ONE.url, "pid": 10, "version": "1.2"}]
    common = {"revision": "c" * 40, "url": ONE.url, "pid": 10, "weight_bytes": 2 * 10**9}
    assert data["models"] == [
        {
            **{"model": "org/a", **common, "context_length": None, "in_use": False},
            **{"idle_seconds_left": 90.0, "tokens_per_second": None},
        },
        {
            **{"model": "org/b", **common, "context_length": 32768, "in_use": True},
            **{"idle_seconds_left": None, "tokens_per_second": 61.25},
        },
    ]


def test_where_no_server_is_seen_it_is_said_why_or_how_to_start_one(mlxk: Program) -> None:
    mlxk.running = InMemoryRunningServers()
    assert mlxk("ps") == (0, NONE, "")
    assert mlxk("stop", "--all") == (0, NONE, "")
    mlxk.running.hidden = ("the folder of servers cannot be read: Permission denied",)
    assert mlxk("ps") == (0, "", "[the folder of servers cannot be read: Permission denied]\n")
    status, _, err = mlxk("stop", "--all")
    assert (status, err.splitlines()[0]) == (1, "stop: Error: the folder of servers cannot be read: Permission denied")


def test_all_servers_are_stopped_in_their_order(mlxk: Program) -> None:
    assert mlxk("stop", "--all")[:2] == (
        0,
        "".join(f"{each.url} (process {each.process}) has stopped.\n" for each in (ONE, OTHER, EMPTY)),
    )
    assert mlxk.running.servers() == ()


def test_a_server_that_does_not_end_is_named_and_the_others_are_stopped(mlxk: Program) -> None:
    mlxk.running = Stubborn(ONE, OTHER)
    status, out, err = mlxk("stop", "--all")
    assert (status, out) == (1, f"{OTHER.url} (process 20) has stopped.\n")
    assert err.splitlines() == [
        f"stop: Error: the server {ONE.url} does not end",
        "Try again, or end the process by its number: kill -9 NUMBER",
    ]
    assert [each.process for each in mlxk.running.servers()] == [10]
    mlxk.running = Stubborn(ONE, OTHER)
    error = json.loads(mlxk("stop", "--all", "--json")[1])["error"]
    assert error["detail"] == {"models": [], "servers": [{"url": OTHER.url, "pid": 20, "version": "1.2"}]}


def test_a_model_in_use_goes_when_its_work_has_ended(mlxk: Program) -> None:
    mlxk.running = InMemoryRunningServers(ONE, attrs.evolve(OTHER, models=(BUSY,)), busy=("org/b",))
    assert mlxk("stop", "org/a")[1] == f"org/a was unloaded ({ONE.url})\n"
    words = "will be unloaded when the server's work in progress has ended"
    assert mlxk("stop", "org/b")[1] == f"org/b {words} ({ONE.url})\norg/b {words} ({OTHER.url})\n"


def test_a_log_is_shown_by_its_last_lines_and_of_the_port_that_is_named(mlxk: Program) -> None:
    folder = mlxk.home / ".local" / "state" / "mlxk" / "logs"
    assert mlxk("logs")[2].splitlines() == [
        "logs: Error: there is no log",
        "A server in the background writes one: mlxk serve --background",
    ]
    folder.mkdir(parents=True)
    for port in (8000, 9000):
        (folder / f"server-{port}.log").write_text("".join(f"{port} {number}\n" for number in range(5)) + "\x1b[2J\n")
    status, out, _ = mlxk("logs", "--port", "8000", "-n", "2")
    assert (status, out) == (0, "8000 4\n\\x1b[2J\n")
    data = json.loads(mlxk("logs", "--port", "9000", "-n", "1", "--json")[1])["data"]
    assert (data["path"], len(data["lines"])) == (str(folder / "server-9000.log"), 1)
    assert mlxk("logs", "--port", "1")[2].splitlines() == [
        "logs: Error: there is no log of a server on port 1",
        "There are logs of the ports 8000, 9000.",
    ]
