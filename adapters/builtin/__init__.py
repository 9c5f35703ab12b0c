"""The models shipped as package data, in one directory each below ``models``."""

import os

from mlxk.application.ports.model_cache import ModelSource
from mlxk.domain.models.model import ModelHandle, Origin

# Not importlib.resources, whose import takes longer than the lookup: package data is always installed as plain files.
_DIRECTORY = os.path.join(os.path.dirname(os.path.abspath(__file__)), "models")


class PackagedModelSource(ModelSource):
    """The built-in models, in a directory beside this module.

    Args:
        directory: Directory of the models; only tests need another one.
    """

    def __init__(self, directory: str = _DIRECTORY) -> None:
        self._directory = directory

    def names(self) -> tuple[str, ...]:
        try:
            with os.scandir(self._directory) as entries:
                return tuple(sorted(entry.name for entry in entries if self.find(entry.name)))
        except OSError:
            return ()

    def find(self, name: str) -> ModelHandle | None:
        if not name or name.startswith(".") or "/" in name or "\0" in name:
            return None
        directory = f"{self._directory}/{name}"
        return ModelHandle(name, directory, Origin.BUILT_IN) if os.path.isfile(f"{directory}/config.json") else None
