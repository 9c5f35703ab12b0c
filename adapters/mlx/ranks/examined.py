"""A host that is examined: what it says of itself, and its end of each link. It does not import MLX itself.

It is asked by ``examination`` through the standard input of its process, a line of JSON each, and answers in lines of
JSON with a ``kind``. It ends at once with its input, whatever it is doing.
"""

import contextlib
import errno
import json
import os
import platform
import queue
import socket
import statistics
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

import attrs

from mlxk.adapters.mlx.ranks.channel import admit, proved, versions
from mlxk.domain.errors import MlxkError, RankLostError
from mlxk.domain.models.footprint import MemoryReading

BEAT_SECONDS = 1.0
"""Between two signs of life."""

GONE = 0
"""Exit status of one whose input has ended."""

_PINGS = 32
_ROUNDS = 3
_ROUND_BYTES = 4 * 2**20
_ENOUGH_SECONDS = 0.5
"""No further round begins after so long."""
_PART = 256 * 1024

Account = Callable[[], dict[str, Any]]
"""Says what a host knows of a model, as ``follower.account`` does; it imports libraries of models."""


@attrs.frozen
class HostKnowledge:
    """What a host knows of itself."""

    reading: MemoryReading | None
    own_version: str
    """That of this program."""
    backends: Callable[[], dict[str, bool]]
    """Says which layers of MLX are there by which ranks may exchange; it imports MLX."""
    account: Account | None
    """None when no model is asked about."""

    def told(self) -> dict[str, Any]:
        """Return what it says of MLX, and of the model."""
        try:
            return {"backends": self.backends()} if self.account is None else self.account()
        except ImportError as error:
            return {"problem": f"MLX cannot be imported: {str(error).splitlines()[0][:200]}"}
        except MlxkError as error:
            return {"problem": error.message}


def examined(orders: Mapping[str, Any], known: HostKnowledge, given: TextIO, printed: TextIO) -> None:
    """Answer until the input ends, which ends this process.

    Args:
        orders: The ``address`` that the host has in the file, that of the first host, which it goes ``towards``, and
            the ``seconds`` that each part of an exchange may take.
        known: What it says.
        given: What follows the orders.
        printed: Receives the answers.
    """
    lock = threading.Lock()

    def say(kind: str, **facts: object) -> None:
        with lock:
            printed.write(json.dumps({"kind": kind, **facts}) + "\n")
            printed.flush()

    received: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(given, received), name="mlxk-examined", daemon=True).start()
    address, seconds, reading = orders["address"], orders["seconds"], known.reading
    say(
        "hello",
        python=platform.python_version(),
        versions=versions(known.own_version),
        reading=None if reading is None else [reading.total, reading.available, reading.accelerator_limit],
        deaf=_deaf(address),
        own_address=_own_address(orders["towards"]),
    )
    threading.Thread(target=_beat, args=(say,), name="mlxk-examined-beat", daemon=True).start()
    say("account", **known.told())
    while True:
        order = received.get()
        if order["do"] == "listen":
            # A connection that does not come must not keep this host from its other links.
            listening = (address, order["key"], seconds, say)
            threading.Thread(target=_listen, args=listening, name="mlxk-examined-link", daemon=True).start()
        else:
            say("link", **_measured((order["address"], order["port"]), order["key"], seconds))


def _deaf(address: str) -> str | None:
    """Return why this host cannot listen on an address; None when it can."""
    try:
        with socket.create_server((address, 0)):
            return None
    except OSError as error:
        return "taken" if error.errno == errno.EADDRINUSE else "elsewhere"


def _own_address(towards: str) -> str | None:
    """Return the address of this host that the system takes for an address; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((towards, 9))
        except OSError:
            return None
        own: str = probe.getsockname()[0]
        return own


def _listen(address: str, key: str, seconds: float, say: Callable[..., None]) -> None:
    """Listen on a free port of the address only, and take part in the measurement of one host that has the key."""
    try:
        listener = socket.create_server((address, 0))
    except OSError as error:
        say("port", port=None, problem=_reason(error, seconds))
        return
    with listener, contextlib.suppress(OSError):  # which the other end of the link notices, and says
        say("port", port=listener.getsockname()[1])
        listener.settimeout(seconds)
        while not _takes_part(listener.accept()[0], key, seconds):
            pass


def _takes_part(connection: socket.socket, key: str, seconds: float) -> bool:
    """Answer a connection; return whether it had the key."""
    with connection:
        connection.settimeout(seconds)
        try:
            admit(connection, key)
        except RankLostError:
            return False
        connection.settimeout(seconds)
        for _ in range(_PINGS):
            connection.sendall(b"." * _read(connection, 1))
        while _read(connection, _ROUND_BYTES) == _ROUND_BYTES:
            connection.sendall(b".")
    return True


def _measured(address: tuple[str, int], key: str, seconds: float) -> dict[str, Any]:
    """Connect to a host that listens, and return how long an exchange takes there and back, and how much goes there."""
    try:
        with socket.create_connection(address, seconds) as connection:
            proved(connection, "the host", key, {})
            connection.settimeout(seconds)
            pings = [_exchange(connection, b".") for _ in range(_PINGS)]
            data, began, rounds = bytes(_ROUND_BYTES), time.perf_counter(), list[float]()
            while len(rounds) < _ROUNDS and (not rounds or time.perf_counter() - began < _ENOUGH_SECONDS):
                rounds.append(_exchange(connection, data))
            return {
                "round_trip": statistics.median(pings),
                "rate": _ROUND_BYTES / min(rounds),
                "came_from": connection.getsockname()[0],
            }
    except OSError as error:
        return {"problem": _reason(error, seconds)}
    except RankLostError:
        return {"problem": "another program answers there"}


def _exchange(connection: socket.socket, data: bytes) -> float:
    """Send, wait for the answer of one byte, and return the seconds."""
    began = time.perf_counter()
    connection.sendall(data)
    if not _read(connection, 1):
        raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
    return time.perf_counter() - began


def _read(connection: socket.socket, count: int) -> int:
    """Read so many bytes, or up to the end; return how many."""
    got, buffer = 0, memoryview(bytearray(min(count, _PART)))
    while got < count and (part := connection.recv_into(buffer[: count - got])):
        got += part
    return got


def _reason(error: OSError, seconds: float) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {seconds:g} seconds"
    return error.strerror or str(error)


def _receive(given: TextIO, received: "queue.SimpleQueue[dict[str, Any]]") -> None:
    for line in given:
        received.put(json.loads(line))
    os._exit(GONE)


def _beat(say: Callable[..., None]) -> None:
    while True:
        time.sleep(BEAT_SECONDS)
        say("alive")
