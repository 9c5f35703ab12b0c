"""Port: the models that come with the program."""

from abc import abstractmethod
from typing import Protocol

from mlxk.domain.models.model import ModelHandle


class BuiltInModels(Protocol):
    """Models shipped as package data: always there, never downloaded, never removed."""

    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """Return their names, sorted."""

    @abstractmethod
    def find(self, name: str) -> ModelHandle | None:
        """Return the handle of one by its exact name, or None."""
