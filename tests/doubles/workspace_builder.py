"""In-memory double of making workspaces.

builder = InMemoryWorkspaceBuilder(store, files, home="/home/me/models")
with builder.draft(builder.place("tiny", "tiny"), Provenance("clone"), keep_unfinished=True) as draft:
    draft.write("config.json", b"{}")
    draft.publish().directory                       # "/home/me/models/tiny"
"""

import contextlib
import posixpath
from collections.abc import Callable, Iterator

import attrs

from doubles.model_files import EPOCH, InMemoryModelFiles
from doubles.workspace_store import InMemoryWorkspaceStore
from mlxk.application.ports.workspace_builder import CopyMethod, Provenance, WorkspaceBuilder, WorkspaceDraft
from mlxk.domain.errors import LocksPresentError, StorageError, ValidationError
from mlxk.domain.models.model import ModelHandle, Origin, Workspace


class InMemoryWorkspaceBuilder(WorkspaceBuilder):
    """Makes workspaces in an in-memory store. Every parent directory exists.

    Args:
        store: Where workspaces appear.
        files: Where their files appear.
        home: The workspace home, absolute; None when there is none.
        protected: Directories in which no workspace is made.
        working_directory: Where relative paths start.
        method: How files are said to have come.
    """

    def __init__(
        self,
        store: InMemoryWorkspaceStore,
        files: InMemoryModelFiles,
        home: str | None = None,
        protected: tuple[str, ...] = (),
        working_directory: str = "/home/me",
        method: CopyMethod = CopyMethod.CLONED,
    ) -> None:
        self.store, self.files, self.method = store, files, method
        self._home, self._protected, self._working_directory = home, protected, working_directory
        self._drafts: set[str] = set()
        self._unfinished: dict[str, tuple[Provenance, dict[str, bytes]]] = {}

    def place(self, target: str | None, name: str) -> str:
        """Return the absolute directory a target means."""
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
        """Open the draft of a workspace."""
        if place in self._drafts:
            raise LocksPresentError("another process is making a workspace at the same place")
        directory = f"{posixpath.dirname(place)}/.{posixpath.basename(place)}.draft"
        earlier, kept = self._unfinished.pop(place, (provenance, {}))
        self.files.directories[directory] = dict(kept) if earlier == provenance else {}
        self._drafts.add(place)
        draft = InMemoryWorkspaceDraft(directory, place, provenance, self)
        try:
            yield draft
        finally:
            self._drafts.discard(place)
            rest = self.files.directories.pop(directory, None)
            if rest is not None and keep_unfinished:
                self._unfinished[place] = (provenance, rest)


@attrs.define
class InMemoryWorkspaceDraft(WorkspaceDraft):
    """A directory of the in-memory files."""

    _directory: str
    _place: str
    _provenance: Provenance
    _builder: InMemoryWorkspaceBuilder

    @property
    def directory(self) -> str:
        """Return where it is."""
        return self._directory

    def take(self, source: str, path: str, tell: Callable[[int], None]) -> CopyMethod:
        """Bring one file here."""
        directories = self._builder.files.directories
        content = directories.get(source, {}).get(path)
        if content is None:
            raise StorageError(f"the workspace cannot be made: no such file ({path})")
        kept = directories[self._directory].get(path) == content
        directories[self._directory][path] = content
        tell(len(content))
        return CopyMethod.KEPT if kept else self._builder.method

    def write(self, path: str, content: bytes) -> None:
        """Write one file."""
        self._builder.files.directories[self._directory][path] = content

    def publish(self) -> ModelHandle:
        """Move it to its place."""
        directories = self._builder.files.directories
        if directories.get(self._place):
            raise StorageError("something else has taken the place of the workspace meanwhile")
        directories[self._place] = directories.pop(self._directory)
        self._builder.store.workspaces[self._place] = Workspace(
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
