"""What supervisor and worker tell each other: lines of JSON over a pair of sockets.

The supervisor sends the settings; the worker answers that it is ready, or why it cannot be. When either side dies, the
other reads the end: a worker never outlives its supervisor, which no signal could promise on every system.
"""

import json
import socket
from collections.abc import Mapping
from typing import Any

import attrs

from mlxk.domain.errors import InternalError, MlxkError, all_error_types
from mlxk.entrypoints.server_settings import ServerSettings


def send(connection: socket.socket, message: Mapping[str, object]) -> None:
    """Send one message."""
    connection.sendall(json.dumps(message).encode() + b"\n")


def receive(connection: socket.socket) -> dict[str, Any] | None:
    """Wait for one message; return None when the other side has gone."""
    line = b""
    while not line.endswith(b"\n"):
        try:
            byte = connection.recv(1)
        except OSError:
            return None
        if not byte:
            return None
        line += byte
    message: dict[str, Any] = json.loads(line)
    return message


def settings_message(settings: ServerSettings) -> Mapping[str, object]:
    """Return settings as a message."""
    return attrs.asdict(settings)


def settings_of(message: Mapping[str, Any]) -> ServerSettings:
    """Return the settings a message holds."""
    values: dict[str, Any] = {key: tuple(each) if isinstance(each, list) else each for key, each in message.items()}
    return ServerSettings(**values)


def failure_message(error: MlxkError) -> Mapping[str, object]:
    """Return a failure as a message."""
    return {"failure": error.code, "message": error.message, "hint": error.hint, "matches": list(error.matches)}


def failure_of(message: Mapping[str, Any]) -> MlxkError:
    """Return the failure a message holds."""
    kinds = {kind.code: kind for kind in all_error_types()}
    kind = kinds.get(message["failure"], InternalError)
    return kind(message["message"], hint=message["hint"], matches=tuple(message["matches"]))
