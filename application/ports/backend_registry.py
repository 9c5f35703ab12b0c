"""Port: which model architectures the installed backends can load."""

from abc import abstractmethod
from typing import Protocol

from mlxk.domain.models.model import Backend


class BackendRegistry(Protocol):
    """Knows the installed backends from their files; asking never imports one."""

    @abstractmethod
    def installed(self, backend: Backend) -> bool:
        """Whether the backend's package is installed."""

    @abstractmethod
    def supports(self, backend: Backend, model_type: str) -> bool:
        """Whether the backend has an implementation of a ``config.json`` model type; False when not installed."""
