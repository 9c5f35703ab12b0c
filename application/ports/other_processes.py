"""Ports to other processes: the servers of this user that run already, and programs that offer tools."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import attrs

from mlxk.application.ports.text_generator import ResidentModel
from mlxk.domain.generation.request import EngineFigures


@attrs.frozen
class RunningServer:
    """One server."""

    key: str
    """Identifies it among those that run; opaque."""
    process: int
    """Id of the process that a signal stops."""
    url: str
    """Its address for clients."""
    version: str
    models: tuple[ResidentModel, ...]
    """In memory, sorted by name."""
    engine: EngineFigures | None = None
    """None for a server of a version that does not say."""


@attrs.frozen
class ComputingPlace:
    """Where the last request of this process was computed."""

    server: str | None
    """The address of the server; None for this process."""
    reason: str | None = None
    """Why no server computed it, in a few words; None when one did."""


class RunningServers(Protocol):
    """Lists the servers of this user, and has them unload models and stop."""

    @abstractmethod
    def servers(self, seconds: float | None = None) -> tuple[RunningServer, ...]:
        """Return the servers that respond, sorted by process.

        Args:
            seconds: How long each may take to do so; None: as long as nobody minds waiting.
        """

    @abstractmethod
    def unseen(self) -> tuple[str, ...]:
        """Return what the last listing could not show, a sentence each, such as a server that does not respond."""

    @abstractmethod
    def unload(self, server: RunningServer, model: ResidentModel) -> bool:
        """Have a server unload a model; return False when the server's work in progress has to end first.

        Raises:
            ExecutionError: The server does not respond any more.
        """

    @abstractmethod
    def stop(self, server: RunningServer) -> None:
        """Have a server stop, and return when it has; requests in progress may end first.

        Raises:
            ExecutionError: It does not respond any more, or does not stop in time.
        """

    @abstractmethod
    def last_place(self) -> ComputingPlace | None:
        """Return where the last request of this process was computed; None before one, or where none may be shared."""


@attrs.frozen
class ToolServer:
    """How one server is reached: a program to start, or an address."""

    name: str
    command: tuple[str, ...] = ()
    """The program and its arguments; empty for an address."""
    environment: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    """What the program gets of the environment beside what every program needs to run."""
    directory: str | None = None
    """The program's working directory; None for that of this process."""
    address: str | None = None
    """The URL of a server that runs already."""
    headers: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    """Sent with every request to the address."""


@attrs.frozen
class ServerTool:
    """One tool of a server, in the server's own words."""

    server: str
    """The server's name."""
    name: str
    description: str
    parameters: Mapping[str, Any]
    """A JSON Schema of its arguments."""


@attrs.frozen
class ToolResult:
    """What a call gave."""

    text: str
    """For the model; without control sequences, and no longer than the limit of the adapter."""
    failed: bool = False
    """Whether the tool reported an error."""
    left_out: tuple[str, ...] = ()
    """What of the result is not in the text, a few words each."""


class ToolServers(Protocol):
    """Servers of tools. One thread uses them."""

    @abstractmethod
    def start(self, servers: Sequence[ToolServer]) -> tuple[ServerTool, ...]:
        """Start and connect servers, once, and return the tools of all of them.

        Raises:
            ExecutionError: A server cannot be started, or does not answer as one; no server is left running.
        """

    @abstractmethod
    def call(self, tool: ServerTool, arguments: Mapping[str, Any]) -> ToolResult:
        """Call a tool. An interrupt cancels the call.

        Raises:
            ExecutionError: The server has ended, does not answer in time, or refuses the call.
        """

    @abstractmethod
    def close(self) -> None:
        """Disconnect and end the programs that were started. Idempotent."""


LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
"""Names by which a machine reaches itself, in lower case; an address of IPv6 without its brackets."""
