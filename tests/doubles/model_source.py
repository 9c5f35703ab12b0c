"""In-memory double of a source of models, such as the built-in ones.

built_in = InMemoryModelSource({"demo": "/built-in/demo"})
built_in.find("demo").directory             # "/built-in/demo", the key for InMemoryModelFiles
"""

from collections.abc import Mapping

from mlxk.application.ports.model_cache import ModelSource
from mlxk.domain.models.model import ModelHandle, Origin


class InMemoryModelSource(ModelSource):
    """Built-in models by name.

    Args:
        models: Fictitious directory of each model, absolute, by name.
    """

    def __init__(self, models: Mapping[str, str] | None = None) -> None:
        self._models = dict(models or {})

    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self._models))

    def find(self, name: str) -> ModelHandle | None:
        directory = self._models.get(name)
        return None if directory is None else ModelHandle(name, directory, Origin.BUILT_IN)
