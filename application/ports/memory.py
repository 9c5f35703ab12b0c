"""The port to what decides how models are held: the memory of the machine, and what multiplies matrices."""

from abc import abstractmethod
from typing import Protocol

from mlxk.domain.models.footprint import Matrices, MemoryReading


class MemoryProbe(Protocol):
    """Reads what decides how models are held: total and available memory, and what multiplies matrices.

    Cheap enough for every model load.
    """

    @abstractmethod
    def read(self) -> MemoryReading | None:
        """Return the current reading, or None when the system does not report it."""

    @abstractmethod
    def matrices(self) -> Matrices:
        """Return what multiplies matrices; a library for it is loaded then."""
