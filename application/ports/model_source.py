"""Port: models by name."""

from abc import abstractmethod
from collections.abc import Iterable
from typing import Protocol

from mlxk.domain.models.model import ModelHandle


class ModelSource(Protocol):
    """A source of models: the cache, the workspace home, or the built-in models. Every call reads the disk."""

    @abstractmethod
    def names(self) -> Iterable[str]:
        """Return the names of all models, sorted; empty when the source does not exist.

        Raises:
            StorageError: The source exists but cannot be read.
        """

    @abstractmethod
    def find(self, name: str) -> ModelHandle | None:
        """Return the handle of the model of exactly this name, or None.

        Raises:
            StorageError: The source exists but cannot be read.
        """
