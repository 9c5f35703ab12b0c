"""Watch the machine, a command and servers: one sample after the other."""

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
"""Servers are not asked more often; a sample between has what they said last."""


@attrs.define
class Watch:
    """What is watched; another thread may change the command, and end the watch."""

    interval_seconds: float
    server: CompletionServer | None = None
    """The only server, asked by its address; None for those of this user."""
    command: int | None = None
    """The id of a process whose descendants are watched with it."""
    ended: threading.Event = attrs.field(factory=threading.Event)


@attrs.define
class _Servers:
    """What the servers said last; one thread replaces it, another reads it."""

    said: tuple[tuple[ServerReading, ...], tuple[str, ...]]


@attrs.frozen
class WatchMachine:
    """Takes samples at fixed times. A slow server delays none: it is asked by a thread of its own."""

    machine: MachineProbe
    servers: RunningServers
    probe: ServerProbe
    clock: Clock

    def __call__(self, watch: Watch, take: Callable[[MachineSample], None]) -> None:
        """Take a sample at once, at each interval, and when the watch is ended; the time of a late one is left out.

        Args:
            watch: What is watched, and until when.
            take: Gets each sample, on the thread of the caller.

        Raises:
            AccessDeniedError: The server that was named wants another key; before any sample.
        """
        servers = _Servers(self._ask(watch))
        threading.Thread(target=self._keep_asking, args=(watch, servers), name="servers", daemon=True).start()
        began = self.clock.monotonic()
        is_last = False
        while True:
            take(self._sample(watch, servers, began))
            if is_last:
                return
            passed = self.clock.monotonic() - began
            is_last = watch.ended.wait(watch.interval_seconds - passed % watch.interval_seconds)

    def _sample(self, watch: Watch, servers: _Servers, began: float) -> MachineSample:
        found, faults = servers.said
        processes = [each.process for each in found if each.process is not None]
        command = [] if watch.command is None else [watch.command]
        time, elapsed = self.clock.now().timestamp(), self.clock.monotonic() - began
        machine, trees = self.machine.read([*command, *processes])
        of_servers = dict(zip(processes, trees[len(command) :], strict=True))
        readings = (
            each if each.process is None else attrs.evolve(each, memory=of_servers[each.process]) for each in found
        )
        return MachineSample(time, elapsed, machine, trees[0] if command else None, tuple(readings), faults)

    def _keep_asking(self, watch: Watch, servers: _Servers) -> None:
        while not watch.ended.wait(max(watch.interval_seconds, LEAST_SECONDS)):
            try:
                servers.said = self._ask(watch)
            except AccessDeniedError as error:
                servers.said = (), (error.message,)

    def _ask(self, watch: Watch) -> tuple[tuple[ServerReading, ...], tuple[str, ...]]:
        if watch.server is None:
            found = tuple(map(_reading, self.servers.servers()))
            return found, self.servers.unseen()
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
