"""Have servers unload a model."""

import attrs

from mlxk.application.ports.other_processes import RunningServer, RunningServers
from mlxk.application.ports.text_generator import ResidentModel
from mlxk.application.use_cases.resolve_model import ResolveModel
from mlxk.domain.errors import ExecutionError, MlxkError, ModelNotFoundError
from mlxk.domain.models.model import ModelHandle
from mlxk.domain.models.reference import ModelRef, only_match


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
        exact = [each for each in found if reference.lower() in _full_names(each[1].handle)]
        if exact:
            return exact
        directory = self._directory(reference)
        same = [each for each in found if each[1].handle.directory == directory]
        if same:
            return same
        loaded = sorted({model.handle.label for _, model in found})
        match = only_match(reference, loaded)
        if match is None:
            raise ModelNotFoundError(
                f"no server has '{reference}' in memory",
                hint=f"In memory: {', '.join(loaded)}" if loaded else "No model is in memory.",
            )
        return [each for each in found if each[1].handle.label == match]

    def _directory(self, reference: str) -> str | None:
        """Return the directory of the model that a reference means on the disk.

        None where it means none, which may have been removed, and where it is only a part of the name: it may be a part
        of that of another model, which is in memory.
        """
        try:
            ref = ModelRef.parse(reference)
            handle = self.resolve(ref)
        except MlxkError:
            return None
        whole = handle.short_name.lower() == ref.name.lower().rpartition("/")[2]
        return handle.directory if whole or handle.alias or ref.is_path or ref.revision else None


def _full_names(handle: ModelHandle) -> set[str]:
    return {handle.name.lower(), f"{handle.name}@{handle.revision}".lower()}
