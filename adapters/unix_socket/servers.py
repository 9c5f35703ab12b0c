"""The running servers of this user, found by their sockets in a folder: listed, stopped, and offered requests."""

import contextlib
import hashlib
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import Any

import attrs

from mlxk.adapters.unix_socket.protocol import (
    PROTOCOL,
    DisconnectedError,
    Document,
    Program,
    decoded,
    encoded,
    is_own_peer,
    known_fields,
    receive,
    send,
)
from mlxk.application.ports.other_processes import ComputingPlace, RunningServer, RunningServers
from mlxk.application.ports.text_generator import ResidentModel
from mlxk.domain.errors import ExecutionError, StorageError
from mlxk.domain.generation.request import EngineFigures
from mlxk.domain.models.model import ModelHandle

SUFFIX = ".sock"

_LONGEST_PATH = 100
"""Bytes of a socket's path; systems allow 103 to 107."""

_ATTEMPTS = 3
"""Attempts to listen in a folder, which the last server in it may remove at the same moment."""


def socket_folders(wanted: str) -> tuple[str, ...]:
    """Return the folders for sockets: the wanted one, unless its paths are too long, and a short one in ``/tmp``.

    The second is for wanted folders that support no sockets, as on some network drives. A server uses the first that
    works; clients search both.
    """
    digest = hashlib.sha256(os.fsencode(wanted)).hexdigest()[:12]
    short = f"/tmp/mlxk-{os.geteuid()}-{digest}"
    fits = len(os.fsencode(os.path.join(wanted, socket_name(2**22)))) <= _LONGEST_PATH
    return (wanted, short) if fits else (short,)


def socket_name(process: int) -> str:
    """Return the name of a process's socket; it includes the machine, since several may share a network folder."""
    return f"{process}-{hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]}{SUFFIX}"


def require_own_folder(path: str) -> None:
    """Check that a folder belongs to this user, and that no other user may enter it.

    Raises:
        FileNotFoundError: It does not exist.
        StorageError: Another user could create a socket there.
    """
    status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise StorageError(f"'{path}' is not a folder of this user alone", hint=f"Remove it, or: chmod 700 '{path}'")


def listen(folder: str, backlog: int) -> tuple[socket.socket, str]:
    """Create the listening socket of this process in a folder, which is created as needed; return it and its path.

    Args:
        folder: The folder for sockets.
        backlog: Number of connections that may wait.

    Raises:
        OSError: The folder cannot be created, or supports no sockets.
        StorageError: Other users have access to the folder.
    """
    for _ in range(_ATTEMPTS - 1):
        with contextlib.suppress(FileNotFoundError):
            return _listen(folder, backlog)
    return _listen(folder, backlog)


