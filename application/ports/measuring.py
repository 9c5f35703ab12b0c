"""Ports to what is measured: this machine, servers and their completions, and the charts of it."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Protocol

import attrs

from mlxk.domain.benchmark import Processor, RemoteCompletion
from mlxk.domain.charts import Chart
from mlxk.domain.monitoring import MachineReading, ProcessTree, ServerReading


class MachineMeter(Protocol):
    """Reads figures of this machine and process; never raises."""

    @abstractmethod
    def processor(self) -> Processor:
        """Return the processor."""

    @abstractmethod
    def load(self) -> float | None:
        """Return how busy all cores were in the last minute, 1 for all of them; None when the system does not say."""

    @abstractmethod
    def peak_process_bytes(self) -> int | None:
        """Return the most memory that this process has had resident since it began; None when unknown."""


@attrs.frozen
class CompletionServer:
    """A server that generates text, and how it is asked."""

    url: str
    """The address below which its API is, without a slash at the end."""
    api: str | None = None
    """The API by which it is asked, one of those that the client knows; None for the client's first."""
    api_key: str | None = attrs.field(default=None, repr=False)
    timeout_seconds: float = 600.0
    """How long it may say nothing."""


@attrs.frozen
class RemoteRequest:
    """One measured request."""

    model: str
    prompt: str = attrs.field(repr=False)
    """The text of the user's message."""
    max_tokens: int
    ignore_eos: bool = False
    """Whether the server is asked to go on after the end of the answer, which not every server knows."""


class CompletionClient(Protocol):
    """Asks servers, and measures. Thread-safe."""

    @abstractmethod
    def identify(self, server: CompletionServer) -> CompletionServer:
        """Return a server that names no API with the one that it seems to have; never raises."""

    @abstractmethod
    def models(self, server: CompletionServer) -> tuple[str, ...]:
        """Return the models that a server lists, in its order.

        Raises:
            NetworkError: It does not answer, or not in the form of the API.
            AccessDeniedError: It wants another key.
        """

    @abstractmethod
    def complete(self, server: CompletionServer, request: RemoteRequest) -> RemoteCompletion:
        """Ask for one streamed completion, on a connection of its own; a failure is part of the result."""

    @abstractmethod
    def manages(self, server: CompletionServer) -> bool:
        """Whether the API has requests to load, unload and fetch models, and to say what they take."""

    @abstractmethod
    def load(self, server: CompletionServer, model: str) -> float | None:
        """Have a model in memory, and return the seconds that took; None where the API has no request for it.

        Raises:
            NetworkError: The server does not answer, or refuses.
        """

    @abstractmethod
    def unload(self, server: CompletionServer, model: str) -> None:
        """Have a model out of memory, where the API has a request for it; raises as ``load``."""

    @abstractmethod
    def memory_bytes(self, server: CompletionServer, model: str) -> int | None:
        """Return what a loaded model takes of the memory; None when the server does not say. Raises as ``load``."""

    @abstractmethod
    def pull(self, server: CompletionServer, model: str, report: Callable[[int, int], None]) -> None:
        """Have a server fetch a model from where it fetches models.

        Args:
            server: The server.
            model: The name.
            report: Receives the bytes that are there, and all bytes, as often as the server says.

        Raises:
            NetworkError: As ``load``; the API has no request for it; or the model cannot be fetched.
        """


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
