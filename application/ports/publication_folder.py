"""Port: read access to a folder to be published."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Protocol

from mlxk.domain.publication import ContentDigests, FolderScan


class PublicationFolder(Protocol):
    """Reads folders to be published. Links out of the folder are not followed."""

    @abstractmethod
    def find(self, path: str) -> str | None:
        """Return the absolute directory a path means, or None when it is not a directory."""

    @abstractmethod
    def scan(self, directory: str) -> FolderScan:
        """List the files to publish, by the rules of ``domain.publication`` and of the folder's ``.hfignore``.

        ``.hfignore`` has the syntax of ``.gitignore``; as in git, a file below an ignored directory cannot be included
        again.

        Raises:
            ValidationError: The rules are invalid.
            StorageError: The folder cannot be read.
        """

    @abstractmethod
    def text(self, directory: str, path: str, limit: int) -> str | None:
        """Return the text of a file; None when it is longer than ``limit`` bytes or binary.

        The text of a ``.safetensors`` file is its header, in which programs record metadata.

        Raises:
            StorageError: The file cannot be read.
        """

    @abstractmethod
    def digests(self, directory: str, path: str, report: Callable[[int], None]) -> ContentDigests:
        """Read a file and return its digests.

        Args:
            directory: The folder.
            path: The file, relative to it.
            report: Called with the bytes read so far.

        Raises:
            StorageError: The file cannot be read.
        """
