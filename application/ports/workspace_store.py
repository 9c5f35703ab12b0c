"""Port: workspaces, the editable copies of models in plain directories."""

from abc import abstractmethod
from collections.abc import Iterable
from typing import Protocol

from mlxk.application.ports.model_cache import ManifestEntry
from mlxk.domain.models.model import ModelHandle, Workspace


class WorkspaceStore(Protocol):
    """Finds workspaces by path and reads their record."""

    @abstractmethod
    def find(self, path: str) -> ModelHandle | None:
        """Return the handle of the workspace at a path, or None when it holds no ``config.json``.

        Args:
            path: Absolute, relative to the working directory, or starting with ``~/``.
        """

    @abstractmethod
    def home(self) -> Iterable[ModelHandle]:
        """Return the workspaces of the workspace home, sorted by directory name; empty when none is set or there.

        Raises:
            StorageError: The home exists but cannot be read.
        """

    @abstractmethod
    def below(self, pattern: str) -> Iterable[ModelHandle]:
        """Return the workspaces an explicit path selects, sorted by path; empty when there are none.

        A workspace selects itself; any other directory selects the workspaces directly in it; anything else is a
        prefix (``./gemma-`` selects ``./gemma-3n`` and ``./gemma-4``). ``display_name`` is the directory's name
        relative to the directory searched, or its absolute path when the pattern was absolute.

        Args:
            pattern: Absolute, relative to the working directory, or starting with ``~/``.

        Raises:
            StorageError: The directory exists but cannot be read.
        """

    @abstractmethod
    def read(self, handle: ModelHandle) -> Workspace:
        """Return provenance and state; an unmanaged workspace when it has no sentinel or an unreadable one."""

    @abstractmethod
    def manifest(self, handle: ModelHandle) -> tuple[ManifestEntry, ...] | None:
        """Return the files recorded for a workspace, sorted by path, or None when it is not managed.

        A file whose record does not cover every byte (weights, unless they were recorded deeply) has no digest.
        """

    @abstractmethod
    def recalculate(self, handle: ModelHandle, deep: bool = False) -> Workspace:
        """Record the present content as the clean state and return the new state; may be called again.

        Args:
            handle: A managed workspace.
            deep: Also record a digest of every byte, tensors included, so that deep verification can find a
                changed weight; reads the whole model.

        Raises:
            ValidationError: The workspace is not managed, so there is no record to write to; or it has no content
                hash, because of a link out of it or damaged weights, which the message names.
            StorageError: A file cannot be read, or the record cannot be written; the old record is then intact.
        """
