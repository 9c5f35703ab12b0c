"""Port: the servers of this user that are running."""

from abc import abstractmethod
from typing import Protocol

import attrs

from mlxk.application.ports.text_generator import ResidentModel


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
    def servers(self) -> tuple[RunningServer, ...]:
        """Return the servers that respond, sorted by process."""

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
