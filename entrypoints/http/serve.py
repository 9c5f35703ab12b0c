"""``mlxk serve``, as the program hands it to its command line: bind, then serve here or under a supervisor."""

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import mlxk
from mlxk.domain.errors import InterruptedRunError, MlxkError
from mlxk.entrypoints.http import control, sockets
from mlxk.entrypoints.http.supervisor import Supervision, Supervisor, source_watch
from mlxk.entrypoints.server_settings import ServerAddress, ServerSettings
from mlxk.entrypoints.settings import Settings

if TYPE_CHECKING:
    from mlxk.application.ports.event_log import EventLog
    from mlxk.entrypoints.container import Container

Build = Callable[[Settings, ServerSettings | None], "Container"]


def serve(settings: Settings, server: ServerSettings, announce: Callable[[ServerAddress], None], build: Build) -> int:
    """Serve until a signal ends it; return the exit status.

    Args:
        settings: The environment.
        server: The operator's decisions, validated.
        announce: Called once, when the server is ready.
        build: Wires the program.

    Raises:
        PortInUseError: Another program listens there; nothing was loaded.
        InterruptedRunError: A signal came before the server was ready.
        MlxkError: The server cannot be started.
    """
    listening = sockets.listen(server.host, server.port)
    address = ServerAddress(host=server.host, port=sockets.ports(listening))
    ready = False

    def announce_once() -> None:
        nonlocal ready
        ready = True
        announce(address)

    def log() -> "EventLog":
        return build(settings, None).adapters.event_log()

    try:
        if not sockets.is_loopback(server.host) and not server.api_keys:
            log().warning("the server can be reached from other machines, and asks for no key", logger="server")
        if not server.supervised:
            status = _serve_here(listening, settings, server, announce_once, build)
        else:
            changed = source_watch(os.path.dirname(mlxk.__file__)) if server.reload else None
            status = Supervisor(listening, server, Supervision(log, announce_once, changed)).run()
    finally:
        for each in listening:
            each.close()
    if not ready:
        raise InterruptedRunError("stopped before the server was ready")
    return status


def _serve_here(
    listening: Sequence[socket.socket],
    settings: Settings,
    server: ServerSettings,
    announce: Callable[[], None],
    build: Build,
) -> int:
    from mlxk.entrypoints.http.worker import serve_here  # noqa: PLC0415 - a supervisor does without its weight

    failures: list[MlxkError] = []

    def report(message: Mapping[str, Any]) -> None:
        if "failure" in message:
            failures.append(control.failure_of(message))
        else:
            announce()

    status = serve_here(listening, settings, server, report, build)
    if failures:
        raise failures[0]
    return status
