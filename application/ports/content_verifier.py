"""Port: verification of a model's content against the digests recorded at download."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Protocol

import attrs

from mlxk.domain.models.model import ModelHandle


@attrs.frozen
class VerificationResult:
    """Result of hashing every file."""

    checked: int
    """Number of files with a recorded digest."""
    unverifiable: tuple[str, ...]
    """Files without a recorded digest, sorted."""
    damaged: tuple[str, ...]
    """Files that differ from their digest or cannot be read, sorted."""


class ContentVerifier(Protocol):
    """Hashes the files of one model, offline."""

    @abstractmethod
    def verify(self, handle: ModelHandle, progress: Callable[[int, int], None]) -> VerificationResult:
        """Read and hash every file.

        Args:
            handle: A model of any origin; the digests of a workspace are those of its record, if it has one.
            progress: Called with the bytes read so far and the total, often enough for a progress bar.

        Raises:
            StorageError: The directory cannot be read.
        """
