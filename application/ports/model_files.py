"""Port: reading the files of one model, whatever its origin."""

import datetime
from abc import abstractmethod
from typing import Protocol

import attrs

from mlxk.domain.models.model import FileEntry


@attrs.frozen
class FileListing:
    """The files of a model directory at one moment."""

    files: tuple[FileEntry, ...]
    """Every regular file, links followed, sorted by path."""
    dangling: tuple[str, ...]
    """Links whose target does not exist, sorted by path."""
    modified: datetime.datetime
    """When the directory last changed, UTC."""


class ModelFiles(Protocol):
    """Read access below one model directory. Links to files are followed, links to directories are not."""

    @abstractmethod
    def list(self, directory: str) -> FileListing:
        """List the files of a model.

        Files that vanish or cannot be looked at while listing are left out; link cycles are not followed.

        Raises:
            StorageError: The directory does not exist or cannot be read.
        """

    @abstractmethod
    def read(self, directory: str, path: str, limit: int) -> bytes | None:
        """Return the first ``limit`` bytes of one file, or None when it does not exist or cannot be read."""

    @abstractmethod
    def read_end(self, directory: str, path: str, limit: int) -> bytes | None:
        """Return the last ``limit`` bytes of one file, or None when it does not exist or cannot be read."""
