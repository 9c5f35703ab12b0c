"""Resolve a typed reference to the one model that it means on this machine, or a pattern to the matching models.

Defines precedence, ambiguity and the not-found messages, for every command and for the server.
"""

import posixpath
from collections.abc import Callable, Iterable, Mapping

import attrs

from mlxk.application.ports.model_cache import ModelCache, ModelSource
from mlxk.application.ports.model_directories import WorkspaceStore
from mlxk.domain.errors import Advice, ModelNotFoundError, Remedy, ValidationError
from mlxk.domain.models.model import ModelHandle, Origin, served_id
from mlxk.domain.models.reference import (
    ModelRef,
    check_name,
    fits_pattern,
    folded,
    is_path,
    is_pattern,
    only_match,
    own_name,
)
from mlxk.domain.text import MAX_SUGGESTIONS, nearest

DEFAULT_TAG = ":latest"
"""A tag that other tools write after a name for what the name means without it."""


@attrs.frozen
class ResolveModel:
    """Finds the model that a reference means."""

    cache: ModelCache
    workspaces: WorkspaceStore
    built_in: ModelSource
    default_owner: str = ""
    """The hub owner added to a name without one; empty for none."""
    aliases: Mapping[str, str] = attrs.field(factory=dict)
    """The user's own names of models, each with its reference, which is never an alias itself."""
    base_of: Callable[[str], str | None] | None = None
    """See ``BackendRegistry.base_of``: an adapter is resolved to its base, with the adapter. None resolves an adapter
    to itself."""

    def __call__(self, reference: str | ModelRef) -> ModelHandle:
        """Return the handle of the one model that a reference means, with or without ``DEFAULT_TAG`` after it.

        The tag is ignored unless it is part of a name. For arguments and errors see ``as_written``.
        """
        try:
            return self.as_written(reference)
        except (ModelNotFoundError, ValidationError):
            text = (reference if isinstance(reference, str) else reference.text).strip()
            plain = text.removesuffix(DEFAULT_TAG)
            if plain in ("", text):
                raise
        return self.as_written(plain)

    def as_written(self, reference: str | ModelRef) -> ModelHandle:
        """Return the handle of the one model that a reference means, with whatever tag is written.

        The first match wins: a built-in model; an explicit path; the full name of a cached model; an alias, whose
        reference is resolved without aliases; a workspace of the workspace home; a cached model, then one of the
        default owner; a name that differs in case only; the only name that ends with the reference; the only name that
        contains it. A reference with a revision means cached models only.

        Args:
            reference: What the user typed, or the parsed reference.

        Raises:
            ValidationError: The reference cannot be parsed, or asks for a revision of a built-in model.
            ModelNotFoundError: No model of this machine matches.
            AmbiguousModelError: Several models match equally well; ``matches`` lists them, sorted.
            RevisionNotFoundError: The model is cached, but not that revision.
            StorageError: The cache exists but cannot be read.
        """
        ref = ModelRef.parse(reference) if isinstance(reference, str) else reference
        return self.with_base(self._one(ref))

    def with_base(self, handle: ModelHandle) -> ModelHandle:
        """Return the base of an adapter, with the adapter set; any other model unchanged.

        Raises:
            ValidationError: The adapter names no base, or a cached adapter names it by a path.
            MlxkError: The base cannot be resolved; the errors of ``__call__``.
        """
        base = None if self.base_of is None or handle.adapter is not None else self.base_of(handle.directory)
        if base is None:
            return handle
        if handle.origin is Origin.CACHE and is_path(base):
            raise ValidationError(
                f"'{handle.label}' is an adapter whose base is named by a path of its maker's machine"
            )
        if base.startswith(("./", "../")):
            base = posixpath.normpath(posixpath.join(handle.directory, base))
        try:
            resolved = attrs.evolve(self, base_of=None)(base)
        except ModelNotFoundError as error:
            message = f"'{handle.label}' is an adapter of {posixpath.basename(base)}: {error.message}"
            raise ModelNotFoundError(message, hint=error.hint) from error
        return attrs.evolve(resolved, adapter=handle.directory, alias=handle.alias or served_id(handle))

    def _one(self, ref: ModelRef) -> ModelHandle:
        if ref.is_path:
            return self._at_path(ref)
        if ref.revision is not None:
            return self._at_revision(ref, ref.revision)
        full = self.cache.find(ref.name) if ref.name in self.aliases and "/" in ref.name else None
        return full or self._aliased(ref.name) or self._named(ref)

    def _aliased(self, name: str) -> ModelHandle | None:
        reference = self.aliases.get(name)
        if reference is None or self.built_in.find(name):
            return None
        try:
            return attrs.evolve(attrs.evolve(self, aliases={})(reference), alias=name)
        except ModelNotFoundError as error:
            raise ModelNotFoundError(f"'{name}' means {reference}: {error.message}", hint=error.hint) from error

    def matching(self, pattern: str | None = None) -> tuple[ModelHandle, ...]:
        """Return the models that a pattern selects, sorted by name, without reading their files.

        Args:
            pattern: A part of the name, case-insensitive; or a glob such as ``tiny*``; or an explicit path, which
                selects workspaces as ``WorkspaceStore.below`` does. None selects all models, a blank pattern none.

        Raises:
            StorageError: The cache or the directory of the pattern exists but cannot be read.
        """
        pattern = pattern.strip() if pattern is not None else None
        if pattern is not None and is_path(pattern):
            handles = list(self.workspaces.below(pattern))
        else:
            handles = [] if pattern == "" else self._containing(pattern or "")
        return tuple(sorted(handles, key=lambda handle: (handle.name, handle.directory)))

    def _containing(self, pattern: str) -> list[ModelHandle]:
        sources: tuple[ModelSource, ...] = (self.built_in, self.workspaces, self.cache)
        handles = (source.find(name) for source in sources for name in source.names() if _matches(name, pattern))
        return [handle for handle in handles if handle is not None]

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
        match = exact.name if exact else only_match(ref.name, self.cache.names())
        handle = self.cache.find(match, revision) if match else None
        if handle is None:
            raise self._not_found(ref, self.cache.names())
        return handle

    def _named(self, ref: ModelRef) -> ModelHandle:
        exact = self.built_in.find(ref.name) or self.workspaces.find(ref.name) or self._cached(ref.name)
        if exact:
            return exact
        for name in self.built_in.names():
            if name.lower() == ref.name.lower() and (built_in := self.built_in.find(name)):
                return built_in
        alias = own_name(ref.name, self.aliases)
        if alias is not None and (aliased := self._aliased(alias)):
            return aliased
        # A part of a name never means a built-in model.
        searched: tuple[ModelSource, ...] = (self.workspaces, self.cache)
        known = {name: source for source in reversed(searched) for name in source.names()}
        match = only_match(ref.name, known)
        handle = known[match].find(match) if match else None
        if handle is None:
            raise self._not_found(ref, {*known, *self.built_in.names(), *self.aliases})
        return handle

    def _cached(self, name: str) -> ModelHandle | None:
        handle = self.cache.find(name)
        if handle is None and "/" not in name and self.default_owner:
            handle = self.cache.find(f"{self.default_owner}/{name}")
        return handle

    def _not_found(self, ref: ModelRef, known: Iterable[str]) -> ModelNotFoundError:
        """Build the error for a name without a match; it suggests a path or similar names."""
        message = f"no model found matching '{ref}'"
        if "://" in ref.name:
            return ModelNotFoundError(f"{message}, which is an address", hint="Write only ORG/NAME.")
        path = f"./{ref.name}"
        if ref.revision is None and self.workspaces.at(path) is not None:
            return ModelNotFoundError(message, hint=Advice(Remedy.USE_PATH, {"path": path}))
        close = close_names(ref.name, known)
        values = {"name": str(ref), **({"close": " or ".join(close)} if close else {})}
        remedy = Remedy.FETCH_OR_USE_CLOSE_NAME if close else Remedy.FETCH
        if not self._may_be_fetched(ref):
            remedy = Remedy.USE_CLOSE_NAME if close else Remedy.USE_NAME_OF_HUB
        return ModelNotFoundError(message, hint=Advice(remedy, values))

    def _may_be_fetched(self, ref: ModelRef) -> bool:
        """Whether the name is valid on the hub."""
        try:
            check_name(ref.name if "/" in ref.name else f"{self.default_owner or 'owner'}/{ref.name}")
        except ValidationError:
            return False
        return True


def without_revisions(ref: ModelRef) -> ValidationError:
    """Return the error for a reference to a revision of a built-in model."""
    return ValidationError.in_field(
        "model",
        f"'{ref}' asks for a revision, but the built-in model '{ref.name}' has none",
        hint=f"Write it without one: {ref.name}",
    )


LEAST_PART = 3
"""Characters from which names that contain the typed one are suggested."""


def close_names(wanted: str, known: Iterable[str]) -> tuple[str, ...]:
    """Return up to three known names that are spelled similarly, the closest first, else names that contain the wanted.

    Owners are ignored, since a common owner does not make names similar.
    """
    names: dict[str, list[str]] = {}
    for name in sorted(known):
        names.setdefault(_without_owner(name), []).append(name)
    typed = _without_owner(wanted)
    close = nearest(typed, names)
    if not close and len(typed) >= LEAST_PART:
        close = [part for part in names if typed in part]
    return tuple(name for part in close for name in names[part])[:MAX_SUGGESTIONS]


def _without_owner(name: str) -> str:
    return name.rpartition("/")[2].lower()


def _matches(name: str, pattern: str) -> bool:
    return fits_pattern(name, pattern) if is_pattern(pattern) else folded(pattern) in folded(name)
