"""In-memory double of the machine's memory.

probe = InMemoryMemoryProbe(MemoryReading(total=16 * 2**30, available=8 * 2**30))
probe.reading = None                        # from now on the machine does not tell
"""

from mlxk.application.ports.memory import MemoryProbe
from mlxk.domain.models.footprint import Matrices, MemoryReading


class InMemoryMemoryProbe(MemoryProbe):
    """Returns the reading it is given.

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
