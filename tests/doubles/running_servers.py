"""In-memory double of the running servers."""

import attrs

from mlxk.application.ports.other_processes import ComputingPlace, RunningServer, RunningServers
from mlxk.application.ports.text_generator import ResidentModel
from mlxk.domain.errors import ExecutionError


class InMemoryRunningServers(RunningServers):
    """Lists given servers.

    Args:
        servers: The running servers.
        busy: Names of models in use, which are not unloaded at once.
    """

    def __init__(self, *servers: RunningServer, busy: tuple[str, ...] = ()) -> None:
        self._models = {server: list(server.models) for server in servers}
        self._busy = busy
        self.place: ComputingPlace | None = None
        self.hidden: tuple[str, ...] = ()

    def servers(self, seconds: float | None = None) -> tuple[RunningServer, ...]:
        found = (attrs.evolve(server, models=tuple(models)) for server, models in self._models.items())
        return tuple(sorted(found, key=lambda each: each.process))

    def unseen(self) -> tuple[str, ...]:
        return self.hidden

    def unload(self, server: RunningServer, model: ResidentModel) -> bool:
        models = self._models[self._known(server)]
        if model.handle.name in self._busy:
            return False
        models[:] = [each for each in models if each.handle != model.handle]
        return True

    def stop(self, server: RunningServer) -> None:
        del self._models[self._known(server)]

    def last_place(self) -> ComputingPlace | None:
        return self.place

    def _known(self, server: RunningServer) -> RunningServer:
        for known in self._models:
            if known.key == server.key:
                return known
        raise ExecutionError(f"the server {server.url} does not respond")
