"""MLX's ring backend over TCP: joining the ring, and ending MLX's waits for lost neighbours. Imports MLX only.

MLX waits for a neighbour without a time limit. So its sockets get TCP time-outs for a peer that acknowledges nothing,
and are shut down when the group ends: each wait in a computation then fails with an error.
"""

import contextlib
import faulthandler
import json
import math
import os
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import mlx.core as mx

from mlxk.domain.errors import RankLostError

_BACKENDS = ("ring", "jaccl", "nccl", "mpi")


def available_backends() -> dict[str, bool]:
    """Return for each of MLX's communication backends whether MLX was built with it and this machine supports it."""
    return {each: mx.distributed.is_available(backend=each) for each in _BACKENDS}


EnvironmentSetter = Callable[[Mapping[str, str]], contextlib.AbstractContextManager[None]]
"""Sets environment variables for the duration of a block: MLX reads the settings of a group from nowhere else."""

_DESCRIPTORS = "/dev/fd"
"""Directory of the open file descriptors of this process, on Linux and macOS."""

_PROBES = 3
"""Unanswered keep-alive probes after which an idle connection is closed."""


JOIN_SECONDS = 30.0
"""Time after which the process exits if a neighbour is lost while MLX joins: MLX waits forever and blocks Python."""


class Ring:
    """A rank's position in the ring: it accepts a connection of the previous rank and connects to the next one.

    Args:
        host: The address of this machine on which to listen.

    Raises:
        RankLostError: This machine does not have the address.
    """

    def __init__(self, host: str) -> None:
        self._listener = _listening(host)
        self.port: int = self._listener.getsockname()[1]
        self._rank = 0
        self._addresses: Sequence[str] = ()

    def meet(self, rank: int, addresses: Sequence[str], seconds: float) -> None:
        """Test the connections to both neighbours, since MLX's own attempt could not be interrupted.

        Args:
            rank: Number of this rank.
            addresses: HOST:PORT on which each rank listens.
            seconds: Time limit for each connection.

        Raises:
            RankLostError: Names the rank that cannot be reached.
        """
        self._rank, self._addresses = rank, addresses
        following = (rank + 1) % len(addresses)
        host, _, port = addresses[following].rpartition(":")
        with self._listener:
            try:
                socket.create_connection((host, int(port)), timeout=seconds).close()
            except OSError as error:
                raise RankLostError(
                    f"rank {rank} cannot reach rank {following} at {addresses[following]}: {error.strerror or error}",
                    hint="See the addresses in the file of hosts, and what filters packets between them.",
                ) from error
            self._listener.settimeout(seconds)
            try:
                self._listener.accept()[0].close()
            except OSError as error:
                previous = (rank - 1) % len(addresses)
                raise RankLostError(f"rank {previous} has not reached rank {rank} at {addresses[rank]}.") from error

    def join(self, set_environment: EnvironmentSetter, silent_seconds: float) -> Any:  # noqa: ANN401
        """Join MLX's group of all ranks, and return it; possible once in the life of a process.

        ``meet`` must have returned on all ranks before: a rank that still listens there would accept MLX's connection.

        Args:
            set_environment: See ``EnvironmentSetter``.
            silent_seconds: Time after which the connection to a host that acknowledges nothing is closed.

        Raises:
            RankLostError: Not all ranks joined.
        """
        with tempfile.NamedTemporaryFile("w", prefix="mlxk-", suffix=".json") as file, open(os.devnull, "w") as nowhere:
            json.dump([[each] for each in self._addresses], file)
            file.flush()
            # MLX reads the variables while it initializes a group.
            with set_environment({"MLX_RANK": str(self._rank), "MLX_HOSTFILE": file.name}):
                faulthandler.dump_traceback_later(JOIN_SECONDS, exit=True, file=nowhere)
                try:
                    group = mx.distributed.init(strict=True, backend="ring")
                except RuntimeError as error:
                    raise RankLostError(f"The ranks cannot reach each other: {str(error)[:200]}") from error
                finally:
                    faulthandler.cancel_dump_traceback_later()
        for connection in self._connections():
            _set_timeouts(connection, silent_seconds)
        return group

    def break_up(self) -> None:
        """Shut MLX's connections down: a computation that waits on one fails with an error."""
        self._listener.close()
        for connection in self._connections():
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _connections(self) -> Iterator[socket.socket]:
        """Yield duplicates of MLX's sockets to the neighbours, found among all descriptors: MLX keeps them private."""
        for name in os.listdir(_DESCRIPTORS):
            with contextlib.suppress(OSError):  # closed meanwhile
                if not stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                    continue
                with socket.socket(fileno=os.dup(int(name))) as connection:
                    if self._is_mine(connection):
                        yield connection

    def _is_mine(self, connection: socket.socket) -> bool:
        try:
            ends = (connection.getsockname(), connection.getpeername())
            ours, theirs = (f"{host}:{port}" for host, port in ends)
        except (OSError, ValueError):  # not connected, or of another address family
            return False
        return theirs in self._addresses or ours in self._addresses[self._rank : self._rank + 1]


def _listening(host: str) -> socket.socket:
    try:
        return socket.create_server((host, 0))
    except OSError as error:
        raise RankLostError(f"This machine cannot listen on {host}: {error.strerror}") from error


def _set_timeouts(connection: socket.socket, seconds: float) -> None:
    """Have the system close a connection whose peer acknowledges neither data nor keep-alive probes for so long."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    interval = max(1, math.ceil(seconds / (_PROBES + 1)))
    idle = getattr(socket, "TCP_KEEPIDLE", getattr(socket, "TCP_KEEPALIVE", None))  # the name on macOS
    limits = {idle: interval, socket.TCP_KEEPINTVL: interval, socket.TCP_KEEPCNT: _PROBES}
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
        limits[socket.TCP_USER_TIMEOUT] = round(seconds * 1000)
    for option, value in limits.items():
        if option is not None:
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
