"""Starting the other ranks of a model, and the port to which they connect. Does not import MLX.

The ranks start up while this process imports its own libraries, which takes about as long.
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
"""Interval at which the processes are checked while waiting for connections."""


@attrs.frozen
class RankPlace:
    """The host of a rank and the command that starts it."""

    label: str
    """Name of the rank in error messages."""
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
    """Places of ranks 1, 2, …"""
    same_files: bool
    """Whether all ranks read the files of one machine, so that file contents need not be compared."""
    orders: Mapping[str, Any] = attrs.field(factory=dict)
    """Further orders for every rank."""
    silent_seconds: float = 5.0
    """Time without a heartbeat after which a rank is lost."""

    @property
    def size(self) -> int:
        """Number of ranks, this one included."""
        return len(self.others) + 1


def launched(division: Division, module: str, orders: Mapping[str, Any]) -> "Launch":
    """Start the other ranks of a model.

    Args:
        division: The hosts of the model's ranks, at least two.
        module: Python module that runs a rank.
        orders: Further orders for every rank.

    Raises:
        ExecutionError: See ``Launch``.
    """
    first, *others = division.hosts
    places = tuple(place_of(rank, each, module) for rank, each in enumerate(others, 1))
    return Launch(RankPlan(first.address, places, division.same_files, orders, division.silent_seconds))


def place_of(rank: int, host: RankHost, module: str) -> RankPlace:
    """Return how a rank is started on a host; rank 0 is always started on this machine."""
    is_first = rank == 0
    python = None if is_first else host.python
    command = (python or sys.executable, "-P", "-m", module)
    if host.is_here or is_first:
        return RankPlace(f"rank {rank}", command, host.address)
    # The user's ssh configuration applies. BatchMode: a password prompt would never be seen.
    over_ssh = ("ssh", "-T", "-o", "BatchMode=yes", host.ssh, shlex.join(command))
    return RankPlace(f"rank {rank} on {host.ssh}", over_ssh, host.address)


class Launch:
    """The processes of the other ranks, and the listener to which they connect.

    Args:
        plan: The group to start.

    Raises:
        ExecutionError: A rank cannot be started, or this machine does not have the address.
    """

    def __init__(self, plan: RankPlan) -> None:
        self.plan = plan
        self.key = secrets.token_hex(32)
        """Secret with which a connecting rank proves that it was started by this process."""
        self._processes: list[subprocess.Popen[bytes]] = []
        self._outputs: list[IO[bytes]] = []
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
        """Wait up to ``_LOOK_SECONDS`` for a connection and return it, or None.

        Raises:
            RankLostError: The process of a rank has ended.
        """
        for place, process, output in zip(self.plan.others, self._processes, self._outputs, strict=True):
            if process.poll() is not None:
                message = last_line(output)
                raise RankLostError(
                    f"{place.label} ended while it was started" + (f": {message}" if message else "."),
                    hint="See whether ssh and this program work there: the entry of the host may name its python.",
                )
        with contextlib.suppress(TimeoutError):
            return self._listener.accept()[0]
        return None

    def stop_listening(self) -> None:
        """Close the listener: all ranks have connected."""
        self._listener.close()

    def end(self, grace: float) -> None:
        """Close the listener, wait ``grace`` seconds for the processes to exit by themselves, and kill the others."""
        self.stop_listening()
        deadline = time.monotonic() + grace
        for process in self._processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for output in self._outputs:
            output.close()

    def _start(self, place: RankPlace, orders: dict[str, Any]) -> None:
        output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by ``end``
        self._outputs.append(output)
        try:
            # In a new session, Ctrl-C in the terminal does not reach it.
            process = subprocess.Popen(
                place.command, stdin=subprocess.PIPE, stdout=output, stderr=output, start_new_session=True
            )
        except OSError as error:
            raise ExecutionError(f"{place.label} cannot be started: {error.strerror}") from error
        self._processes.append(process)
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError), process.stdin as pipe:  # it has ended, which ``connection`` reports
            pipe.write(json.dumps(orders).encode() + b"\n")


def last_line(output: IO[bytes]) -> str:
    """Return the last line of a process's output, cut to 300 characters; an empty string if there is none."""
    output.seek(0)
    lines = output.read(65536).decode(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else ""
