"""Ports of the monitor: the machine and its processes, servers that are asked by address, and charts."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Protocol

from mlxk.application.ports.benchmarking import CompletionServer
from mlxk.domain.charts import Chart
from mlxk.domain.monitoring import MachineReading, ProcessTree, ServerReading


class MachineProbe(Protocol):
    """Reads this machine and its processes again and again, by one thread; never raises."""

    @abstractmethod
    def read(self, roots: Sequence[int]) -> tuple[MachineReading, tuple[ProcessTree | None, ...]]:
        """Return the machine, and each process with its descendants.

        Shares of the processor are of the time since the reading before, and None in the first one.

        Args:
            roots: Ids of processes.

        Returns:
            The machine, and for each id what the process and its descendants have, None where it does not run or may
            not be read.
        """


class ServerProbe(Protocol):
    """Reads what servers of this program report at their addresses. Thread-safe."""

    @abstractmethod
    def read(self, server: CompletionServer) -> ServerReading:
        """Return the models in memory and the figures of the engine.

        Raises:
            NetworkError: It does not answer, or does not report the figures of this program's server.
            AccessDeniedError: It wants another key.
        """


class ChartWriter(Protocol):
    """Draws charts."""

    @abstractmethod
    def draw(self, chart: Chart, kind: str) -> bytes:
        """Return a picture of a chart.

        Args:
            chart: What to draw.
            kind: ``svg`` or ``png``.
        """
