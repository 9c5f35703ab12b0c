"""``mlxk stop`` with several servers, one of which does not respond: the others are stopped all the same."""

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import pytest
from serving.shared import MODEL

from mlxk.adapters.unix_socket.protocol import encoded, receive, send
from mlxk.adapters.unix_socket.servers import socket_folders, socket_name
from mlxk.application.ports.text_generator import ResidentModel
from mlxk.entrypoints.cli.command import CommandContext
from mlxk.entrypoints.cli.program import run
from mlxk.entrypoints.container import build
from mlxk.entrypoints.settings import read_settings

LIVE, DEAD = (3_000_002, 3_000_003), 3_000_001
"""Numbers of processes that there are not."""

Played = dict[int, list[str]]


@pytest.fixture
def played(program_environment: dict[str, str]) -> Iterator[Played]:
    """Play three servers that have one model; the first has no time once it was listed. Yields what each was asked."""
    folder = socket_folders(read_settings(program_environment).server_sockets)[0]
    os.makedirs(folder, mode=0o700)
    resident = attrs.asdict(ResidentModel(MODEL, 1, None), recurse=False)
    models = [{**resident, "handle": encoded(MODEL, [])}]
    asked: Played = {}

    def serve(listening: socket.socket, process: int) -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection:
                operation = str(receive(connection)[0]["operation"])
                asked[process].append(operation)
                if operation == "state":
                    url = f"http://127.0.0.1:{process % 10}"
                    if process == DEAD:
                        listening.close()
                    send(connection, {"pid": process, "url": url, "version": "1", "models": models})
                else:
                    send(connection, {"unloaded": True})

    with contextlib.ExitStack() as sockets:
        threads = []
        for process in (DEAD, *LIVE):
            listening = sockets.enter_context(socket.socket(socket.AF_UNIX))
            listening.bind(f"{folder}/{socket_name(process)}")
            listening.listen()
            asked[process] = []
            threads.append(threading.Thread(target=serve, args=(listening, process)))
            threads[-1].start()
            sockets.callback(shut, listening)
        yield asked
    for thread in threads:
        thread.join()


def shut(listening: socket.socket) -> None:
    """End a wait for connections."""
    with contextlib.suppress(OSError):
        listening.shutdown(socket.SHUT_RDWR)


def stop(environment: dict[str, str], *arguments: str) -> int:
    """Run the command in this process; return its exit status."""
    return run(["stop", *arguments], CommandContext(read_settings(environment), build, lambda *_: 1))


def test_every_server_is_stopped_though_one_does_not_respond(
    played: Played, program_environment: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert stop(program_environment, "--all") == 1
    printed = capsys.readouterr()
    assert [asked[-1] for asked in played.values()] == ["state", "stop", "stop"]
    assert printed.out.count("has stopped") == 2
    assert f"http://127.0.0.1:1 (process {DEAD}) does not respond" in printed.err


def test_a_model_is_unloaded_by_every_server_though_one_does_not_respond(
    played: Played, program_environment: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert stop(program_environment, MODEL.name) == 1
    printed = capsys.readouterr()
    assert [asked[-1] for asked in played.values()] == ["state", "unload", "unload"]
    assert printed.out.count("was unloaded") == 2
    assert f"http://127.0.0.1:1 (process {DEAD}) does not respond" in printed.err


@pytest.mark.parametrize(("arguments", "done"), [(["--all"], "servers"), ([MODEL.name], "models")])
def test_the_error_for_programs_names_what_was_done(
    played: Played, command: Callable[..., Any], arguments: list[str], done: str
) -> None:
    error = command("stop", *arguments)["error"]
    assert error["type"] == "execution_error"
    assert [each["pid"] for each in error["detail"][done]] == list(LIVE)
    assert len(played) == 3
