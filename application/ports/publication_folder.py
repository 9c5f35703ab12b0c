"""Port: reading a folder that is to be published."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Protocol

from mlxk.domain.publication import ContentDigests, FolderScan


class PublicationFolder(Protocol):
    """Reads folders. No link is followed out of the folder it is in."""

    @abstractmethod
    def find(self, path: str) -> str | None:
        """Return the absolute directory a path means, or None when it is not a directory."""

    @abstractmethod
    def scan(self, directory: str) -> FolderScan:
        """List what is to be published, by ``domain.publication``'s rules and the folder's own.

        The folder's rules are in its ``.hfignore``, in the language of ``.gitignore``; a file below an ignored
        directory cannot be brought back, as in git.

        Raises:
            ValidationError: The rules cannot be read.
            StorageError: The folder cannot be read.
        """

    @abstractmethod
    def text(self, directory: str, path: str, limit: int) -> str | None:
        """Return the whole text of a file; None when it is longer than ``limit`` bytes or is not text.

        The text of a ``.safetensors`` file is its header, where programs note what they did and where.

        Raises:
            StorageError: The file cannot be read.
        """

    @abstractmethod
    def digests(self, directory: str, path: str, tell: Callable[[int], None]) -> ContentDigests:
        """Read a file and return what it hashes to.

        Args:
            directory: The folder.
            path: The file, relative to it.
            tell: Called with the bytes read.

        Raises:
            StorageError: The file cannot be read.
        """
