"""In-memory double of workspaces.

    store = InMemoryWorkspaceStore({"/home/me/gemma": Workspace(managed=True, clean=False)}, home="/home/me")
    handle = store.find("./gemma")              # relative to working_directory, "/home/me" unless told otherwise
    store.recalculate(handle).clean             # True

The files of a workspace are given to ``InMemoryModelFiles`` under its directory.
"""

import hashlib
import posixpath
from collections.abc import Mapping

import attrs

from doubles.model_files import EPOCH
from mlxk.application.ports.model_cache import ManifestEntry
from mlxk.application.ports.workspace_store import WorkspaceStore
from mlxk.domain.errors import ValidationError
from mlxk.domain.models.model import ModelHandle, Origin, Workspace


class InMemoryWorkspaceStore(WorkspaceStore):
    """Workspaces held in a dictionary; change ``workspaces`` at any time, as another process would change the disk.

    Args:
        workspaces: Absolute directory to provenance and state.
        home: The workspace home, absolute; None when there is none.
        working_directory: Where relative paths start; also what ``~`` stands for.
        manifests: Absolute directory to the files recorded for it.
    """

    def __init__(
        self,
        workspaces: Mapping[str, Workspace] | None = None,
        home: str | None = None,
        working_directory: str = "/home/me",
        manifests: Mapping[str, tuple[ManifestEntry, ...]] | None = None,
    ) -> None:
        self.workspaces = dict(workspaces or {})
        self._home = home
        self._working_directory = working_directory
        self._manifests = dict(manifests or {})

    def find(self, path: str) -> ModelHandle | None:
        """Return the handle of the workspace at a path, or None."""
        directory = self._absolute(path)
        name = directory if posixpath.isabs(path) else posixpath.basename(directory)
        return _handle(directory, name) if directory in self.workspaces else None

    def home(self) -> tuple[ModelHandle, ...]:
        """Return the workspaces of the home, sorted by directory name."""
        return () if self._home is None else self._children(self._home, "", absolute=False)

    def below(self, pattern: str) -> tuple[ModelHandle, ...]:
        """Return the workspaces an explicit path selects, sorted by path."""
        directory, absolute = self._absolute(pattern), pattern.startswith("/")
        if directory in self.workspaces:
            return (_handle(directory, directory if absolute else posixpath.basename(directory)),)
        if any(workspace.startswith(posixpath.join(directory, "")) for workspace in self.workspaces):
            return self._children(directory, "", absolute)
        return self._children(posixpath.dirname(directory), posixpath.basename(directory), absolute)

    def read(self, handle: ModelHandle) -> Workspace:
        """Return provenance and state, unmanaged for an unknown directory."""
        return self.workspaces.get(handle.directory, Workspace(managed=False))

    def manifest(self, handle: ModelHandle) -> tuple[ManifestEntry, ...] | None:
        """Return the files recorded for a managed workspace."""
        if not self.read(handle).managed:
            return None
        return tuple(sorted(self._manifests.get(handle.directory, ()), key=lambda entry: entry.path))

    def recalculate(self, handle: ModelHandle, deep: bool = False) -> Workspace:
        """Mark a managed workspace as clean; its hash is a stand-in derived from the directory's name.

        Raises:
            ValidationError: The workspace is not managed.
        """
        workspace = self.read(handle)
        if not workspace.managed:
            raise ValidationError(f"'{handle.display_name or handle.name}' is not a managed workspace")
        digest = hashlib.sha256(handle.directory.encode()).hexdigest()
        fresh = attrs.evolve(workspace, content_hash=f"sha256:{digest}", hash_modified=EPOCH, clean=True)
        self.workspaces[handle.directory] = fresh
        return fresh

    def _absolute(self, path: str) -> str:
        expanded = self._working_directory + path[1:] if path == "~" or path.startswith("~/") else path
        return posixpath.normpath(posixpath.join(self._working_directory, expanded))

    def _children(self, parent: str, prefix: str, absolute: bool) -> tuple[ModelHandle, ...]:
        names = sorted(
            posixpath.basename(directory) for directory in self.workspaces if posixpath.dirname(directory) == parent
        )
        fitting = ((posixpath.join(parent, name), name) for name in names if name.startswith(prefix))
        return tuple(_handle(directory, directory if absolute else name) for directory, name in fitting)


def _handle(directory: str, display_name: str) -> ModelHandle:
    return ModelHandle(directory, directory, Origin.WORKSPACE, display_name=display_name)
