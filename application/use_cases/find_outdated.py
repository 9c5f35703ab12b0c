"""Find the cached models of which the hub has a newer revision."""

import enum

import attrs

from mlxk.application.ports.hub import ModelHub
from mlxk.application.ports.model_cache import ModelCache
from mlxk.domain.errors import (
    AccessDeniedError,
    Advice,
    ModelNotFoundError,
    Remedy,
    RevisionNotFoundError,
    ValidationError,
)


class Freshness(enum.Enum):
    """How a cached model relates to the hub."""

    CURRENT = "current"
    OUTDATED = "outdated"
    """The default branch has moved since."""
    UNKNOWN = "unknown"


@attrs.frozen
class ComparedModel:
    """One cached model, and what the hub says of it."""

    name: str
    """``org/name``."""
    freshness: Freshness
    commit: str | None
    """The current revision in the cache; None when it is not a commit, or there is none."""
    newest: str | None
    """The commit of the hub's default branch; None when it is not known."""
    reason: str | None = None
    """Why it is not known."""


@attrs.frozen
class FindOutdated:
    """Asks the hub for the newest commit of each cached model, and for nothing else."""

    cache: ModelCache
    hub: ModelHub

    def __call__(self, pattern: str | None = None) -> tuple[ComparedModel, ...]:
        """Return the cached models whose names have a part, sorted by name.

        Args:
            pattern: A part of the name in any case; None selects everything.

        Raises:
            ModelNotFoundError: No cached model fits the pattern.
            NetworkError: The hub cannot be reached, limits requests, or offline mode is set.
            DownloadFailedError: The hub sent an invalid response.
            StorageError: The cache cannot be read.
        """
        part = (pattern or "").strip().lower()
        names = [name for name in self.cache.names() if part in name.lower()]
        if pattern is not None and not names:
            raise ModelNotFoundError(f"no cached model has '{pattern}' in its name", hint=Advice(Remedy.LIST_ALL))
        return tuple(map(self._compare, names))

    def _compare(self, name: str) -> ComparedModel:
        handle = self.cache.find(name)
        commit = handle.commit if handle else None
        if commit is None:
            return ComparedModel(name, Freshness.UNKNOWN, None, None, "no complete revision of it is in the cache")
        try:
            newest = self.hub.newest_commit(name)
        except (ModelNotFoundError, RevisionNotFoundError, AccessDeniedError, ValidationError) as error:
            return ComparedModel(name, Freshness.UNKNOWN, commit, None, error.message)
        freshness = Freshness.CURRENT if newest == commit else Freshness.OUTDATED
        return ComparedModel(name, freshness, commit, newest)
