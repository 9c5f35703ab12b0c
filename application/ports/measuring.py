"""Ports for measurements: of this machine, of servers and their completions; and for charts of the results."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Protocol

import attrs

from mlxk.domain.benchmark import Processor, RemoteCompletion
from mlxk.domain.charts import Chart
from mlxk.domain.monitoring import MachineReading, ProcessTree, ServerReading


class MachineMeter(Protocol):
    """Reads benchmark figures of this machine and process; never raises."""

    @abstractmethod
    def processor(self) -> Processor:
        """Return name and number of cores of the processor."""

    @abstractmethod
    def load(self) -> float | None:
        """Return the load of the last minute per core: 1.0 when all cores were busy; None when unknown."""

    @abstractmethod
    def peak_process_bytes(self) -> int | None:
        """Return the peak resident memory of this process in bytes; None when unknown."""


@attrs.frozen
class CompletionServer:
    """A server that generates text, and how to connect to it."""

    url: str
    """The base URL of its API, without a slash at the end."""
    api: str | None = None
    """The name of the API to use, one that the client supports; None for the client's default."""
    api_key: str | None = attrs.field(default=None, repr=False)
    timeout_seconds: float = 600.0
    """Longest time to wait for the next bytes of a response."""


@attrs.frozen
class RemoteRequest:
    """One measured request."""

    model: str
    prompt: str = attrs.field(repr=False)
    """The text of the user's message."""
    max_tokens: int
    ignore_eos: bool = False
    """Whether to ask the server to continue past the end-of-sequence token; not every server supports this field."""


class CompletionClient(Protocol):
    """Sends requests to servers and measures them. Thread-safe; every call opens a connection of its own."""

    @abstractmethod
    def identify(self, server: CompletionServer) -> CompletionServer:
        """Return the server with ``api`` set: unchanged if it was set, else the detected API; never raises."""

    @abstractmethod
    def models(self, server: CompletionServer) -> tuple[str, ...]:
        """Return the names of the models that a server lists, in its order.

        Raises:
            NetworkError: The server cannot be reached, answers with an error, or not in the form of the API.
            AccessDeniedError: The server rejects the API key.
        """

    @abstractmethod
    def complete(self, server: CompletionServer, request: RemoteRequest) -> RemoteCompletion:
        """Request one streamed completion and measure it; never raises, a failure is part of the result."""

    @abstractmethod
    def manages(self, server: CompletionServer) -> bool:
        """Whether the server's API can load, unload and pull models and report their memory."""

    @abstractmethod
    def load(self, server: CompletionServer, model: str) -> float | None:
        """Load a model into the server's memory.

        Returns:
            The duration in seconds; None when the API has no request for this, and nothing was done.

        Raises:
            NetworkError: The server cannot be reached, refuses, or does not answer in the form of the API.
        """

    @abstractmethod
    def unload(self, server: CompletionServer, model: str) -> None:
        """Unload a model from the server's memory; does nothing when the API has no request for this.

        Raises:
            NetworkError: As for ``load``.
        """

    @abstractmethod
    def memory_bytes(self, server: CompletionServer, model: str) -> int | None:
        """Return the bytes of memory that a loaded model takes; None when it is not loaded or the API does not say.

        Raises:
            NetworkError: As for ``load``.
        """

    @abstractmethod
    def pull(self, server: CompletionServer, model: str, report: Callable[[int, int], None]) -> None:
        """Have a server download a model from its registry, and wait until it has.

        Args:
            server: The server.
            model: The name in the server's registry.
            report: Callback with the bytes downloaded so far and the total known so far, at each message of the server.

        Raises:
            NetworkError: As for ``load``; the API has no request for this; or the download failed.
        """


class MachineProbe(Protocol):
    """Samples this machine and its processes, repeatedly and from one thread; never raises."""

    @abstractmethod
    def read(self, roots: Sequence[int]) -> tuple[MachineReading, tuple[ProcessTree | None, ...]]:
        """Take a sample.

        Processor shares cover the time since the previous sample; they are None in the first one.

        Args:
            roots: Process ids.

        Returns:
            The machine, and for each process id the sums over the process and its descendants; None when it does not
            run or may not be read.
        """


class ServerProbe(Protocol):
    """Reads the figures that servers of this program report over HTTP. Thread-safe."""

    @abstractmethod
    def read(self, server: CompletionServer) -> ServerReading:
        """Return the loaded models and the figures of the engine.

        Raises:
            NetworkError: The server cannot be reached, or is not a server of this program.
            AccessDeniedError: The server rejects the API key.
        """


class ChartWriter(Protocol):
    """Draws charts."""

    @abstractmethod
    def draw(self, chart: Chart, kind: str) -> bytes:
        """Return a chart as the content of an image file.

        Args:
            chart: The chart.
            kind: The file format, ``svg`` or ``png``.
        """
