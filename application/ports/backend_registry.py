"""Port: which of the installed backends run which models. Backends are known by opaque names; users see these too."""

from abc import abstractmethod
from typing import Protocol

from mlxk.domain.models.detection import Facts
from mlxk.domain.models.model import Capability, Runtime
from mlxk.domain.models.snapshot import ModelSnapshot


class BackendRegistry(Protocol):
    """Knows the installed backends from their files; asking never imports one."""

    @abstractmethod
    def dedicated_to(self, architecture: str) -> Capability | None:
        """Return the one operation for which the installed backends know an architecture.

        Returns:
            None when they know it for text generation as well, or not at all.
        """

    @abstractmethod
    def judge(self, snapshot: ModelSnapshot, facts: Facts) -> Runtime:
        """Return which backends can run a model whose files are complete, or the first reason why none can.

        Args:
            snapshot: The model's files.
            facts: What was detected from them.
        """

    @abstractmethod
    def converters(self, media: bool) -> tuple[str, ...]:
        """Return the backends that convert weights, the preferred one first, installed or not.

        Args:
            media: Whether the model also takes images or audio; the first backend then keeps those parts.
        """

    @abstractmethod
    def supports(self, backend: str, architecture: str) -> bool:
        """Whether a backend is installed and implements an architecture, named as in ``config.json``."""
