"""Ports of benchmarks: the machine's own figures, and a client that measures the completions of a server."""

from abc import abstractmethod
from typing import Protocol

import attrs

from mlxk.domain.benchmark import Processor, RemoteCompletion


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
