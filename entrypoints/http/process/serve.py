"""``mlxk serve``: binds the listening sockets, then supervises a worker, or serves in this process."""

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence

import mlxk
from mlxk.domain.errors import InterruptedRunError, MlxkError, StorageError
from mlxk.entrypoints.http.process.sockets import listen, others_reach, port_of
from mlxk.entrypoints.http.process.supervisor import Supervisor, WorkerOrders, stopping_signals, write_all
from mlxk.entrypoints.server_address import ServerAddress
from mlxk.entrypoints.settings import ServerSettings, Settings
from mlxk.entrypoints.start_checks import (
    require_address_space,
    require_descriptors,
    require_exporter,
    require_temporary_folder,
)


def serve(settings: Settings, server: ServerSettings, announcement: Callable[[ServerAddress], str]) -> int:
    """Serve until a signal ends it; return the exit status.

    Args:
        settings: The environment's settings.
        server: The operator's settings, validated.
        announcement: Renders the line for standard output, written once the server is ready.

    Raises:
        PortInUseError: The port is in use by another process; nothing was loaded.
        InterruptedRunError: A signal came before the server was ready.
        BrokenPipeError: Standard output has no reader.
        MlxkError: The server cannot be started.
    """
    require_descriptors()
    require_address_space()
    require_temporary_folder(settings.temporary_folder)
    if server.otlp:
        require_exporter()
    stopping = stopping_signals()
    # From here signals stay pending until the supervisor or the worker has installed its handlers.
    signal.pthread_sigmask(signal.SIG_BLOCK, stopping)
    try:
        sockets = listen(server.host, server.port)
        address = ServerAddress(host=server.host, port=port_of(sockets), others=others_reach(server.host))
        line = announcement(address) + "\n"
        try:
            if server.supervised:
                source = os.path.dirname(mlxk.__file__) if server.reload else None
                return Supervisor(server, sockets, lambda: announce(line), source).run()
            return _serve_here(sockets, settings, server, line)
        finally:
            for each in sockets:
                each.close()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, stopping)


def announce(line: str) -> None:
    """Write a line to standard output, without a buffer.

    Raises:
        BrokenPipeError: Standard output has no reader.
        StorageError: Standard output cannot be written.
    """
    try:
        write_all(sys.stdout.fileno(), line.encode(errors="backslashreplace"))
    except BrokenPipeError:
        raise
    except OSError as error:
        raise StorageError(
            f"standard output cannot be written: {error.strerror}", hint="See whether the disk it goes to is full."
        ) from error


def _serve_here(sockets: Sequence[socket.socket], settings: Settings, server: ServerSettings, line: str) -> int:
    # Imported here, since a supervisor must load neither the web framework nor the container.
    from mlxk.entrypoints.http.process.worker import serve_in_process, stop_at_end_of  # noqa: PLC0415

    reports: list[MlxkError | BrokenPipeError | None] = []

    def report(error: MlxkError | None) -> None:
        reports.append(error)
        if error is None:
            try:
                announce(line)
            except (MlxkError, BrokenPipeError) as failure:
                reports.append(failure)
                os.kill(os.getpid(), signal.SIGTERM)

    if server.until_eof:
        threading.Thread(target=stop_at_end_of, args=(sys.stdin.fileno(),), name="mlxk-lifeline", daemon=True).start()
    status = serve_in_process(sockets, settings, WorkerOrders(server), report)
    if not reports:
        raise InterruptedRunError("stopped before the server was ready")
    if reports[-1] is not None:
        raise reports[-1]
    return status
