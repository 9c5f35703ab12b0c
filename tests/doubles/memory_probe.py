"""In-memory double of the memory probe.

probe = InMemoryMemoryProbe(MemoryReading(total=16 * 2**30, available=8 * 2**30))
probe.reading = None                        # from now on the memory is unknown
"""

from mlxk.application.ports.memory import MemoryProbe
from mlxk.domain.models.footprint import Matrices, MemoryReading


class InMemoryMemoryProbe(MemoryProbe):
    """Returns a given reading.

    Args:
        reading: Returned by every call until ``reading`` is assigned.
    """

    def __init__(self, reading: MemoryReading | None = None) -> None:
        self.reading = reading
        self.multiplied_by = Matrices()

    def read(self) -> MemoryReading | None:
        return self.reading

    def matrices(self) -> Matrices:
        return self.multiplied_by
