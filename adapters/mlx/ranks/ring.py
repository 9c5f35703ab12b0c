"""MLX's ring of ranks over TCP: joining it, and what ends its waits.

MLX waits for a neighbour without limit. So its connections are told to give up a host that acknowledges nothing, and
are shut down when the group is over: each wait in a computation then ends with an error.
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

Told = Callable[[Mapping[str, str]], contextlib.AbstractContextManager[None]]
"""Sets variables of the environment for the length of a block: MLX is told of a group in no other way."""

_DESCRIPTORS = "/dev/fd"
"""Lists those of this process, on Linux as on macOS."""

_PROBES = 3
"""Unanswered ones after which a connection without traffic is given up."""


JOIN_SECONDS = 30.0
"""After which a process ends whose neighbours went while MLX joined them: it waits without limit, and stops Python."""


class Ring:
    """A rank's place in the ring: it listens for one neighbour, and connects to the other.

    Args:
        host: The address of this machine on which it listens.

    Raises:
        RankLostError: This machine does not have the address.
    """

    def __init__(self, host: str) -> None:
        self._listener = _listening(host)
        self.port: int = self._listener.getsockname()[1]
        self._rank = 0
        self._addresses: Sequence[str] = ()

    def meet(self, rank: int, addresses: Sequence[str], seconds: float) -> None:
        """See whether both neighbours can be reached, before MLX tries it, which cannot be ended.

        Args:
            rank: This one's number.
            addresses: HOST:PORT of each rank, at which it listens.
            seconds: Most time for each.

        Raises:
            RankLostError: Says which one cannot be reached.
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

    def join(self, told: Told, silent_seconds: float) -> Any:  # noqa: ANN401
        """Join MLX's group of all ranks, and return it; a process joins once in its life.

        All ranks have to have met before one joins: what still listens for a neighbour would take MLX's connection.

        Args:
            told: See ``Told``.
            silent_seconds: After which a host that acknowledges nothing is given up.

        Raises:
            RankLostError: Not all ranks came.
        """
        with tempfile.NamedTemporaryFile("w", prefix="mlxk-", suffix=".json") as file, open(os.devnull, "w") as nowhere:
            json.dump([[each] for each in self._addresses], file)
            file.flush()
            # MLX reads them when a group is made.
            with told({"MLX_RANK": str(self._rank), "MLX_HOSTFILE": file.name}):
                faulthandler.dump_traceback_later(JOIN_SECONDS, exit=True, file=nowhere)
                try:
                    group = mx.distributed.init(strict=True, backend="ring")
                except RuntimeError as error:
                    raise RankLostError(f"The ranks cannot reach each other: {str(error)[:200]}") from error
                finally:
                    faulthandler.cancel_dump_traceback_later()
        for connection in self._connections():
            _give_up_after(connection, silent_seconds)
        return group

    def break_up(self) -> None:
        """Shut the connections down: whoever waits on them in a computation gets an error."""
        self._listener.close()
        for connection in self._connections():
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _connections(self) -> Iterator[socket.socket]:
        """Yield copies of the sockets that MLX has to its neighbours, which it keeps to itself."""
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
        except (OSError, ValueError):  # not connected, or of another family
            return False
        return theirs in self._addresses or ours in self._addresses[self._rank : self._rank + 1]


def _listening(host: str) -> socket.socket:
    try:
        return socket.create_server((host, 0))
    except OSError as error:
        raise RankLostError(f"This machine cannot listen on {host}: {error.strerror}") from error


def _give_up_after(connection: socket.socket, seconds: float) -> None:
    """Have a connection end when its other end acknowledges neither what is sent nor probes for so long."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    apart = max(1, math.ceil(seconds / (_PROBES + 1)))
    idle = getattr(socket, "TCP_KEEPIDLE", getattr(socket, "TCP_KEEPALIVE", None))  # macOS has the other name
    limits = {idle: apart, socket.TCP_KEEPINTVL: apart, socket.TCP_KEEPCNT: _PROBES}
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
        limits[socket.TCP_USER_TIMEOUT] = round(seconds * 1000)
    for option, value in limits.items():
        if option is not None:
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
