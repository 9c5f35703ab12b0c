"""Have servers unload a model."""

import attrs

from mlxk.application.ports.running_servers import RunningServer, RunningServers
from mlxk.application.ports.text_generator import ResidentModel
from mlxk.application.use_cases.resolve_model import ResolveModel
from mlxk.domain.errors import AmbiguousModelError, ExecutionError, MlxkError, ModelNotFoundError


@attrs.frozen
class StoppedModel:
    """A model that a server was asked to unload."""

    server: RunningServer
    model: ResidentModel
    unloaded: bool
    """Whether it is gone; if not, it goes when the server's work in progress has ended."""
    failure: ExecutionError | None = None
    """Why the server could not be asked."""


@attrs.frozen
class StopModels:
    """Unloads the model of a name in every server of this user that has it in memory."""

    servers: RunningServers
    resolve: ResolveModel

    def __call__(self, reference: str) -> tuple[StoppedModel, ...]:
        """Unload a model; a server that does not respond keeps no other one from it.

        Args:
            reference: Its name, its last part, a part of it, or a reference as for any other command.

        Raises:
            ModelNotFoundError: No server has it in memory.
            AmbiguousModelError: A part of a name fits several models in memory.
        """
        found = [(server, model) for server in self.servers.servers() for model in server.models]
        try:
            chosen = self._named(reference.strip(), found)
        except ModelNotFoundError as error:
            if not (unseen := self.servers.unseen()):
                raise
            raise ModelNotFoundError(f"{error.message}; {'; '.join(unseen)}", hint=error.hint) from error
        return tuple(self._unloaded(server, model) for server, model in chosen)

    def _unloaded(self, server: RunningServer, model: ResidentModel) -> StoppedModel:
        try:
            return StoppedModel(server, model, self.servers.unload(server, model))
        except ExecutionError as error:
            return StoppedModel(server, model, unloaded=False, failure=error)

    def _named(
        self, reference: str, found: list[tuple[RunningServer, ResidentModel]]
    ) -> list[tuple[RunningServer, ResidentModel]]:
        wanted = reference.lower()
        exact = [each for each in found if wanted in _names(each[1])]
        if exact:
            return exact
        try:
            handle = self.resolve(reference)
        except MlxkError:  # it may have been removed from the disk
            handle = None
        same = [each for each in found if handle is not None and each[1].handle.directory == handle.directory]
        if same:
            return same
        parts = [each for each in found if wanted and any(wanted in name for name in _names(each[1]))]
        names = sorted({model.handle.label for _, model in parts})
        if len(names) > 1:
            raise AmbiguousModelError(f"'{reference}' fits {len(names)} models in memory", matches=tuple(names))
        if not parts:
            loaded = sorted({model.handle.label for _, model in found})
            raise ModelNotFoundError(
                f"no server has '{reference}' in memory",
                hint=f"In memory: {', '.join(loaded)}" if loaded else "No model is in memory.",
            )
        return parts


def _names(model: ResidentModel) -> set[str]:
    handle = model.handle
    names = {handle.name, handle.short_name, handle.label}
    return {name.lower() for name in (*names, f"{handle.name}@{handle.revision}" if handle.revision else handle.name)}
