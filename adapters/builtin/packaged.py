"""The models shipped as package data, one directory each below ``models``."""

import os

from mlxk.application.ports.built_in_models import BuiltInModels
from mlxk.domain.models.model import ModelHandle, Origin

# importlib.resources costs more than finding the model; package data is always installed as plain files here.
_DIRECTORY = os.path.join(os.path.dirname(os.path.abspath(__file__)), "models")


class PackagedBuiltInModels(BuiltInModels):
    """Finds the built-in models beside this module.

    Args:
        directory: Where they are; only tests need another one.
    """

    def __init__(self, directory: str = _DIRECTORY) -> None:
        self._directory = directory

    def names(self) -> tuple[str, ...]:
        """Return the names of the directories that hold a ``config.json``, sorted."""
        try:
            with os.scandir(self._directory) as entries:
                return tuple(sorted(entry.name for entry in entries if self.find(entry.name)))
        except OSError:
            return ()

    def find(self, name: str) -> ModelHandle | None:
        """Return the handle of one by its exact name, or None."""
        if not name or name.startswith(".") or "/" in name or "\0" in name:
            return None
        directory = f"{self._directory}/{name}"
        return ModelHandle(name, directory, Origin.BUILT_IN) if os.path.isfile(f"{directory}/config.json") else None
