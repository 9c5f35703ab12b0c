"""Where the sockets of servers lie: folders of this user alone, which every session of the user finds."""

import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from models.answers import read
from serving.shared import MODEL, SharedServer, is_taken, socket_folder_of

from mlxk.adapters.unix_socket.servers import SUFFIX, socket_folders, socket_name
from mlxk.domain.generation.request import GenerationRequest

REQUEST = GenerationRequest(MODEL, "one two three four")


@pytest.fixture
def server(tmp_path: Path) -> SharedServer:
    """A server that does not listen yet."""
    return SharedServer(socket_folder_of(tmp_path))


@pytest.fixture
def short_path() -> Iterator[Path]:
    """Return a folder below which paths of sockets are short enough."""
    with tempfile.TemporaryDirectory(prefix="mlxk-", dir="/tmp") as folder:
        yield Path(folder)


def test_a_folder_that_others_may_enter_is_used_by_neither_side(server: SharedServer) -> None:
    os.makedirs(server.folder, mode=0o700)
    with server.listening():
        assert stat.S_IMODE(os.stat(server.folder).st_mode) == 0o700
        assert stat.S_IMODE(os.stat(f"{server.folder}/{socket_name(os.getpid())}").st_mode) == 0o600
        os.chmod(server.folder, 0o755)
        assert server.servers().offer(MODEL) is None
    with server.listening():
        assert os.listdir(server.folder) == []
        assert is_taken(server)  # in the folder that stands in for it
    assert said(server) == ["the folder takes no socket, another one is used"]


def said(server: SharedServer) -> list[str]:
    """Return what the server's log has of its folders."""
    return [event.event for event in server.log.events if "socket" in event.event or "share" in event.event]


def test_where_the_state_folder_takes_no_sockets_another_folder_of_this_user_is_used(short_path: Path) -> None:
    (short_path / "file").touch()
    wanted = str(short_path / "file" / "sockets")
    server = SharedServer(wanted)
    short = socket_folders(wanted)[-1]
    with server.listening():
        assert is_taken(server)
        assert stat.S_IMODE(os.stat(short).st_mode) == 0o700
    assert not os.path.exists(short)
    assert said(server) == ["the folder takes no socket, another one is used"]


def test_a_server_without_any_folder_for_its_socket_serves_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    wanted = str(tmp_path / "file" / "sockets")
    short = Path(socket_folders(wanted)[-1])
    short.touch()
    server = SharedServer(wanted)
    try:
        with server.listening():
            assert not is_taken(server)
    finally:
        short.unlink()
    assert said(server)[-1] == "other programs of this user cannot share the server"


def test_the_sockets_of_another_machine_with_the_same_home_are_left_alone(server: SharedServer) -> None:
    os.makedirs(server.folder, mode=0o700)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(f"{server.folder}/1-01234567.sock")
    with server.listening():
        assert is_taken(server)
        assert "1-01234567.sock" in os.listdir(server.folder)


def test_a_path_that_is_too_long_for_a_socket_gets_a_short_folder_of_this_user(tmp_path: Path) -> None:
    long = str(tmp_path / ("x" * 100) / "mlxk")
    (short,) = socket_folders(long)
    assert len(short) < 60
    assert (short,) != socket_folders(f"{long}2")
    server = SharedServer(long)
    with server.listening():
        assert os.listdir(short) == [socket_name(os.getpid())]
        read(server.sharing().submit(REQUEST))
    assert len(server.generator.requests) == 1
    assert not os.path.exists(short)


def test_a_socket_is_not_seen_before_it_listens(server: SharedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    listen = socket.socket.listen

    def look_and_listen(self: socket.socket, *arguments: int) -> None:
        seen.extend(name for name in os.listdir(server.folder) if name.endswith(SUFFIX))
        listen(self, *arguments)

    monkeypatch.setattr(socket.socket, "listen", look_and_listen)
    with server.listening():
        assert is_taken(server)
        assert os.listdir(server.folder) == [socket_name(os.getpid())]
    assert seen == []


@pytest.mark.parametrize("often", [1, 2])
def test_a_folder_that_goes_with_the_last_server_in_it_is_made_again(
    server: SharedServer, monkeypatch: pytest.MonkeyPatch, often: int
) -> None:
    left = [server.folder] * often
    bind = socket.socket.bind

    def remove_and_bind(self: socket.socket, address: str) -> None:
        if left:
            os.rmdir(left.pop())
        bind(self, address)

    monkeypatch.setattr(socket.socket, "bind", remove_and_bind)
    with server.listening():
        assert os.listdir(server.folder) == [socket_name(os.getpid())]
        assert is_taken(server)


def test_what_a_process_with_the_same_number_left_behind_is_no_hindrance(server: SharedServer) -> None:
    os.makedirs(server.folder, mode=0o700)
    for name in (socket_name(os.getpid()), socket_name(os.getpid()).removesuffix(SUFFIX)):
        with socket.socket(socket.AF_UNIX) as former:
            former.bind(f"{server.folder}/{name}")
    with server.listening():
        assert os.listdir(server.folder) == [socket_name(os.getpid())]
        assert is_taken(server)
