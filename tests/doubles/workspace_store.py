"""In-memory double of workspaces.

    store = InMemoryWorkspaceStore({"/home/me/gemma": Workspace(managed=True, clean=False)}, home="/home/me")
    handle = store.at("./gemma")                # relative to working_directory, "/home/me" by default
    store.recalculate(handle).clean             # True

The files of a workspace are given to ``InMemoryModelFiles`` under its directory.
"""

import contextlib
import hashlib
import posixpath
from collections.abc import Callable, Iterator, Mapping

import attrs

from doubles.model_files import EPOCH, InMemoryModelFiles
from mlxk.application.ports.model_cache import ManifestEntry
from mlxk.application.ports.model_directories import CopyMethod, Provenance, WorkspaceDraft, WorkspaceStore
from mlxk.domain.errors import LocksPresentError, StorageError, ValidationError
from mlxk.domain.models.model import ModelHandle, Origin, Workspace


class InMemoryWorkspaceStore(WorkspaceStore):
    """Workspaces held in a dictionary; change ``workspaces`` at any time, as another process would change the disk.

    Args:
        workspaces: Provenance and state by absolute directory.
        home: The workspace home, absolute; None when there is none.
        working_directory: The base of relative paths, and the home directory of the user.
        manifests: Recorded files by absolute directory.
        files: Gets the files of new workspaces. Every parent directory exists.
        protected: Directories in which no workspace may be made.
    """

    def __init__(
        self,
        workspaces: Mapping[str, Workspace] | None = None,
        home: str | None = None,
        working_directory: str = "/home/me",
        manifests: Mapping[str, tuple[ManifestEntry, ...]] | None = None,
        files: InMemoryModelFiles | None = None,
        protected: tuple[str, ...] = (),
    ) -> None:
        self.workspaces = dict(workspaces or {})
        self._home = home
        self._working_directory = working_directory
        self._manifests = dict(manifests or {})
        self.files = files or InMemoryModelFiles()
        self.method = CopyMethod.CLONED
        """The reported copy method of files."""

        self._protected = protected
        self._drafts: set[str] = set()
        self._unfinished: dict[str, tuple[Provenance, dict[str, bytes]]] = {}

    def names(self) -> tuple[str, ...]:
        return tuple(handle.label for handle in self._in_home())

    def find(self, name: str) -> ModelHandle | None:
        return next((handle for handle in self._in_home() if handle.label == name), None)

    def at(self, path: str) -> ModelHandle | None:
        directory = self._absolute(path)
        name = directory if posixpath.isabs(path) else posixpath.basename(directory)
        return _handle(directory, name) if directory in self.workspaces else None

    def below(self, pattern: str) -> tuple[ModelHandle, ...]:
        directory, absolute = self._absolute(pattern), pattern.startswith("/")
        if directory in self.workspaces:
            return (_handle(directory, directory if absolute else posixpath.basename(directory)),)
        if any(workspace.startswith(posixpath.join(directory, "")) for workspace in self.workspaces):
            return self._children(directory, "", absolute)
        return self._children(posixpath.dirname(directory), posixpath.basename(directory), absolute)

    def read(self, handle: ModelHandle) -> Workspace:
        return self.workspaces.get(handle.directory, Workspace(managed=False))

    def manifest(self, handle: ModelHandle) -> tuple[ManifestEntry, ...] | None:
        if not self.read(handle).managed:
            return None
        return tuple(sorted(self._manifests.get(handle.directory, ()), key=lambda entry: entry.path))

    def recalculate(self, handle: ModelHandle, deep: bool = False) -> Workspace:
        workspace = self.read(handle)
        if not workspace.managed:
            raise ValidationError(f"'{handle.display_name or handle.name}' is not a managed workspace")
        digest = hashlib.sha256(handle.directory.encode()).hexdigest()
        fresh = attrs.evolve(workspace, content_hash=f"sha256:{digest}", hash_modified=EPOCH, clean=True)
        self.workspaces[handle.directory] = fresh
        return fresh

    def place(self, target: str | None, name: str) -> str:
        if target is None and self._home is None:
            raise ValidationError("target: no directory was given")
        if target is not None and not target.strip():
            raise ValidationError("target: the name is empty")
        bare = target is None or "/" not in target
        start = self._home if bare and self._home else self._working_directory
        place = posixpath.normpath(posixpath.join(start, name if target is None else target))
        if any(place == each or place.startswith(f"{each}/") for each in self._protected):
            raise ValidationError(f"target: '{target}' lies in the model cache")
        if self.files.directories.get(place):
            raise ValidationError(f"target: '{target or name}' already exists and is not empty")
        return place

    @contextlib.contextmanager
    def draft(self, place: str, provenance: Provenance, *, keep_unfinished: bool) -> Iterator[WorkspaceDraft]:
        if place in self._drafts:
            raise LocksPresentError("another process is making a workspace at the same place")
        directory = f"{posixpath.dirname(place)}/.{posixpath.basename(place)}.draft"
        earlier, kept = self._unfinished.pop(place, (provenance, {}))
        self.files.directories[directory] = dict(kept) if earlier.identity == provenance.identity else {}
        self._drafts.add(place)
        draft = InMemoryWorkspaceDraft(directory, place, provenance, self)
        try:
            yield draft
        finally:
            self._drafts.discard(place)
            remainder = self.files.directories.pop(directory, None)
            if remainder and keep_unfinished:
                self._unfinished[place] = (provenance, remainder)

    def _in_home(self) -> tuple[ModelHandle, ...]:
        return () if self._home is None else self._children(self._home, "", absolute=False)

    def _absolute(self, path: str) -> str:
        expanded = self._working_directory + path[1:] if path == "~" or path.startswith("~/") else path
        return posixpath.normpath(posixpath.join(self._working_directory, expanded))

    def _children(self, parent: str, prefix: str, absolute: bool) -> tuple[ModelHandle, ...]:
        names = sorted(
            posixpath.basename(directory) for directory in self.workspaces if posixpath.dirname(directory) == parent
        )
        fitting = ((posixpath.join(parent, name), name) for name in names if name.startswith(prefix))
        return tuple(_handle(directory, directory if absolute else name) for directory, name in fitting)


