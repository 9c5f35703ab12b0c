"""In-memory double of the machine probe.

probe = InMemoryMachineProbe(MachineReading(total_bytes=2**34, available_bytes=2**33))
probe.trees[4711] = ProcessTree(2, 10**8, MemoryKind.RESIDENT)
"""

from collections.abc import Sequence

from mlxk.application.ports.measuring import MachineProbe
from mlxk.domain.monitoring import MachineReading, ProcessTree


class InMemoryMachineProbe(MachineProbe):
    """Returns given readings; ``trees`` has those of processes by id.

    Args:
        machine: Returned by every call until ``machine`` is assigned.
    """

    def __init__(self, machine: MachineReading | None = None) -> None:
        self.machine = machine or MachineReading()
        self.trees: dict[int, ProcessTree] = {}

    def read(self, roots: Sequence[int]) -> tuple[MachineReading, tuple[ProcessTree | None, ...]]:
        return self.machine, tuple(map(self.trees.get, roots))
