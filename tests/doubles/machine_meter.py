"""In-memory double of the machine meter.

meter = InMemoryMachineMeter(load=0.9)      # a busy machine
"""

from mlxk.application.ports.measuring import MachineMeter
from mlxk.domain.benchmark import Processor


class InMemoryMachineMeter(MachineMeter):
    """Returns given figures.

    Args:
        load: As the port returns it.
        peak: As the port returns it.
    """

    def __init__(self, load: float | None = 0.0, peak: int | None = 10**8) -> None:
        self._load = load
        self._peak = peak

    def processor(self) -> Processor:
        return Processor("Example M1", 8)

    def load(self) -> float | None:
        return self._load

    def peak_process_bytes(self) -> int | None:
        return self._peak
