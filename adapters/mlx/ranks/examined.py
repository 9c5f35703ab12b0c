"""The host's side of an examination: reports about the host, and one end of each measured link. Does not import MLX.

``examination`` starts this process on the host and sends it orders on standard input, each a line of JSON. Answers go
to standard output as lines of JSON with a ``kind``. The process exits as soon as its input ends, whatever it is doing.
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
"""Interval between heartbeats."""

GONE = 0
"""Exit status after the end of the input."""

_PINGS = 32
_ROUNDS = 3
_ROUND_BYTES = 4 * 2**20
_ENOUGH_SECONDS = 0.5
"""Time after which no further round of the throughput measurement begins."""
_PART = 256 * 1024

Account = Callable[[], dict[str, Any]]
"""``follower.account``, bound to its arguments; imports libraries of models."""


@attrs.frozen
class HostKnowledge:
    """The facts that a host reports."""

    reading: MemoryReading | None
    own_version: str
    """Version of this program."""
    backends: Callable[[], dict[str, bool]]
    """``ring.available_backends``, which imports MLX."""
    account: Account | None
    """None if the examination is about no model."""

    def facts(self) -> dict[str, Any]:
        """Return the facts about MLX and the model, or a ``problem``."""
        try:
            return {"backends": self.backends()} if self.account is None else self.account()
        except ImportError as error:
            return {"problem": f"MLX cannot be imported: {str(error).splitlines()[0][:200]}"}
        except MlxkError as error:
            return {"problem": error.message}


def examined(orders: Mapping[str, Any], known: HostKnowledge, incoming: TextIO, outgoing: TextIO) -> None:
    """Answer orders until the input ends, which ends this process.

    Args:
        orders: The ``address`` of this host in the file of hosts, the address of the first host (``towards``), and the
            ``seconds`` that each part of an exchange may take.
        known: The facts to report.
        incoming: Further orders.
        outgoing: Receives the answers.
    """
    lock = threading.Lock()

    def send(kind: str, **facts: object) -> None:
        with lock:
            outgoing.write(json.dumps({"kind": kind, **facts}) + "\n")
            outgoing.flush()

    received: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(incoming, received), name="mlxk-examined", daemon=True).start()
    address, seconds, reading = orders["address"], orders["seconds"], known.reading
    send(
        "hello",
        python=platform.python_version(),
        versions=versions(known.own_version),
        reading=None if reading is None else [reading.total, reading.available, reading.accelerator_limit],
        deaf=_listening_fault(address),
        own_address=_own_address(orders["towards"]),
    )
    threading.Thread(target=_beat, args=(send,), name="mlxk-examined-beat", daemon=True).start()
    send("account", **known.facts())
    while True:
        order = received.get()
        if order["do"] == "listen":
            # In a thread: waiting for a connection must not delay the other links of this host.
            listening = (address, order["key"], seconds, send)
            threading.Thread(target=_listen, args=listening, name="mlxk-examined-link", daemon=True).start()
        else:
            send("link", **_measured((order["address"], order["port"]), order["key"], seconds))


def _listening_fault(address: str) -> str | None:
    """Return ``taken`` or ``elsewhere`` if this host cannot listen on an address; None if it can."""
    try:
        with socket.create_server((address, 0)):
            return None
    except OSError as error:
        return "taken" if error.errno == errno.EADDRINUSE else "elsewhere"


def _own_address(towards: str) -> str | None:
    """Return the local address that the system would use to reach an address; sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((towards, 9))
        except OSError:
            return None
        own: str = probe.getsockname()[0]
        return own


def _listen(address: str, key: str, seconds: float, send: Callable[..., None]) -> None:
    """Listen on a free port of one address, and serve the measurement of the first host that has the key."""
    try:
        listener = socket.create_server((address, 0))
    except OSError as error:
        send("port", port=None, problem=_reason(error, seconds))
        return
    with listener, contextlib.suppress(OSError):  # the other end of the link reports it
        send("port", port=listener.getsockname()[1])
        listener.settimeout(seconds)
        while not _serve_measurement(listener.accept()[0], key, seconds):
            pass


def _serve_measurement(connection: socket.socket, key: str, seconds: float) -> bool:
    """Answer the pings and data of a connection; return whether it had the key."""
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
    """Connect to a listening host; return the ``round_trip`` in seconds and the ``rate`` in bytes a second."""
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
    """Send data, wait for an answer of one byte, and return the duration in seconds."""
    began = time.perf_counter()
    connection.sendall(data)
    if not _read(connection, 1):
        raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
    return time.perf_counter() - began


def _read(connection: socket.socket, count: int) -> int:
    """Read and discard up to ``count`` bytes; return how many came before the end."""
    received, buffer = 0, memoryview(bytearray(min(count, _PART)))
    while received < count and (size := connection.recv_into(buffer[: count - received])):
        received += size
    return received


def _reason(error: OSError, seconds: float) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {seconds:g} seconds"
    return error.strerror or str(error)


def _receive(incoming: TextIO, received: "queue.SimpleQueue[dict[str, Any]]") -> None:
    for line in incoming:
        received.put(json.loads(line))
    os._exit(GONE)


def _beat(send: Callable[..., None]) -> None:
    while True:
        time.sleep(BEAT_SECONDS)
        send("alive")
