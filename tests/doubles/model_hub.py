"""In-memory double of downloads from the hub.

repository = RemoteRepository({"c" * 40: {"config.json": b"{}"}}, {"main": "c" * 40})
hub = InMemoryModelHub({"org/m": repository}, cache, files)
hub.fetch(plan_download(hub.describe("org/m")), progress)      # now cache.find("org/m") has it
"""

import hashlib
import json
from collections.abc import Mapping

import attrs

from doubles.model_cache import CachedModel, InMemoryModelCache
from doubles.model_files import InMemoryModelFiles
from mlxk.application.ports.hub import ModelHub
from mlxk.application.ports.system import Progress
from mlxk.domain.errors import AccessDeniedError, MlxkError, ModelNotFoundError, RevisionNotFoundError
from mlxk.domain.hub import DownloadPlan, FoundModel, RemoteCard, RemoteFile, RemoteModel, check_revision
from mlxk.domain.models.reference import check_name


@attrs.frozen
class RemoteRepository:
    """One model on the hub."""

    commits: Mapping[str, Mapping[str, bytes]]
    """The files of each commit: content by path."""
    branches: Mapping[str, str] = attrs.field(factory=dict)
    """Commit by branch or tag."""
    gated: bool = False
    made_for_mlx: bool = True
    downloads: int = 0
    license: str | None = None
    weight_bytes: int | None = None
    """The size in search results; None when not stated."""


class InMemoryModelHub(ModelHub):
    """Models held in a dictionary; fetched ones appear in an in-memory cache.

    Args:
        models: Repositories by ``org/name``; change ``models`` at any time, as others would change the hub.
        cache: Gets the fetched models.
        files: Gets their files.
    """

    def __init__(
        self,
        models: Mapping[str, RemoteRepository] | None = None,
        cache: InMemoryModelCache | None = None,
        files: InMemoryModelFiles | None = None,
    ) -> None:
        self.models = dict(models or {})
        self.failure: MlxkError | None = None
        """Raised by the next request, once; a failed fetch leaves a partial model."""
        self.requests = 0
        """Number of requests."""
        self._cache = cache or InMemoryModelCache()
        self._files = files or InMemoryModelFiles()
        self._present: set[str] = set()

    def describe(self, name: str, revision: str | None = None) -> RemoteModel:
        check_name(name)
        if revision is not None:
            check_revision(revision)
        self._request()
        name = next((known for known in self.models if known.lower() == name.lower()), name)
        repository = self.models.get(name)
        if repository is None:
            raise ModelNotFoundError(f"'{name}' is not on the hub, or is private and not shown to you")
        commit = repository.branches.get(revision or "main", revision or "")
        if commit not in repository.commits:
            raise RevisionNotFoundError(f"'{name}' has no revision '{revision}' on the hub")
        if repository.gated:
            raise AccessDeniedError(f"'{name}' is gated: its author decides who may have it")
        listed = tuple(_remote_file(path, content) for path, content in sorted(repository.commits[commit].items()))
        return RemoteModel(name, commit, listed, revision, repository.made_for_mlx)

    def card(self, name: str, revision: str | None = None) -> RemoteCard:
        known = self.models.get(name)
        gated = known is not None and known.gated
        if known is not None and gated:
            self.models[name] = attrs.evolve(known, gated=False)
        try:
            model = self.describe(name, revision)
        finally:
            if known is not None:
                self.models[name] = known
        repository = self.models[model.name]
        content = repository.commits[model.commit].get("config.json")
        config = None if content is None or gated else json.loads(content) or None
        return RemoteCard(
            model, repository.downloads, repository.license, None, None, (), gated, False, not gated, config
        )

    def newest_commit(self, name: str) -> str:
        check_name(name)
        self._request()
        if name not in self.models:
            raise ModelNotFoundError(f"'{name}' is not on the hub, or is private and not shown to you")
        return self.models[name].branches["main"]

    def search(self, terms: str, limit: int, *, mlx_only: bool) -> tuple[FoundModel, ...]:
        self._request()
        words = terms.lower().split()
        found = [
            FoundModel(name, each.made_for_mlx, each.weight_bytes, each.downloads, each.license, each.gated)
            for name, each in self.models.items()
            if all(word in name.lower() for word in words) and (each.made_for_mlx or not mlx_only)
        ]
        return tuple(sorted(found, key=lambda model: -model.downloads)[:limit])

    def with_tensors(self, model: RemoteModel) -> RemoteModel:
        return model

    def missing_bytes(self, plan: DownloadPlan) -> int:
        return sum({file.digest: file.size_bytes for file in plan.files if file.digest not in self._present}.values())

    def fetch(self, plan: DownloadPlan, progress: Progress, *, verify_present: bool = False) -> None:
        model = plan.model
        before = self._cache.models.get(model.name, CachedModel())
        progress.begin("Downloading", {file.path: file.size_bytes for file in plan.files})
        try:
            self._request()
        except MlxkError:
            self._cache.models[model.name] = attrs.evolve(before, unfinished=1)
            raise
        finally:
            progress.end()
        progress.advance({file.path: file.size_bytes for file in plan.files})
        contents = self.models[model.name].commits[model.commit]
        revisions = (*(known for known in before.revisions if known != model.commit), model.commit)
        references = {**before.references, **({model.reference: model.commit} if model.reference else {})}
        self._cache.models[model.name] = CachedModel(revisions, references)
        handle = self._cache.find(model.name, model.commit)
        if handle:
            self._files.directories[handle.directory] = {file.path: contents[file.path] for file in plan.files}
        self._present |= {file.digest for file in plan.files}

    def _request(self) -> None:
        self.requests += 1
        failure, self.failure = self.failure, None
        if failure:
            raise failure


def _remote_file(path: str, content: bytes) -> RemoteFile:
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    large = path.endswith((".safetensors", ".bin", ".gguf"))
    return RemoteFile(path, len(content), blob, hashlib.sha256(content).hexdigest() if large else None)
