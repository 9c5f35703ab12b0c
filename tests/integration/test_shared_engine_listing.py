"""Servers that answer late or not at all, and folders that are not safe: what the list of servers says of them."""

import os
import socket
import threading
from pathlib import Path

import attrs
import pytest
from doubles.text_generator import InMemoryTextGenerator
from serving.shared import MODEL, SharedServer, socket_folder_of

from mlxk.adapters.unix_socket.servers import socket_name
from mlxk.application.ports.text_generator import EngineState


@pytest.fixture
def server(tmp_path: Path) -> SharedServer:
    """A server that does not listen yet."""
    return SharedServer(socket_folder_of(tmp_path))


def test_a_server_that_answers_late_is_listed_by_who_waits_for_it(
    server: SharedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlxk.adapters.unix_socket.servers.REPLY_SECONDS", 0.1)
    released = threading.Event()

    class Late(InMemoryTextGenerator):
        def state(self, timeout_seconds: float) -> EngineState:
            released.wait(60)
            return super().state(timeout_seconds)

    late = attrs.evolve(server, generator=Late())
    with late.listening():
        servers = late.servers()
        assert (servers.servers(), len(servers.unseen())) == ((), 1)
        timer = threading.Timer(0.3, released.set)
        timer.start()
        assert [each.process for each in servers.servers(60)] == [os.getpid()]
        assert servers.unseen() == ()
        timer.join()


def test_a_server_that_does_not_respond_and_a_folder_that_others_may_enter_are_said(
    server: SharedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlxk.adapters.unix_socket.servers.REPLY_SECONDS", 0.1)
    os.makedirs(server.folder, mode=0o700)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"{server.folder}/{socket_name(4242)}")
        listening.listen()
        servers = server.servers()
        assert servers.servers() == ()
        assert servers.unseen() == ("the server with the process 4242 does not respond",)
        os.chmod(server.folder, 0o755)
        assert servers.servers() == ()
        (fact,) = servers.unseen()
        assert "is not a folder of this user alone" in fact
        assert f"chmod 700 '{server.folder}'" in fact
        assert servers.offer(MODEL) is None
        place = servers.last_place()
        assert place is not None
        assert place.reason == fact
        os.chmod(server.folder, 0o700)
    os.unlink(os.path.join(server.folder, socket_name(4242)))
    assert (servers.servers(), servers.unseen()) == ((), ())
