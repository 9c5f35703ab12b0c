"""Remove models and revisions from the cache, and unload models from the memory of servers."""

import shlex

import attrs

from mlxk.application.ports.model_cache import ModelCache, Removal, in_use
from mlxk.application.ports.other_processes import RunningServer, RunningServers
from mlxk.application.ports.system import Confirmation, Progress
from mlxk.application.ports.text_generator import ResidentModel
from mlxk.application.use_cases.resolve_model import ResolveModel, close_names
from mlxk.domain.errors import (
    Advice,
    ExecutionError,
    MlxkError,
    ModelNotFoundError,
    Remedy,
    RequiresConfirmationError,
    RevisionNotFoundError,
    ValidationError,
    WorkspaceModelError,
)
from mlxk.domain.models.model import ModelHandle, Origin
from mlxk.domain.models.reference import ModelRef, fits_pattern, is_pattern, only_match

UNLOAD_SECONDS = 30.0
"""How long to wait for servers to unload a model; longer than short answers take."""


@attrs.frozen
class RemoveRequest:
    """Reference and options of a removal."""

    reference: str
    """A name, a part of one, a name with ``@revision``, or a pattern with ``*``, ``?`` or ``[…]``."""
    force: bool = False
    """Whether to remove inexact matches without confirmation, and to ask servers to unload the models first."""
    dry_run: bool = False
    """Whether to report only."""


@attrs.frozen
class RemoveResult:
    """Result of a removal, or of a dry run."""

    reference: str
    removals: tuple[Removal, ...]
    """Sorted by name."""
    done: bool
    """Whether the models were removed; False after a dry run or a declined confirmation."""
    dry_run: bool = False


@attrs.frozen
class RemoveModel:
    """Removes models from the cache only."""

    cache: ModelCache
    resolve: ResolveModel

    def __call__(self, request: RemoveRequest, confirmation: Confirmation, progress: Progress) -> RemoveResult:
        """Remove the models that match a reference.

        Anything but an exact name needs confirmation, or ``force``. A model that another process is changing is never
        removed. A model that a server has in memory is removed only with ``force``, once the server has unloaded it.

        Raises:
            ValidationError: The reference cannot be parsed.
            ModelNotFoundError, AmbiguousModelError, RevisionNotFoundError: No single cached model matches.
            WorkspaceModelError: The reference is a workspace or a built-in model.
            RequiresConfirmationError: The reference is not exact, and there is no terminal for a confirmation.
            LocksPresentError: Another process is changing the model, or has it in memory.
            StorageError: A file cannot be deleted.
        """
        reference = request.reference.strip()
        pattern = is_pattern(reference)
        ref = ModelRef.parse(reference)
        removals = self._matching(ref) if pattern else (self._single(ref),)
        result = RemoveResult(reference, removals, done=False, dry_run=request.dry_run)
        if request.dry_run:
            return result
        exact = not pattern and removals[0].name == ref.name
        if not exact and not request.force and not self._confirmed(reference, removals, confirmation):
            return result
        for removal in removals:
            self._require_unused(removal.name, or_unloaded=request.force)
        for removal in removals:
            self._remove(removal, progress if request.force else None)
        return attrs.evolve(result, done=True)

    def _single(self, ref: ModelRef) -> Removal:
        handle = self._cached(ref)
        revision = handle.revision if ref.revision is not None else None
        removal = self.cache.plan_removal(handle.name, revision)
        if removal is None:
            raise ModelNotFoundError(f"no cached model found matching '{ref}'")
        return removal

    def _cached(self, ref: ModelRef) -> ModelHandle:
        """Find a cached model; its exact name has precedence over a workspace or built-in model of the same name."""
        handle = self._find(ref)
        if handle.origin is Origin.CACHE:
            return handle
        if handle.origin is Origin.BUILT_IN:
            raise WorkspaceModelError(f"'{handle.name}' comes with the program and cannot be removed")
        path = ref.text.strip() if ref.is_path else shlex.quote(handle.directory)
        raise WorkspaceModelError(
            f"'{ref}' is a workspace, and workspaces are not removed by mlxk",
            hint=f"Remove the directory: rm -r {path}",
        )

    def _find(self, ref: ModelRef) -> ModelHandle:
        """Resolve a reference; unlike those of ``ResolveModel``, errors do not suggest to pull the model."""
        try:
            exact = None if ref.is_path else self.cache.find(ref.name, ref.revision)
            return exact or self.resolve(ref)
        except ModelNotFoundError as error:
            close = " or ".join(close_names(ref.name, self.cache.names()))
            hint = Advice(Remedy.USE_CLOSE_NAME, {"close": close}) if close else Advice(Remedy.LIST_ALL)
            raise ModelNotFoundError(error.message, hint=hint) from error
        except RevisionNotFoundError as error:
            raise RevisionNotFoundError(error.message, matches=error.matches) from error

    def _matching(self, ref: ModelRef) -> tuple[Removal, ...]:
        if ref.is_path or ref.revision is not None:
            raise ValidationError(f"a pattern selects cached models by name only: '{ref.text.strip()}'")
        pattern = ref.name
        names = [name for name in self.cache.names() if fits_pattern(name, pattern)]
        removals = tuple(removal for removal in map(self.cache.plan_removal, names) if removal)
        if not removals:
            raise ModelNotFoundError(f"no cached model fits the pattern '{ref.name}'", hint=Advice(Remedy.LIST_ALL))
        return removals

    def _confirmed(self, reference: str, removals: tuple[Removal, ...], confirmation: Confirmation) -> bool:
        facts = tuple(f"  {removal.label}" for removal in removals)
        what = "this model" if len(removals) == 1 else f"these {len(removals)} models"
        answer = confirmation.ask((f"'{reference}' means:", *facts), f"Remove {what}?", default=False)
        if answer is None:
            raise RequiresConfirmationError(
                f"'{reference}' is not an exact name; it means {what}",
                hint=Advice(Remedy.CONFIRM_REMOVAL),
                matches=tuple(removal.label for removal in removals),
            )
        return answer

    def _remove(self, removal: Removal, unloading: Progress | None) -> None:
        """Remove a model.

        Args:
            removal: The plan.
            unloading: Gets a note for each server that is asked to unload the model first; None asks none.
        """
        with self.cache.reserve(removal.name, "removing it"):
            users = self.cache.users(removal.name)
            if users and unloading is not None:
                for user in users:
                    unloading.note(f"Waiting until '{removal.name}' is unloaded by {user}.")
                self.cache.ask_back(removal.name, UNLOAD_SECONDS)
            self._require_unused(removal.name)
            self.cache.remove(removal)

    def _require_unused(self, name: str, *, or_unloaded: bool = False) -> None:
        """Refuse a model that another process is changing, or, unless ``or_unloaded``, has in memory.

        Raises:
            LocksPresentError: There is such a process.
        """
        holders = self.cache.holders(name)
        if holders:
            raise in_use(name, holders)
        users = () if or_unloaded else self.cache.users(name)
        if users:
            raise in_use(name, users, hint=Advice(Remedy.UNLOAD_FIRST))


