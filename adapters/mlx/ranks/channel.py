"""The channel between rank 0 and another rank: JSON documents over TCP, each with its length before it.

Numbers and names only are sent, and nothing that is received is ever executed or unpickled. A rank proves that it was
started by the one it connects to by a key that both have for this start; what follows is neither encrypted nor signed,
since it goes over a network that is trusted.
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
"""Of a document."""
_HANDSHAKE_SECONDS = 10.0

_CHALLENGE_SECONDS = 60.0
"""Rank 0 may still import its libraries when a rank has connected."""

BEAT_SECONDS = 0.5
"""Between two signs of life."""

SIGN_OF_LIFE: Mapping[str, Any] = {}
"""What both ends send beside what they have to say, so that a silent network is told from one that nobody uses."""


def versions(own: str) -> dict[str, str | None]:
    """Return the versions that must be equal on all ranks; None for what is not installed.

    Args:
        own: That of this program.
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
        connection: Connected.
        peer: Names the other end in errors.
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
            RankLostError: The other end has gone.
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
            seconds: How long each part of it may take; None: any time.

        Raises:
            RankLostError: The other end has gone, is silent for too long, or sends something else.
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
        except ValueError as error:
            raise lost(self.peer, "sends what no rank sends") from error

    def beat(self) -> None:
        """Show signs of life until the other end has gone."""
        with contextlib.suppress(RankLostError):
            while True:
                time.sleep(BEAT_SECONDS)
                self.send(SIGN_OF_LIFE)

    def close(self) -> None:
        """End the connection, which wakes whoever waits on it."""
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


def lost(peer: str, how: str) -> RankLostError:
    """Return the error for a rank that is not there any more."""
    return RankLostError(
        f"The model was spread over several processes, and {peer} {how}.",
        hint="They are started again; send the request again in a moment.",
    )


def admit(connection: socket.socket, key: str) -> tuple[Channel, dict[str, Any]]:
    """Have a rank that has connected prove that it has the key; return the channel and what it says of itself.

    Raises:
        RankLostError: It has not.
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
    if not isinstance(proof, str) or not hmac.compare_digest(proof.encode(), _proof(key, nonce).encode()):
        channel.close()
        raise lost(channel.peer, "does not have the key of this start")
    return channel, hello


def introduce(address: tuple[str, int], key: str, facts: dict[str, Any], seconds: float) -> Channel:
    """Connect to rank 0, prove that this rank has the key, and say what it is; return the channel.

    Raises:
        RankLostError: It cannot be reached, or is something else.
    """
    try:
        connection = socket.create_connection(address, timeout=seconds)
    except OSError as error:
        raise lost("rank 0", f"cannot be reached at {address[0]}:{address[1]}") from error
    return proved(connection, "rank 0", key, facts)


def proved(connection: socket.socket, peer: str, key: str, facts: dict[str, Any]) -> Channel:
    """Prove on a connection that this end has the key, and say what it is; return the channel.

    Raises:
        RankLostError: The other end is something else.
    """
    channel = Channel(connection, peer)
    challenge = channel.receive(_CHALLENGE_SECONDS)
    if not isinstance(challenge, dict) or not isinstance(challenge.get("nonce"), str):
        raise lost(peer, "sends what no rank sends")
    channel.send({**facts, "proof": _proof(key, challenge["nonce"])})
    return channel


def _proof(key: str, nonce: str) -> str:
    return hmac.new(key.encode(), nonce.encode(), hashlib.sha256).hexdigest()
