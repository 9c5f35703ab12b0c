"""Port: the Hugging Face models cached on this disk."""

from abc import abstractmethod
from collections.abc import Iterable
from typing import Protocol

import attrs

from mlxk.domain.models.model import ModelHandle


@attrs.frozen
class ManifestEntry:
    """What the hub said about one file of a revision when it was downloaded."""

    path: str
    """Relative to the snapshot, with ``/`` between parts."""
    size_bytes: int
    digest: str | None
    """64 hexadecimal digits: sha256 of the content; 40: git's sha1 of it as a blob; None: not recorded."""


class ModelCache(Protocol):
    """The models in the hub cache, read only. Every call looks at the disk anew; a model may vanish between calls."""

    @abstractmethod
    def names(self) -> Iterable[str]:
        """Return the ``org/name`` of every cached model, sorted; empty when there is no cache.

        Models without any snapshot are included: they are broken downloads, and are shown as such.

        Raises:
            StorageError: The cache exists but cannot be read.
        """

    @abstractmethod
    def find(self, name: str, revision: str | None = None) -> ModelHandle | None:
        """Return the handle of one cached model by its exact name, or None when it is not cached.

        Args:
            name: ``org/name``.
            revision: A branch, a tag, a commit or a prefix of one; None means the snapshot ``refs/main`` points
                to, or the newest one when there is no such reference or its snapshot is not here. A model with no
                snapshot at all has a handle whose revision is None and whose directory is the model's folder.

        Raises:
            RevisionNotFoundError: The model is cached but that revision is not, or the prefix fits several;
                ``matches`` lists the revisions that are here.
            StorageError: The cache exists but cannot be read.
        """

    @abstractmethod
    def manifest(self, handle: ModelHandle) -> tuple[ManifestEntry, ...] | None:
        """Return what a handle's revision should hold, sorted by path; None when the hub client kept no record."""

    @abstractmethod
    def unfinished_downloads(self, handle: ModelHandle) -> int:
        """Return how many files of this model were left half downloaded (``.incomplete`` files beside its blobs)."""