@attrs.frozen
class StoppedModel:
    """A model that a server was asked to unload."""

    server: RunningServer
    model: ResidentModel
    unloaded: bool
    """Whether it is unloaded; if not, the server unloads it after its requests in progress."""
    failure: ExecutionError | None = None
    """Why the server could not be asked."""


@attrs.frozen
class StopModels:
    """Unloads the model of a name in every server of this user that has it in memory."""

    servers: RunningServers
    resolve: ResolveModel

    def __call__(self, reference: str) -> tuple[StoppedModel, ...]:
        """Unload a model; a server that does not respond is reported in the result.

        Args:
            reference: The full name of a loaded model, a part of it, or any reference that ``ResolveModel`` takes.

        Raises:
            ModelNotFoundError: No server has it in memory.
            AmbiguousModelError: A part of a name fits several models in memory.
        """
        loaded = [(server, model) for server in self.servers.servers() for model in server.models]
        try:
            matches = self._matching(reference.strip(), loaded)
        except ModelNotFoundError as error:
            if not (unseen := self.servers.unseen()):
                raise
            raise ModelNotFoundError(f"{error.message}; {'; '.join(unseen)}", hint=error.hint) from error
        return tuple(self._unload(server, model) for server, model in matches)

    def _unload(self, server: RunningServer, model: ResidentModel) -> StoppedModel:
        try:
            return StoppedModel(server, model, self.servers.unload(server, model))
        except ExecutionError as error:
            return StoppedModel(server, model, unloaded=False, failure=error)

    def _matching(
        self, reference: str, loaded: list[tuple[RunningServer, ResidentModel]]
    ) -> list[tuple[RunningServer, ResidentModel]]:
        """Return the loaded models that a reference means: by full name, else by directory, else by part of a name."""
        exact = [each for each in loaded if reference.lower() in _full_names(each[1].handle)]
        if exact:
            return exact
        directory = self._directory(reference)
        same = [each for each in loaded if each[1].handle.directory == directory]
        if same:
            return same
        labels = sorted({model.handle.label for _, model in loaded})
        match = only_match(reference, labels)
        if match is None:
            raise ModelNotFoundError(
                f"no server has '{reference}' in memory",
                hint=f"In memory: {', '.join(labels)}" if labels else "No model is in memory.",
            )
        return [each for each in loaded if each[1].handle.label == match]

    def _directory(self, reference: str) -> str | None:
        """Return the directory of the model that a reference means on the disk.

        Returns:
            None when it means no model, which may have been removed; and when it is only a part of the model's name,
            since another model with that part may be loaded.
        """
        try:
            ref = ModelRef.parse(reference)
            handle = self.resolve(ref)
        except MlxkError:
            return None
        is_full_name = handle.short_name.lower() == ref.name.lower().rpartition("/")[2]
        return handle.directory if is_full_name or handle.alias or ref.is_path or ref.revision else None


def _full_names(handle: ModelHandle) -> set[str]:
    return {handle.name.lower(), f"{handle.name}@{handle.revision}".lower()}
