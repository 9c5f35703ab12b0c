"""The port to the facts that decide how weights are held: the machine's memory and its matrix multiplication."""

from abc import abstractmethod
from typing import Protocol

from mlxk.domain.models.footprint import Matrices, MemoryReading


class MemoryProbe(Protocol):
    """Reads the machine's memory and how it multiplies matrices; cheap enough for every model load. Never raises."""

    @abstractmethod
    def read(self) -> MemoryReading | None:
        """Return total and available memory in bytes; None when the system does not report it."""

    @abstractmethod
    def matrices(self) -> Matrices:
        """Return the device and the library that multiply matrices; loads the library if there is one."""