@attrs.define
class InMemoryWorkspaceDraft(WorkspaceDraft):
    """A directory of the in-memory files."""

    _directory: str
    _place: str
    _provenance: Provenance
    _store: InMemoryWorkspaceStore

    @property
    def directory(self) -> str:
        return self._directory

    def copy(self, source: str, path: str, report: Callable[[int], None]) -> CopyMethod:
        directories = self._store.files.directories
        content = directories.get(source, {}).get(path)
        if content is None:
            raise StorageError(f"the workspace cannot be made: no such file ({path})")
        kept = directories[self._directory].get(path) == content
        directories[self._directory][path] = content
        report(len(content))
        return CopyMethod.KEPT if kept else self._store.method

    def write(self, path: str, content: bytes) -> None:
        self._store.files.directories[self._directory][path] = content

    def keep(self, path: str) -> None:
        assert path in self._store.files.directories[self._directory]

    def publish(self) -> ModelHandle:
        directories = self._store.files.directories
        if directories.get(self._place):
            raise StorageError("something else has taken the place of the workspace meanwhile")
        directories[self._place] = directories.pop(self._directory)
        self._store.workspaces[self._place] = Workspace(
            managed=True,
            source_repo=self._provenance.source_repo,
            source_revision=self._provenance.source_revision,
            operation=self._provenance.operation,
            created=EPOCH,
            content_hash="sha256:" + "0" * 64,
            hash_modified=EPOCH,
            clean=True,
        )
        return ModelHandle(self._place, self._place, Origin.WORKSPACE, display_name=posixpath.basename(self._place))


def _handle(directory: str, display_name: str) -> ModelHandle:
    return ModelHandle(directory, directory, Origin.WORKSPACE, display_name=display_name)
