"""In-memory double of the model cache.

    cache = InMemoryModelCache({"org/name": CachedModel(revisions=("a" * 40,))})
    cache.find("org/name").directory            # "/cache/org/name/aaaa…", the key for InMemoryModelFiles

The files of a model are given to ``InMemoryModelFiles`` under the directory of its handle.

    cache.busy["org/m"] = LockHolder(4711, "pulling it")        # another process holds its lock
"""

import contextlib
import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping

import attrs

from doubles.model_files import InMemoryModelFiles
from mlxk.application.ports.model_cache import LockHolder, ManifestEntry, ModelCache, Removal, in_use
from mlxk.domain.errors import RevisionNotFoundError
from mlxk.domain.models.disk_usage import ModelUsage, StoredContent, StoredRevision, Waste
from mlxk.domain.models.model import ModelHandle, Origin

PARTIAL_BYTES = 4
"""Size of every partially downloaded file."""


@attrs.frozen
class CachedModel:
    """One model of the cache."""

    revisions: tuple[str, ...] = ()
    """Snapshot names, the newest last; empty for a broken download."""
    references: Mapping[str, str] = attrs.field(factory=dict)
    """Snapshot name by branch or tag."""
    manifests: Mapping[str, tuple[ManifestEntry, ...]] = attrs.field(factory=dict)
    """Recorded files by snapshot name."""
    unfinished: int = 0
    """Number of partially downloaded files."""
    orphaned: Mapping[str, int] = attrs.field(factory=dict)
    """Bytes of each blob that no revision has, by its name."""


class InMemoryModelCache(ModelCache):
    """Models held in a dictionary; change ``models`` at any time, as another process would change the disk.

    Args:
        models: The cached models by ``org/name``.
        root: Fictitious directory of the cache, absolute.
        files: The files of the models; needed for removal.
        free: Free bytes of the disk.
    """

    def __init__(
        self,
        models: Mapping[str, CachedModel] | None = None,
        root: str = "/cache",
        files: InMemoryModelFiles | None = None,
        free: int | None = None,
    ) -> None:
        self.models = dict(models or {})
        self._root = root
        self._files = files or InMemoryModelFiles()
        self._free = free
        self.busy: dict[str, LockHolder] = {}
        """The process that holds the lock of each model; it releases the lock as soon as another process waits."""

        self.other_clients: dict[str, LockHolder] = {}
        """The program that downloads each model without our lock."""
        self.used: dict[str, LockHolder] = {}
        """The process that holds a use lock on each model."""
        self.answering: set[str] = set()
        """Models whose use locks are not released on request."""

    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self.models))

    def find(self, name: str, revision: str | None = None) -> ModelHandle | None:
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
        model = self.models.get(handle.name)
        entries = model.manifests.get(handle.revision or "") if model else None
        return None if entries is None else tuple(sorted(entries, key=lambda entry: entry.path))

    def unfinished_downloads(self, handle: ModelHandle) -> int:
        model = self.models.get(handle.name)
        return model.unfinished if model else 0

    @contextlib.contextmanager
    def reserve(self, name: str, activity: str, wait: Callable[[LockHolder], None] | None = None) -> Iterator[None]:
        holder = self.busy.get(name)
        if holder:
            if wait is None:
                raise in_use(name, (holder,))
            wait(holder)
            del self.busy[name]
        yield

    def holders(self, name: str) -> tuple[LockHolder, ...]:
        found = (self.busy.get(name), self.other_clients.get(name))
        return tuple(holder for holder in found if holder)

    @contextlib.contextmanager
    def use(self, handle: ModelHandle, activity: str) -> Iterator[None]:
        self.used[handle.name] = LockHolder(1, activity)
        try:
            yield
        finally:
            del self.used[handle.name]

    def users(self, name: str) -> tuple[LockHolder, ...]:
        return (self.used[name],) if name in self.used else ()

    def ask_back(self, name: str, seconds: float) -> None:
        if name not in self.answering:
            self.used.pop(name, None)

    def asked_back(self) -> tuple[ModelHandle, ...]:
        return ()

    def free_bytes(self) -> int | None:
        return self._free

    def plan_removal(self, name: str, revision: str | None = None) -> Removal | None:
        model = self.models.get(name)
        if model is None or (revision is not None and revision not in model.revisions):
            return None
        complete = revision is None or model.revisions == (revision,)
        going = model.revisions if complete else (str(revision),)
        staying = [known for known in model.revisions if known not in going]
        # Files that revisions share by content count once.
        contents = self._contents(name, list(going)) - self._contents(name, staying)
        return Removal(name, tuple(sorted(going)), complete, sum(map(len, contents)))

    def remove(self, planned: Removal) -> None:
        model = self.models.get(planned.name)
        if model is None:
            return
        for revision in planned.revisions:
            self._files.directories.pop(self._directory(planned.name, revision), None)
        if planned.all_revisions:
            del self.models[planned.name]
            return
        references = {name: commit for name, commit in model.references.items() if commit not in planned.revisions}
        revisions = tuple(known for known in model.revisions if known not in planned.revisions)
        self.models[planned.name] = attrs.evolve(model, revisions=revisions, references=references)

    def usage(self, name: str) -> ModelUsage | None:
        model = self.models.get(name)
        if model is None:
            return None
        contents: dict[str, set[str]] = {}
        sizes: dict[str, int] = {}
        for revision in model.revisions:
            for content in self._contents(name, [revision]):
                digest = hashlib.sha256(content).hexdigest()
                contents.setdefault(digest, set()).add(revision)
                sizes[digest] = len(content)
        stored = [StoredContent(each, each, sizes[each], frozenset(used)) for each, used in contents.items()]
        stored += [StoredContent(each, f"{name}/{each}", size) for each, size in model.orphaned.items()]
        partial = [f"{number}.incomplete" for number in range(model.unfinished)]
        stored += [StoredContent(each, f"{name}/{each}", PARTIAL_BYTES, partial=True) for each in partial]
        current = self.find(name)
        revisions = tuple(
            StoredRevision(
                each,
                tuple(sorted(known for known, target in model.references.items() if target == each)),
                current is not None and current.revision == each,
                0,
            )
            for each in sorted(model.revisions)
        )
        return ModelUsage(name, revisions, tuple(sorted(stored, key=lambda each: each.name)))

    def remainder_bytes(self, models: Collection[ModelUsage]) -> int:
        return 0

    def prune(self, waste: Waste) -> None:
        if waste.whole:
            self.models.pop(waste.name, None)
        model = self.models.get(waste.name)
        if model is None:
            return
        here = tuple(revision for revision in waste.revisions if revision in model.revisions)
        self.remove(Removal(waste.name, here, False, 0))
        orphaned = {name: size for name, size in model.orphaned.items() if name not in waste.orphaned}
        unfinished = max(0, model.unfinished - len(waste.partial))
        self.models[waste.name] = attrs.evolve(self.models[waste.name], orphaned=orphaned, unfinished=unfinished)

    def _contents(self, name: str, revisions: list[str]) -> set[bytes]:
        directories = (self._directory(name, revision) for revision in revisions)
        return {content for each in directories for content in self._files.directories.get(each, {}).values()}

    def _directory(self, name: str, revision: str) -> str:
        handle = self.find(name, revision)
        return handle.directory if handle else ""


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
