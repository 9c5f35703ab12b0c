"""Remove models from the cache: one, one revision of it, or all that a pattern selects."""

import shlex
from fnmatch import fnmatchcase

import attrs

from mlxk.application.ports.confirmation import Confirmation
from mlxk.application.ports.model_cache import ModelCache, Removal, in_use
from mlxk.application.use_cases.resolve_model import ResolveModel
from mlxk.domain.errors import (
    Advice,
    ModelNotFoundError,
    Remedy,
    RequiresConfirmationError,
    RevisionNotFoundError,
    ValidationError,
    WorkspaceModelError,
)
from mlxk.domain.models.model import ModelHandle, Origin
from mlxk.domain.models.reference import ModelRef


@attrs.frozen
class RemoveRequest:
    """What to remove, and how."""

    reference: str
    """A name, a part of one, a name with ``@revision``, or a pattern with ``*``, ``?`` or ``[…]``."""
    force: bool = False
    """Whether to remove without asking what the reference does not name exactly."""
    dry_run: bool = False
    """Whether only to say what would go."""


@attrs.frozen
class RemoveResult:
    """What a removal did, or would do."""

    reference: str
    removals: tuple[Removal, ...]
    """Sorted by name."""
    done: bool
    """Whether it is gone; otherwise it was a dry run or the answer was no."""
    dry_run: bool = False


@attrs.frozen
class RemoveModel:
    """Removes models from the cache; what is not there is not touched."""

    cache: ModelCache
    resolve: ResolveModel

    def __call__(self, request: RemoveRequest, confirmation: Confirmation) -> RemoveResult:
        """Remove what a reference means.

        A model that is named exactly is removed at once. For anything else somebody has to say yes, be it with
        ``force``. What another process is working on is never removed, forced or not.

        Raises:
            ValidationError: The reference cannot be parsed.
            ModelNotFoundError, AmbiguousModelError, RevisionNotFoundError: It does not mean a cached model.
            WorkspaceModelError: It means a workspace or a model that comes with the program.
            RequiresConfirmationError: It is not exact, and nobody is there to say yes.
            LocksPresentError: Another process is working on it.
            StorageError: The disk refuses.
        """
        reference = request.reference.strip()
        pattern = any(character in reference for character in "*?[")
        ref = ModelRef.parse(reference)
        removals = self._matching(ref) if pattern else (self._single(ref),)
        result = RemoveResult(reference, removals, done=False, dry_run=request.dry_run)
        if request.dry_run:
            return result
        exact = not pattern and removals[0].name == ref.name
        if not exact and not request.force and not self._confirmed(reference, removals, confirmation):
            return result
        for removal in removals:
            self._require_peace(removal.name)
        for removal in removals:
            self._remove(removal)
        return attrs.evolve(result, done=True)

    def _single(self, ref: ModelRef) -> Removal:
        handle = self._cached(ref)
        revision = handle.revision if ref.revision is not None else None
        removal = self.cache.plan_removal(handle.name, revision)
        if removal is None:
            raise ModelNotFoundError(f"no cached model found matching '{ref}'")
        return removal

    def _cached(self, ref: ModelRef) -> ModelHandle:
        """Find the model in the cache: under its exact name even where a workspace or a built-in has it as well."""
        handle = self._here(ref)
        if handle.origin is Origin.CACHE:
            return handle
        if handle.origin is Origin.BUILT_IN:
            raise WorkspaceModelError(f"'{handle.name}' comes with the program and cannot be removed")
        shown = ref.text.strip() if ref.is_path else shlex.quote(handle.directory)
        raise WorkspaceModelError(
            f"'{ref}' is a workspace, and workspaces are not removed by mlxk",
            hint=f"Remove the directory: rm -r {shown}",
        )

    def _here(self, ref: ModelRef) -> ModelHandle:
        """Find what a reference means; nobody fetches a model to remove it, so no error says how to."""
        try:
            exact = None if ref.is_path else self.cache.find(ref.name, ref.revision)
            return exact or self.resolve(ref)
        except ModelNotFoundError as error:
            raise ModelNotFoundError(error.message, hint=Advice(Remedy.LIST_ALL)) from error
        except RevisionNotFoundError as error:
            raise RevisionNotFoundError(error.message, matches=error.matches) from error

    def _matching(self, ref: ModelRef) -> tuple[Removal, ...]:
        if ref.is_path or ref.revision is not None:
            raise ValidationError(f"a pattern selects cached models by name only: '{ref.text.strip()}'")
        pattern = ref.name.lower()
        names = [name for name in self.cache.names() if _fits(name.lower(), pattern)]
        removals = tuple(removal for removal in map(self.cache.plan_removal, names) if removal)
        if not removals:
            raise ModelNotFoundError(f"no cached model fits the pattern '{ref.name}'")
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

    def _remove(self, removal: Removal) -> None:
        with self.cache.reserve(removal.name, "removing it"):
            self._require_peace(removal.name)
            self.cache.remove(removal)

    def _require_peace(self, name: str) -> None:
        holders = self.cache.holders(name)
        if holders:
            raise in_use(name, holders)


def _fits(name: str, pattern: str) -> bool:
    """Whether a pattern fits a name; one without an owner also fits the part after the owner."""
    return fnmatchcase(name, pattern) or ("/" not in pattern and fnmatchcase(name.rpartition("/")[2], pattern))
