"""Resolve a model reference: from what the user typed to the one model it means on this machine.

Defines the order of meanings, ambiguity and the not-found messages, for every command and for the server.
"""

from collections.abc import Iterable

import attrs

from mlxk.application.ports.model_cache import ModelCache
from mlxk.application.ports.model_source import ModelSource
from mlxk.application.ports.workspace_store import WorkspaceStore
from mlxk.domain.errors import Advice, AmbiguousModelError, ModelNotFoundError, Remedy, ValidationError
from mlxk.domain.models.model import ModelHandle
from mlxk.domain.models.reference import ModelRef

_SUGGESTIONS = 3


@attrs.frozen
class ResolveModel:
    """Finds the model that a reference means."""

    cache: ModelCache
    workspaces: WorkspaceStore
    built_in: ModelSource
    default_owner: str = ""
    """The hub owner of a name without one; empty for none."""

    def __call__(self, reference: str | ModelRef) -> ModelHandle:
        """Return the handle of the one model a reference means.

        The first meaning that fits wins: a built-in model; an explicit path; a workspace of the workspace home; the
        name of a cached model, then the same of the default owner; a name that differs in the case of letters only; the
        one name that ends in it; the one name that contains it. With a revision, only cached models are meant.

        Args:
            reference: What the user typed, or the parsed reference.

        Raises:
            ValidationError: The reference cannot be parsed, or asks for a revision of a built-in model.
            ModelNotFoundError: It means nothing on this machine.
            AmbiguousModelError: It fits several models equally well; ``matches`` lists them, sorted.
            RevisionNotFoundError: The model is here but that revision is not.
            StorageError: The cache exists but cannot be read.
        """
        ref = ModelRef.parse(reference) if isinstance(reference, str) else reference
        if ref.is_path:
            return self._at_path(ref)
        if ref.revision is not None:
            return self._at_revision(ref, ref.revision)
        return self._named(ref)

    def _at_path(self, ref: ModelRef) -> ModelHandle:
        handle = self.workspaces.at(ref.name)
        if handle is None:
            raise ModelNotFoundError(
                f"no model at '{ref.name}': there is no config.json",
                hint="A workspace is a directory with a config.json; for a cached model leave out the path.",
            )
        return handle

    def _at_revision(self, ref: ModelRef, revision: str) -> ModelHandle:
        if self.built_in.find(ref.name):
            raise without_revisions(ref)
        exact = self._cached(ref.name)
        match = exact.name if exact else _only_match(ref.name, self.cache.names())
        handle = self.cache.find(match, revision) if match else None
        if handle is None:
            raise _not_found(ref, self.cache.names())
        return handle

    def _named(self, ref: ModelRef) -> ModelHandle:
        exact = self.built_in.find(ref.name) or self.workspaces.find(ref.name) or self._cached(ref.name)
        if exact:
            return exact
        for name in self.built_in.names():
            if name.lower() == ref.name.lower() and (built_in := self.built_in.find(name)):
                return built_in
        # A part of a name never means a built-in model.
        searched: tuple[ModelSource, ...] = (self.workspaces, self.cache)
        known = {name: source for source in reversed(searched) for name in source.names()}
        match = _only_match(ref.name, known)
        handle = known[match].find(match) if match else None
        if handle is None:
            raise _not_found(ref, {*known, *self.built_in.names()})
        return handle

    def _cached(self, name: str) -> ModelHandle | None:
        handle = self.cache.find(name)
        if handle is None and "/" not in name and self.default_owner:
            handle = self.cache.find(f"{self.default_owner}/{name}")
        return handle


def without_revisions(ref: ModelRef) -> ValidationError:
    """Return the refusal of a reference to a revision of a built-in model."""
    return ValidationError.in_field(
        "model",
        f"'{ref}' asks for a revision, but the built-in model '{ref.name}' has none",
        hint=f"Write it without one: {ref.name}",
    )


def _only_match(wanted: str, known: Iterable[str]) -> str | None:
    """Return the one known name that is the wanted one, else the one that ends in it, else the one that contains it.

    The case of letters does not matter.

    Raises:
        AmbiguousModelError: Several do.
    """
    part = wanted.lower()
    lowered = {name: name.lower() for name in known}
    matches = [name for name, lower in lowered.items() if lower == part]
    matches = matches or [name for name, lower in lowered.items() if lower.rpartition("/")[2] == part]
    matches = sorted(matches or (name for name, lower in lowered.items() if part in lower))
    if len(matches) > 1:
        raise AmbiguousModelError(
            f"'{wanted}' fits {len(matches)} models",
            hint="Write more of the name, or all of it.",
            matches=tuple(matches),
        )
    return matches[0] if matches else None


def _not_found(ref: ModelRef, known: Iterable[str]) -> ModelNotFoundError:
    """Build the error for a name that means nothing here, with close names if there are any."""
    if "://" in ref.name:
        return ModelNotFoundError(f"no model found matching '{ref}', which is an address", hint="Write only ORG/NAME.")
    import difflib  # noqa: PLC0415 - needed on failure only, and the other commands start faster without it

    full_names = {name.rpartition("/")[2].lower(): name for name in sorted(known)} | {
        name.lower(): name for name in sorted(known)
    }
    close = difflib.get_close_matches(ref.name.lower(), sorted(full_names), _SUGGESTIONS)
    suggestions = list(dict.fromkeys(full_names[name] for name in close))
    hint = Advice(Remedy.FETCH, {"name": str(ref)})
    if suggestions:
        hint = Advice(Remedy.FETCH_OR_USE_CLOSE_NAME, {"name": str(ref), "close": " or ".join(suggestions)})
    return ModelNotFoundError(f"no model found matching '{ref}'", hint=hint)
