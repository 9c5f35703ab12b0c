"""Starting the other ranks of a model, and the port at which they connect. It does not import MLX.

They start while this process imports its own libraries, which takes as long.
"""

import contextlib
import json
import secrets
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import IO, Any

import attrs

from mlxk.domain.errors import ExecutionError, RankLostError
from mlxk.domain.ranks import Division, RankHost

_LOOK_SECONDS = 0.2
"""Between two looks whether the processes still run."""


@attrs.frozen
class RankPlace:
    """Where a rank runs, and how it is started."""

    label: str
    """For errors."""
    command: tuple[str, ...]
    """Runs the program of a rank, which reads its orders as a line of JSON from standard input."""
    address: str
    """The address on which it listens for other ranks."""


@attrs.frozen
class RankPlan:
    """A group to start."""

    address: str
    """The address of this machine on which rank 0 listens for the others."""
    others: tuple[RankPlace, ...]
    """Of rank 1, 2 …"""
    same_files: bool
    """Whether all ranks read the files of one machine, so that their contents need not be compared."""
    orders: Mapping[str, Any] = attrs.field(factory=dict)
    """What every rank is told beside."""
    silent_seconds: float = 5.0
    """A rank that shows no sign of life for so long is lost."""

    @property
    def size(self) -> int:
        """Ranks, this one included."""
        return len(self.others) + 1


def launched(division: Division, module: str, orders: Mapping[str, Any]) -> "Launch":
    """Start the other ranks of a model.

    Args:
        division: Over which processes it is spread, more than one.
        module: The one that runs a rank.
        orders: What every rank is told beside.

    Raises:
        ExecutionError: See ``Launch``.
    """
    first, *others = division.hosts
    places = tuple(place_of(rank, each, module) for rank, each in enumerate(others, 1))
    return Launch(RankPlan(first.address, places, division.same_files, orders, division.silent_seconds))


def place_of(rank: int, host: RankHost, module: str) -> RankPlace:
    """Return how a rank is started on a host; the first one is started here, whatever its name."""
    is_first = rank == 0
    python = None if is_first else host.python
    command = (python or sys.executable, "-P", "-m", module)
    if host.is_here or is_first:
        return RankPlace(f"rank {rank}", command, host.address)
    # The user's own configuration decides how; it is never asked for a password, which nobody would see.
    over_ssh = ("ssh", "-T", "-o", "BatchMode=yes", host.ssh, shlex.join(command))
    return RankPlace(f"rank {rank} on {host.ssh}", over_ssh, host.address)


class Launch:
    """The other ranks, started, until they have connected or are ended.

    Args:
        plan: What to start.

    Raises:
        ExecutionError: One cannot be started, or this machine does not have the address.
    """

    def __init__(self, plan: RankPlan) -> None:
        self.plan = plan
        self.key = secrets.token_hex(32)
        """What a rank that connects must have."""
        self._processes: list[subprocess.Popen[bytes]] = []
        self._printed: list[IO[bytes]] = []
        try:
            self._listener = socket.create_server((plan.address, 0), backlog=plan.size)
        except OSError as error:
            raise ExecutionError(f"This machine cannot listen on {plan.address}: {error.strerror}") from error
        self._listener.settimeout(_LOOK_SECONDS)
        port = self._listener.getsockname()[1]
        try:
            for rank, place in enumerate(plan.others, 1):
                orders = {"address": plan.address, "port": port, "key": self.key, "rank": rank}
                further = {"listens": place.address, "silent": plan.silent_seconds}
                self._start(place, {**plan.orders, **orders, **further})
        except BaseException:
            self.end(0.0)
            raise

    def connection(self) -> socket.socket | None:
        """Wait a moment for a process that connects; return None when there was none.

        Raises:
            RankLostError: A rank has ended.
        """
        for place, process, printed in zip(self.plan.others, self._processes, self._printed, strict=True):
            if process.poll() is not None:
                said = last_line(printed)
                raise RankLostError(
                    f"{place.label} ended while it was started" + (f": {said}" if said else "."),
                    hint="See whether ssh and this program work there: the entry of the host may name its python.",
                )
        with contextlib.suppress(TimeoutError):
            return self._listener.accept()[0]
        return None

    def stop_listening(self) -> None:
        """Accept no further connection: all ranks have come."""
        self._listener.close()

    def end(self, grace: float) -> None:
        """End all processes, which end by themselves within so many seconds, or are killed."""
        self.stop_listening()
        deadline = time.monotonic() + grace
        for process in self._processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for file in self._printed:
            file.close()

    def _start(self, place: RankPlace, orders: dict[str, Any]) -> None:
        printed: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed when the process has ended
        self._printed.append(printed)
        try:
            # A session of its own keeps Ctrl-C of the terminal from it.
            process = subprocess.Popen(
                place.command, stdin=subprocess.PIPE, stdout=printed, stderr=printed, start_new_session=True
            )
        except OSError as error:
            raise ExecutionError(f"{place.label} cannot be started: {error.strerror}") from error
        self._processes.append(process)
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError), process.stdin as pipe:  # of one that ended, which is seen later
            pipe.write(json.dumps(orders).encode() + b"\n")


def last_line(printed: IO[bytes]) -> str:
    """Return the last line of what a process has printed, or its beginning; an empty one when there is none."""
    printed.seek(0)
    lines = printed.read(65536).decode(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else ""
