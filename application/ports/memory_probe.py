"""Port: the memory of the machine."""

from abc import abstractmethod
from typing import Protocol

from mlxk.domain.models.memory import MemoryReading


class MemoryProbe(Protocol):
    """Reads total and available memory. Cheap enough for every model load."""

    @abstractmethod
    def read(self) -> MemoryReading | None:
        """Return the current reading, or None when the system does not report it."""
