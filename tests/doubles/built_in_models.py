"""In-memory double of the models that come with the program.

built_in = InMemoryBuiltInModels({"demo": "/built-in/demo"})
built_in.find("demo").directory             # "/built-in/demo", the key for InMemoryModelFiles
"""

from collections.abc import Mapping

from mlxk.application.ports.built_in_models import BuiltInModels
from mlxk.domain.models.model import ModelHandle, Origin


class InMemoryBuiltInModels(BuiltInModels):
    """Built-in models by name.

    Args:
        models: Name to the pretended directory of the model, absolute.
    """

    def __init__(self, models: Mapping[str, str] | None = None) -> None:
        self._models = dict(models or {})

    def names(self) -> tuple[str, ...]:
        """Return the names, sorted."""
        return tuple(sorted(self._models))

    def find(self, name: str) -> ModelHandle | None:
        """Return the handle of one by its exact name, or None."""
        directory = self._models.get(name)
        return None if directory is None else ModelHandle(name, directory, Origin.BUILT_IN)