def _listen(folder: str, backlog: int) -> tuple[socket.socket, str]:
    os.makedirs(os.path.dirname(folder), mode=0o700, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder, mode=0o700)
    require_own_folder(folder)
    _remove_stale(folder)
    path = os.path.join(folder, socket_name(os.getpid()))
    # Bound under another name: until it listens, it looks like a stale socket, which other servers remove.
    temporary = path.removesuffix(SUFFIX)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)  # of an earlier process with this id
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listening.bind(temporary)
        os.chmod(temporary, 0o600)
        listening.listen(backlog)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.connect(temporary)  # some file systems allow to create sockets, but not to connect
            listening.accept()[0].close()
        os.rename(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        listening.close()
        raise
    return listening, path


def _remove_stale(folder: str) -> None:
    """Remove the sockets of servers of this machine that have ended."""
    suffix = socket_name(0).removeprefix("0")
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        if not name.endswith(suffix):
            continue
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            try:
                probe.connect(path)
            except ConnectionRefusedError:  # on macOS also if the backlog is full
                if not _is_running(_process_of(path)):
                    os.unlink(path)


REPLY_SECONDS = 2.0
"""Timeout of a server's reply, after which it counts as not responding."""

UNLOAD_SECONDS = 10.0
"""Timeout of the reply whether a server has unloaded a model."""

STOP_SECONDS = 60.0
"""How long a server may take to stop; it waits half of that for running answers."""

_OWNER_SECONDS = 2.0
"""How long to wait for a supervisor to end after its worker; one that its parent does not reap never seems to end."""


@attrs.frozen
class Offer:
    """A server that accepts a request."""

    connection: socket.socket
    server: str
    loaded: bool
    """Whether it has the model in memory; otherwise the model fits."""


class SocketRunningServers(RunningServers):
    """Finds the servers of this user by their sockets.

    Args:
        folder: The folder for sockets, which need not exist.
        program: This program.
    """

    def __init__(self, folder: str, program: Program) -> None:
        self._folders = socket_folders(folder)
        self._program = program
        self._place: ComputingPlace | None = None
        self._unseen: list[str] = []

    def servers(self, seconds: float | None = None) -> tuple[RunningServer, ...]:
        found = []
        for path, connection in self._connections():
            with closing(connection), suppress(DisconnectedError, LookupError, TypeError, ValueError):
                connection.settimeout(REPLY_SECONDS if seconds is None else seconds)
                try:
                    document = _request(connection, "state")
                except TimeoutError:
                    self._unseen.append(f"the server with the process {_process_of(path)} does not respond")
                    continue
                except OSError:  # it has ended
                    continue
                models = tuple(_resident(each) for each in document["models"])
                process, url, version = int(document["pid"]), str(document["url"]), str(document["version"])
                figures = document.get("engine")  # earlier versions do not send it
                engine = None if figures is None else EngineFigures(**known_fields(EngineFigures, figures))
                found.append(RunningServer(path, process, url, version, models, engine))
        return tuple(sorted(found, key=lambda each: each.process))

    def unseen(self) -> tuple[str, ...]:
        return tuple(self._unseen)

    def unload(self, server: RunningServer, model: ResidentModel) -> bool:
        with closing(self._connection_to(server)) as connection:
            try:
                connection.settimeout(UNLOAD_SECONDS)
                return bool(_request(connection, "unload", model=encoded(model.handle, [])).get("unloaded"))
            except (OSError, DisconnectedError):
                raise _not_responding(server) from None

    def stop(self, server: RunningServer) -> None:
        with closing(self._connection_to(server)) as connection:
            try:
                _request(connection, "stop")
                connection.settimeout(STOP_SECONDS)
                while connection.recv(1):  # closed at the end of the process
                    pass
            except TimeoutError:
                raise ExecutionError(f"{_named(server)} has not stopped within {STOP_SECONDS:g} s") from None
            except (OSError, DisconnectedError):
                return  # it has ended already
        if server.process != os.getpid():
            _wait_for(server.process)

    def last_place(self) -> ComputingPlace | None:
        return self._place

    def computed_here(self, reason: str) -> None:
        """Note that a request is computed in this process."""
        self._place = ComputingPlace(None, reason)

    def offer(self, model: ModelHandle) -> Offer | None:
        """Return a server that accepts a request for a model, preferably one that has the model in memory."""
        best: Offer | None = None
        reason = "no server of this user is running"
        fields = {"program": self._program.facts(), "model": encoded(model, [])}
        for _, connection in self._connections():
            offered = None
            try:
                document = _request(connection, "offer", **fields)
                url, loaded = str(document.get("url")), document.get("offer")
                reason = f"the server {url} {document.get('reason')}"
                offered = Offer(connection, url, loaded == "loaded") if loaded else None
            except (OSError, DisconnectedError):
                reason = "the server does not respond"
            if offered is None or (best is not None and not offered.loaded):
                connection.close()
                continue
            if best is not None:
                best.connection.close()
            best = offered
            if best.loaded:
                break
        reason = self._unseen[0] if self._unseen else reason
        self._place = ComputingPlace(None, reason) if best is None else ComputingPlace(best.server)
        return best

    def _connection_to(self, server: RunningServer) -> socket.socket:
        connection = _connect(server.key)
        if connection is None:
            raise _not_responding(server)
        return connection

    def _connections(self) -> Iterator[tuple[str, socket.socket]]:
        """Yield path and connection of each socket on which a server listens."""
        self._unseen = []
        for folder in self._folders:
            try:
                require_own_folder(folder)
                names = sorted(name for name in os.listdir(folder) if name.endswith(SUFFIX))
            except StorageError as error:
                self._unseen.append(f"{error.message}, so no server is reached there. {error.hint}")
                continue
            except OSError:  # it does not exist
                continue
            for path in (os.path.join(folder, name) for name in names):
                connection = _connect(path)
                if connection is not None:
                    yield path, connection


def _connect(path: str) -> socket.socket | None:
    """Return a connection to a socket; None if no server of this user listens."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(REPLY_SECONDS)
    try:
        connection.connect(path)
        if is_own_peer(connection):
            return connection
    except OSError:
        pass
    connection.close()
    return None


def _process_of(path: str) -> str:
    return os.path.basename(path).partition("-")[0]


def _is_running(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ValueError, OverflowError, ProcessLookupError):
        return False
    except OSError:  # of another user
        return True
    return True


def _request(connection: socket.socket, operation: str, **fields: Any) -> Document:  # noqa: ANN401 - JSON
    send(connection, {"protocol": PROTOCOL, "operation": operation, **fields})
    return receive(connection)[0]


def _resident(document: Document) -> ResidentModel:
    return ResidentModel(**known_fields(ResidentModel, document | {"handle": decoded(document["handle"])}))


def _wait_for(process: int) -> None:
    """Wait until a supervisor has ended, shortly after its worker, so that its port is free."""
    deadline = time.monotonic() + _OWNER_SECONDS
    with suppress(OSError):  # it has ended
        while time.monotonic() < deadline:
            os.kill(process, 0)
            time.sleep(0.02)


def _not_responding(server: RunningServer) -> ExecutionError:
    return ExecutionError(f"{_named(server)} does not respond")


def _named(server: RunningServer) -> str:
    return f"the server {server.url} (process {server.process})"
