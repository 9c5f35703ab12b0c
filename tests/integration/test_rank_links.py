"""A host that is examined, by the lines that ``doctor --hosts`` sends it: who may take part in a link, and where."""

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from mlxk.adapters.mlx.ranks.channel import admit
from mlxk.domain.errors import RankLostError

pytestmark = pytest.mark.mlx

ADDRESS = "127.0.0.1"
ORDERS = {"address": ADDRESS, "towards": "127.0.0.1", "seconds": 20, "name": None, "backends": [], "divided": None}


class Examined:
    """The program on a host.

    Args:
        process: It, started with its orders.
    """

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process

    def tell(self, **order: object) -> None:
        """Give an order."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()

    def hear(self, kind: str) -> dict[str, Any]:
        """Return the next answer of a kind."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            answer: dict[str, Any] = json.loads(line)
            if answer["kind"] == kind:
                return answer
        raise AssertionError(f"it ended before it said {kind}")


@pytest.fixture
def host(program_environment: dict[str, str]) -> Iterator[Examined]:
    """Start the program of a host, and see that it ends with its input."""
    command = [sys.executable, "-P", "-m", "mlxk.entrypoints.rank"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, env=program_environment, **pipes) as process:
        found = Examined(process)
        found.tell(blas="off", examined=ORDERS)
        yield found
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(10) == 0


def test_a_link_is_for_the_one_that_has_its_key_at_the_address_of_the_file(host: Examined) -> None:
    hello = host.hear("hello")
    assert (hello["deaf"], hello["own_address"]) == (None, "127.0.0.1")
    assert host.hear("account")["backends"]["ring"] is True
    host.tell(do="listen", key="right")
    port = host.hear("port")["port"]
    with pytest.raises(OSError, match=r"refused|timed out|unreachable|assign"):  # macOS has but one such address
        socket.create_connection(("127.0.0.2", port), 1)
    with socket.create_connection((ADDRESS, port), 5) as stranger:
        stranger.sendall(b"\x00\x00\x00\x02{}")
        while stranger.recv(4096):  # its challenge, and then nothing more
            pass
    host.tell(do="measure", address=ADDRESS, port=port, key="wrong")
    assert "round_trip" not in host.hear("link")
    host.tell(do="measure", address=ADDRESS, port=port, key="right")
    measured = host.hear("link")
    assert 0 < measured["round_trip"] < 1
    assert measured["rate"] > 1e6
    host.tell(do="measure", address=ADDRESS, port=port, key="right")
    assert "round_trip" not in host.hear("link")  # a key is for one exchange


@pytest.mark.parametrize("answer", [b'{"proof": "\\ud800"}', b"[" * 100_000], ids=["lone surrogate", "nested"])
def test_a_connection_without_the_key_is_refused_whatever_it_sends(answer: bytes) -> None:
    with socket.create_server((ADDRESS, 0)) as listener, socket.create_connection(listener.getsockname()) as stranger:
        stranger.sendall(len(answer).to_bytes(4, "big") + answer)
        with pytest.raises(RankLostError):
            admit(listener.accept()[0], "right")


def test_a_host_that_is_examined_ends_with_its_input_while_it_listens(host: Examined) -> None:
    host.tell(do="listen", key="right")
    assert host.hear("port")["port"] > 0
