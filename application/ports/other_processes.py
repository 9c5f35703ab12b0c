"""Ports to other processes: the running servers of this user, and tool servers."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import attrs

from mlxk.application.ports.text_generator import ResidentModel
from mlxk.domain.generation.request import EngineFigures


@attrs.frozen
class RunningServer:
    """One running server."""

    key: str
    """Opaque id among the running servers."""
    process: int
    """Id of the process that stops the server when it gets a signal."""
    url: str
    """Its base URL for HTTP clients."""
    version: str
    """Of this program."""
    models: tuple[ResidentModel, ...]
    """Loaded models, sorted by name."""
    engine: EngineFigures | None = None
    """None for a server whose version does not report it."""


@attrs.frozen
class ComputingPlace:
    """The process that computed the last request."""

    server: str | None
    """The URL of the server; None for this process."""
    reason: str | None = None
    """Why no server computed it, a short phrase; None when one did."""


class RunningServers(Protocol):
    """Lists the running servers of this user, unloads their models, and stops them."""

    @abstractmethod
    def servers(self, seconds: float | None = None) -> tuple[RunningServer, ...]:
        """Return the servers that respond, sorted by process id; never raises.

        Args:
            seconds: Timeout for the response of each server; None means the adapter's default.
        """

    @abstractmethod
    def unseen(self) -> tuple[str, ...]:
        """Return a sentence for each server that the last ``servers`` could not list, as it did not respond."""

    @abstractmethod
    def unload(self, server: RunningServer, model: ResidentModel) -> bool:
        """Ask a server to unload a model.

        Returns:
            True when it is unloaded; False when the server unloads it after its requests in progress.

        Raises:
            ExecutionError: The server does not respond any more.
        """

    @abstractmethod
    def stop(self, server: RunningServer) -> None:
        """Stop a server and wait until it has ended; it may first complete its requests in progress.

        Raises:
            ExecutionError: The server does not respond any more, or does not stop in time.
        """

    @abstractmethod
    def last_place(self) -> ComputingPlace | None:
        """Return where the last request of this process was computed.

        Returns:
            None before the first request, or when this process does not use servers.
        """


@attrs.frozen
class ToolServer:
    """The connection to a tool server: a program to start, or a URL."""

    name: str
    command: tuple[str, ...] = ()
    """The program and its arguments; empty for a URL."""
    environment: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    """Environment variables of the program, in addition to those that every program needs."""
    directory: str | None = None
    """The program's working directory; None for that of this process."""
    address: str | None = None
    """The URL of a running server."""
    headers: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    """HTTP headers of every request to the URL."""


@attrs.frozen
class ServerTool:
    """One tool, as its server describes it."""

    server: str
    """The server's name."""
    name: str
    description: str
    parameters: Mapping[str, Any]
    """JSON Schema of its arguments."""


@attrs.frozen
class ToolResult:
    """The result of a tool call."""

    text: str
    """For the model; without control sequences, and no longer than the limit of the adapter."""
    failed: bool = False
    """Whether the tool reported an error."""
    left_out: tuple[str, ...] = ()
    """Parts of the result that are not in the text, a short phrase each."""


class ToolServers(Protocol):
    """Connections to tool servers. To be used from one thread."""

    @abstractmethod
    def start(self, servers: Sequence[ToolServer]) -> tuple[ServerTool, ...]:
        """Start or connect to all servers, and return their tools. To be called once.

        Raises:
            ExecutionError: A server cannot be started, or does not follow the protocol; no server is left running.
        """

    @abstractmethod
    def call(self, tool: ServerTool, arguments: Mapping[str, Any]) -> ToolResult:
        """Call a tool. ``KeyboardInterrupt`` cancels the call.

        Raises:
            ExecutionError: The server has ended, does not answer in time, or refuses the call.
        """

    @abstractmethod
    def close(self) -> None:
        """Disconnect, and end the programs that were started. Idempotent."""


LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
"""Host names of the loopback interface, in lower case; IPv6 without brackets."""
