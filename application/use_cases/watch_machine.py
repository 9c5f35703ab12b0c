"""Sample the machine, a command and servers at fixed intervals."""

import threading
from collections.abc import Callable

import attrs

from mlxk.application.ports.measuring import CompletionServer, MachineProbe, ServerProbe
from mlxk.application.ports.other_processes import RunningServer, RunningServers
from mlxk.application.ports.system import Clock
from mlxk.domain.errors import AccessDeniedError, NetworkError
from mlxk.domain.models.model import served_id
from mlxk.domain.monitoring import MachineSample, ServerReading, WatchedModel

LEAST_SECONDS = 0.2
"""Shortest interval of requests to servers; a sample in between repeats their last readings."""


@attrs.define
class Watch:
    """The targets of a watch. Another thread may set ``command``, and ends the watch by setting ``ended``."""

    interval_seconds: float
    server: CompletionServer | None = None
    """The only server to watch, by its address; None watches the running servers of this user."""
    command: int | None = None
    """Id of a process to watch with its descendants."""
    ended: threading.Event = attrs.field(factory=threading.Event)


@attrs.define
class _LastReadings:
    """The last readings of the servers, replaced by one thread and read by another."""

    readings: tuple[tuple[ServerReading, ...], tuple[str, ...]]
    """The readings, and a sentence for each server that could not be read; assigned together, hence atomically."""


@attrs.frozen
class WatchMachine:
    """Takes samples at fixed times. A thread of its own reads the servers, so that a slow one delays no sample."""

    machine: MachineProbe
    servers: RunningServers
    probe: ServerProbe
    clock: Clock

    def __call__(self, watch: Watch, take: Callable[[MachineSample], None]) -> None:
        """Take a sample at once, at each interval, and when the watch ends; intervals that were missed are skipped.

        Args:
            watch: The targets, and the event that ends the watch.
            take: Callback with each sample, on the calling thread.

        Raises:
            AccessDeniedError: The server of the watch rejects the API key; only before the first sample.
        """
        servers = _LastReadings(self._read(watch))
        threading.Thread(target=self._keep_reading, args=(watch, servers), name="servers", daemon=True).start()
        began = self.clock.monotonic()
        is_last = False
        while True:
            take(self._sample(watch, servers, began))
            if is_last:
                return
            passed = self.clock.monotonic() - began
            is_last = watch.ended.wait(watch.interval_seconds - passed % watch.interval_seconds)

    def _sample(self, watch: Watch, servers: _LastReadings, began: float) -> MachineSample:
        readings, faults = servers.readings
        processes = [each.process for each in readings if each.process is not None]
        command = [] if watch.command is None else [watch.command]
        time, elapsed = self.clock.now().timestamp(), self.clock.monotonic() - began
        machine, trees = self.machine.read([*command, *processes])
        tree_of = dict(zip(processes, trees[len(command) :], strict=True))
        with_memory = (
            each if each.process is None else attrs.evolve(each, memory=tree_of[each.process]) for each in readings
        )
        return MachineSample(time, elapsed, machine, trees[0] if command else None, tuple(with_memory), faults)

    def _keep_reading(self, watch: Watch, servers: _LastReadings) -> None:
        while not watch.ended.wait(max(watch.interval_seconds, LEAST_SECONDS)):
            try:
                servers.readings = self._read(watch)
            except AccessDeniedError as error:
                servers.readings = (), (error.message,)

    def _read(self, watch: Watch) -> tuple[tuple[ServerReading, ...], tuple[str, ...]]:
        """Return the readings of the servers, and a sentence for each server that could not be read."""
        if watch.server is None:
            readings = tuple(map(_reading, self.servers.servers()))
            return readings, self.servers.unseen()
        try:
            return (self.probe.read(watch.server),), ()
        except NetworkError as error:
            return (), (error.message,)


def _reading(server: RunningServer) -> ServerReading:
    models = (
        WatchedModel(served_id(each.handle), each.weight_bytes, each.in_use, each.tokens_per_second)
        for each in server.models
    )
    return ServerReading(server.url, server.process, tuple(models), server.engine)
