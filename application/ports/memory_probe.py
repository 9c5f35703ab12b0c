"""Port: the machine's memory."""

from abc import abstractmethod
from typing import Protocol

from mlxk.domain.models.memory import MemoryReading


class MemoryProbe(Protocol):
    """Reads how much memory the machine has and has left. Cheap enough to be asked before every load."""

    @abstractmethod
    def read(self) -> MemoryReading | None:
        """Return the reading of this moment, or None when the machine does not tell."""
