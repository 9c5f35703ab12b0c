"""Port: read access to the files of a model."""

import datetime
from abc import abstractmethod
from typing import Protocol

import attrs

from mlxk.domain.models.model import FileEntry


@attrs.frozen
class FileListing:
    """The files of a model directory at one point in time."""

    files: tuple[FileEntry, ...]
    """Every regular file, links followed, sorted by path, without the litter of file managers and network drives."""
    dangling: tuple[str, ...]
    """Dangling links, sorted by path."""
    modified: datetime.datetime
    """Modification time of the directory, UTC."""


class ModelFiles(Protocol):
    """Reads files below a model directory. Links to files are followed, links to directories are not."""

    @abstractmethod
    def list(self, directory: str) -> FileListing:
        """List the files of a model.

        Files that disappear or cannot be accessed meanwhile are omitted; link cycles are not followed.

        Raises:
            StorageError: The directory does not exist or cannot be read.
        """

    @abstractmethod
    def outward_links(self, directory: str) -> tuple[str, ...]:
        """Return the links that lead out of a directory, to nowhere or to another directory, sorted.

        Raises:
            StorageError: The directory does not exist or cannot be read.
        """

    @abstractmethod
    def read(self, directory: str, path: str, limit: int) -> bytes | None:
        """Return the first ``limit`` bytes of one file, or None when it does not exist or cannot be read."""

    @abstractmethod
    def read_end(self, directory: str, path: str, limit: int) -> bytes | None:
        """Return the last ``limit`` bytes of one file, or None when it does not exist or cannot be read."""
