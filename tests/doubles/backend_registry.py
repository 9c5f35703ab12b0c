"""In-memory double of the knowledge about installed backends.

registry = InMemoryBackendRegistry({Backend.MLX_LM: {"llama", "qwen3"}})
registry.supports(Backend.MLX_LM, "llama")      # True
registry.installed(Backend.MLX_VLM)             # False
"""

from collections.abc import Collection, Mapping

from mlxk.application.ports.backend_registry import BackendRegistry
from mlxk.domain.models.model import Backend


class InMemoryBackendRegistry(BackendRegistry):
    """Backends as given.

    Args:
        supported: The installed backends, each with the model types it can load.
    """

    def __init__(self, supported: Mapping[Backend, Collection[str]] | None = None) -> None:
        self._supported = {backend: frozenset(types) for backend, types in (supported or {}).items()}

    def installed(self, backend: Backend) -> bool:
        """Whether the backend was given."""
        return backend in self._supported

    def supports(self, backend: Backend, model_type: str) -> bool:
        """Whether the backend was given with this model type."""
        return model_type in self._supported.get(backend, frozenset())
