"""In-memory double of changing the model cache.

editor = InMemoryCacheEditor(cache, files)
editor.busy["org/m"] = LockHolder(4711, "pulling it")       # somebody else works on it
"""

import contextlib
from collections.abc import Callable, Iterator

import attrs

from doubles.model_cache import InMemoryModelCache
from doubles.model_files import InMemoryModelFiles
from mlxk.application.ports.cache_editor import CacheEditor, LockHolder, Removal, in_use


class InMemoryCacheEditor(CacheEditor):
    """Changes an in-memory cache.

    Args:
        cache: The models.
        files: Their files.
        free: Bytes the disk can still take.
    """

    def __init__(
        self, cache: InMemoryModelCache | None = None, files: InMemoryModelFiles | None = None, free: int | None = None
    ) -> None:
        self._cache = cache or InMemoryModelCache()
        self._files = files or InMemoryModelFiles()
        self._free = free
        self.busy: dict[str, LockHolder] = {}
        """Model to who works on it; whoever waits for one finds it free at the second look."""

        self.other_clients: dict[str, LockHolder] = {}
        """Model to a client of the cache that knows no reservations and downloads files of it."""

    @contextlib.contextmanager
    def reserve(self, name: str, activity: str, wait: Callable[[LockHolder], None] | None = None) -> Iterator[None]:
        """Keep others off a model."""
        holder = self.busy.get(name)
        if holder:
            if wait is None:
                raise in_use(name, (holder,))
            wait(holder)
            del self.busy[name]
        yield

    def holders(self, name: str) -> tuple[LockHolder, ...]:
        """Return who works on a model."""
        found = (self.busy.get(name), self.other_clients.get(name))
        return tuple(holder for holder in found if holder)

    def free_bytes(self) -> int | None:
        """Return the bytes it was made with."""
        return self._free

    def plan_removal(self, name: str, revision: str | None = None) -> Removal | None:
        """Return what a removal would take away; files that revisions share by content count once."""
        model = self._cache.models.get(name)
        if model is None or (revision is not None and revision not in model.revisions):
            return None
        whole = revision is None or model.revisions == (revision,)
        going = model.revisions if whole else (str(revision),)
        staying = [known for known in model.revisions if known not in going]
        contents = self._contents(name, list(going)) - self._contents(name, staying)
        return Removal(name, tuple(sorted(going)), whole, sum(map(len, contents)))

    def remove(self, planned: Removal) -> None:
        """Take away what was planned."""
        model = self._cache.models.get(planned.name)
        if model is None:
            return
        for revision in planned.revisions:
            self._files.directories.pop(self._directory(planned.name, revision), None)
        if planned.whole:
            del self._cache.models[planned.name]
            return
        references = {name: commit for name, commit in model.references.items() if commit not in planned.revisions}
        revisions = tuple(known for known in model.revisions if known not in planned.revisions)
        self._cache.models[planned.name] = attrs.evolve(model, revisions=revisions, references=references)

    def _contents(self, name: str, revisions: list[str]) -> set[bytes]:
        directories = (self._directory(name, revision) for revision in revisions)
        return {content for each in directories for content in self._files.directories.get(each, {}).values()}

    def _directory(self, name: str, revision: str) -> str:
        handle = self._cache.find(name, revision)
        return handle.directory if handle else ""
