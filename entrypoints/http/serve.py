"""``mlxk serve``, as the program hands it to its command line: bind, then serve here or turn into a supervisor."""

import os
import socket
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import mlxk
from mlxk.domain.errors import InterruptedRunError, MlxkError, StorageError
from mlxk.entrypoints.http import sockets
from mlxk.entrypoints.http.handover import become_supervisor, held_signals
from mlxk.entrypoints.settings import ServerAddress, ServerSettings, Settings

if TYPE_CHECKING:
    from mlxk.entrypoints.container import Container

Build = Callable[[Settings, ServerSettings | None], "Container"]


def serve(
    settings: Settings,
    server: ServerSettings,
    announcement: Callable[[ServerAddress], str],
    build: Build,
    end: Sequence[str],
) -> int:
    """Serve until a signal ends it; return the exit status. Under a supervisor this process becomes it, for good.

    Args:
        settings: The environment.
        server: The operator's decisions, validated.
        announcement: Returns the line to say on standard output when the server is ready.
        build: Wires the program.
        end: The command line of the program that tells people why a supervised server ended; gets the failure as one
            more argument.

    Raises:
        PortInUseError: Another program listens there; nothing was loaded.
        InterruptedRunError: A signal came before the server was ready.
        MlxkError: The server cannot be started.
    """
    with held_signals():
        listening = sockets.listen(server.host, server.port)
        ready = announcement(ServerAddress(host=server.host, port=sockets.ports(listening))) + "\n"
        try:
            if not sockets.is_loopback(server.host) and not server.api_keys:
                log = build(settings, None).adapters.event_log()
                log.warning("the server can be reached from other machines, and asks for no key", logger="server")
            if server.supervised:
                source = os.path.dirname(mlxk.__file__) if server.reload else ""
                become_supervisor(listening, server, ready, end=end, source=source)
            return _serve_here(listening, settings, server, ready, build)
        finally:
            for each in listening:
                each.close()


def _serve_here(
    listening: Sequence[socket.socket], settings: Settings, server: ServerSettings, ready: str, build: Build
) -> int:
    from mlxk.entrypoints.http.worker import serve_here  # noqa: PLC0415 - a supervisor does without its weight

    failures: list[MlxkError | None] = []

    def report(failure: MlxkError | None) -> None:
        failures.append(failure)
        if failure is None:
            _say(ready)

    status = serve_here(listening, settings, server, report, build)
    if not failures:
        raise InterruptedRunError("stopped before the server was ready")
    failure = failures[-1]
    if failure is not None:
        # Where nobody reads any more, this ends as any command does, in silence.
        raise failure.__cause__ if isinstance(failure.__cause__, BrokenPipeError) else failure
    return status


def _say(line: str) -> None:
    """Write a line to standard output, of which nothing stays behind in a buffer.

    Raises:
        StorageError: It takes no more.
    """
    try:
        os.write(sys.stdout.fileno(), line.encode(errors="backslashreplace"))
    except OSError as error:
        raise StorageError(
            f"standard output cannot be written: {error.strerror}", hint="See whether the disk it goes to is full."
        ) from error
