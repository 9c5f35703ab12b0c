"""The channel between rank 0 and another rank: JSON documents over TCP, each preceded by its length.

Only JSON is sent, and nothing received is ever executed or unpickled. A connecting rank proves by HMAC that it has the
key that rank 0 made for this start. What follows is neither encrypted nor signed: the network is trusted.
"""

import contextlib
import hashlib
import hmac
import json
import secrets
import socket
import struct
import threading
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from mlxk.domain.errors import RankLostError

_LENGTH = struct.Struct(">I")
_MOST_BYTES = 2**20
"""Maximum size of a document."""
_HANDSHAKE_SECONDS = 10.0

_CHALLENGE_SECONDS = 60.0
"""Time limit for rank 0's challenge: it may still import its libraries when a rank connects."""

BEAT_SECONDS = 0.5
"""Interval between heartbeats."""

HEARTBEAT: Mapping[str, Any] = {}
"""Document that both ends send at intervals, so that a lost connection differs from an idle one."""


def versions(own: str) -> dict[str, str | None]:
    """Return the package versions that must be equal on all ranks; None for a package that is not installed.

    Args:
        own: Version of this program.
    """
    return {"mlxk": own, **{each: _version(each) for each in ("mlx", "mlx-lm")}}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


class Channel:
    """One end of a connection; ``send`` may be called on any thread, ``receive`` on one at a time.

    Args:
        connection: A connected socket.
        peer: Name of the other end in errors.
    """

    def __init__(self, connection: socket.socket, peer: str) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(None)
        self.peer = peer
        self._connection = connection
        self._lock = threading.Lock()

    def send(self, document: Any) -> None:  # noqa: ANN401 - JSON
        """Send a document.

        Raises:
            RankLostError: The connection is closed.
        """
        data = json.dumps(document, separators=(",", ":")).encode()
        try:
            with self._lock:
                self._connection.sendall(_LENGTH.pack(len(data)) + data)
        except OSError as error:
            raise lost(self.peer, "has closed its connection") from error

    def receive(self, seconds: float | None = None) -> Any:  # noqa: ANN401 - JSON
        """Wait for a document and return it.

        Args:
            seconds: Time limit for each read; None: no limit.

        Raises:
            RankLostError: The connection is closed, the time limit is over, or the data are no valid document.
        """
        try:
            self._connection.settimeout(seconds)
            (length,) = _LENGTH.unpack(self._read(_LENGTH.size))
            if length > _MOST_BYTES:
                raise lost(self.peer, "sends what no rank sends")
            return json.loads(self._read(length))
        except TimeoutError as error:
            raise lost(self.peer, f"has been silent for {seconds:g} seconds") from error
        except (OSError, EOFError) as error:
            raise lost(self.peer, "has closed its connection") from error
        except (ValueError, RecursionError) as error:  # the latter for a document that is nested too deeply
            raise lost(self.peer, "sends what no rank sends") from error

    def beat(self) -> None:
        """Send heartbeats until the connection is closed."""
        with contextlib.suppress(RankLostError):
            while True:
                time.sleep(BEAT_SECONDS)
                self.send(HEARTBEAT)

    def close(self) -> None:
        """Shut the connection down, which interrupts a ``receive`` on another thread."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    def _read(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            part = self._connection.recv(count - len(data))
            if not part:
                raise EOFError
            data += part
        return bytes(data)


def lost(peer: str, reason: str) -> RankLostError:
    """Return the error for a lost rank.

    Args:
        peer: Name of the rank; subject of the sentence.
        reason: What happened to it; continues the sentence.
    """
    return RankLostError(
        f"The model was spread over several processes, and {peer} {reason}.",
        hint="They are started again; send the request again in a moment.",
    )


def admit(connection: socket.socket, key: str) -> tuple[Channel, dict[str, Any]]:
    """Challenge a connecting rank to prove that it has the key; return the channel and the facts that it sends.

    Raises:
        RankLostError: It does not have the key.
    """
    channel = Channel(connection, "another process")
    nonce = secrets.token_hex(16)
    try:
        channel.send({"nonce": nonce})
        hello = channel.receive(_HANDSHAKE_SECONDS)
    except RankLostError:
        channel.close()
        raise
    proof = hello.get("proof") if isinstance(hello, dict) else None
    # ``replace``: JSON can contain lone surrogates, which cannot be encoded.
    if not isinstance(proof, str) or not hmac.compare_digest(
        proof.encode(errors="replace"), _proof(key, nonce).encode()
    ):
        channel.close()
        raise lost(channel.peer, "does not have the key of this start")
    return channel, hello


def introduce(address: tuple[str, int], key: str, facts: dict[str, Any], seconds: float) -> Channel:
    """Connect to rank 0, prove that this rank has the key, and send its facts; return the channel.

    Raises:
        RankLostError: Rank 0 cannot be reached, or another program answers.
    """
    try:
        connection = socket.create_connection(address, timeout=seconds)
    except OSError as error:
        raise lost("rank 0", f"cannot be reached at {address[0]}:{address[1]}") from error
    return proved(connection, "rank 0", key, facts)


def proved(connection: socket.socket, peer: str, key: str, facts: dict[str, Any]) -> Channel:
    """Answer the challenge on a connection with a proof of the key and this end's facts; return the channel.

    Raises:
        RankLostError: The other end is another program.
    """
    channel = Channel(connection, peer)
    challenge = channel.receive(_CHALLENGE_SECONDS)
    if not isinstance(challenge, dict) or not isinstance(challenge.get("nonce"), str):
        raise lost(peer, "sends what no rank sends")
    channel.send({**facts, "proof": _proof(key, challenge["nonce"])})
    return channel


def _proof(key: str, nonce: str) -> str:
    return hmac.new(key.encode(), nonce.encode(), hashlib.sha256).hexdigest()
