"""In-memory double of the model cache.

    cache = InMemoryModelCache({"org/name": CachedModel(revisions=("a" * 40,))})
    cache.find("org/name").directory            # "/cache/org/name/aaaa…", the key for InMemoryModelFiles

It owns names, revisions and manifests. The files of a model are given to ``InMemoryModelFiles`` under the directory
of its handle.
"""

from collections.abc import Mapping

import attrs

from mlxk.application.ports.model_cache import ManifestEntry, ModelCache
from mlxk.domain.errors import RevisionNotFoundError
from mlxk.domain.models.model import ModelHandle, Origin


@attrs.frozen
class CachedModel:
    """What the cache holds of one model."""

    revisions: tuple[str, ...] = ()
    """Snapshot names, the newest last; empty for a broken download."""
    references: Mapping[str, str] = attrs.field(factory=dict)
    """Branch or tag to snapshot name."""
    manifests: Mapping[str, tuple[ManifestEntry, ...]] = attrs.field(factory=dict)
    """Snapshot name to what it should hold."""
    unfinished: int = 0
    """Files left half downloaded."""


class InMemoryModelCache(ModelCache):
    """Models held in a dictionary; change ``models`` at any time, as another process would change the disk.

    Args:
        models: ``org/name`` to what is cached of it.
        root: Pretended directory of the cache, absolute.
    """

    def __init__(self, models: Mapping[str, CachedModel] | None = None, root: str = "/cache") -> None:
        self.models = dict(models or {})
        self._root = root

    def names(self) -> tuple[str, ...]:
        """Return the names, sorted."""
        return tuple(sorted(self.models))

    def find(self, name: str, revision: str | None = None) -> ModelHandle | None:
        """Return the handle of one model by its exact name, or None."""
        model = self.models.get(name)
        if model is None:
            return None
        if revision is None:
            main = model.references.get("main")
            chosen = main if main in model.revisions else next(reversed(model.revisions), None)
        else:
            chosen = _chosen(name, model, revision)
        directory = f"{self._root}/{name}"
        return ModelHandle(name, f"{directory}/{chosen}" if chosen else directory, Origin.CACHE, chosen)

    def manifest(self, handle: ModelHandle) -> tuple[ManifestEntry, ...] | None:
        """Return the manifest of a handle's revision, sorted by path, or None."""
        model = self.models.get(handle.name)
        entries = model.manifests.get(handle.revision or "") if model else None
        return None if entries is None else tuple(sorted(entries, key=lambda entry: entry.path))

    def unfinished_downloads(self, handle: ModelHandle) -> int:
        """Return how many files of a model were left half downloaded."""
        model = self.models.get(handle.name)
        return model.unfinished if model else 0


def _chosen(name: str, model: CachedModel, revision: str) -> str:
    named = model.references.get(revision, revision)
    if named in model.revisions:
        return named
    fitting = sorted(known for known in model.revisions if revision and known.startswith(revision))
    if len(fitting) == 1:
        return fitting[0]
    raise RevisionNotFoundError(
        f"revision '{revision}' of '{name}' is {'ambiguous' if fitting else 'not in the cache'}",
        matches=tuple(fitting or sorted(model.revisions)),
    )
