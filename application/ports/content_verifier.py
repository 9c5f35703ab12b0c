"""Port: comparing every byte of a model with the digests recorded when it was downloaded."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Protocol

import attrs

from mlxk.domain.models.model import ModelHandle


@attrs.frozen
class VerificationResult:
    """What reading every byte found."""

    checked: int
    """Files that have a digest to compare with."""
    unverifiable: tuple[str, ...]
    """Files with no recorded digest, sorted."""
    damaged: tuple[str, ...]
    """Files whose content differs from their digest, or cannot be read, sorted."""


class ContentVerifier(Protocol):
    """Hashes the files of one model, offline."""

    @abstractmethod
    def verify(self, handle: ModelHandle, progress: Callable[[int, int], None]) -> VerificationResult:
        """Read and hash every file.

        Args:
            handle: A model from any origin; for workspaces the digests are those of their own record, if any.
            progress: Called with bytes read so far and bytes in total, often enough for a progress bar.

        Raises:
            StorageError: The directory cannot be read.
        """
