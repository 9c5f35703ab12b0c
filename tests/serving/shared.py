"""A server's socket in this process, and the adapters of another program that uses it, over generators of a test."""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import attrs
from doubles.event_log import InMemoryEventLog
from doubles.text_embedder import InMemoryTextEmbedder
from doubles.text_generator import InMemoryTextGenerator

from mlxk.adapters.unix_socket.listener import SharedEngine, SocketListener
from mlxk.adapters.unix_socket.protocol import Program
from mlxk.adapters.unix_socket.servers import SocketRunningServers, socket_folders
from mlxk.adapters.unix_socket.sharing import SharedTextEmbedder, SharedTextGenerator
from mlxk.domain.errors import QueueFullError
from mlxk.domain.generation.request import Finished
from mlxk.domain.models.model import ModelHandle, Origin

PROGRAM = Program("/cache/hub", None)
MODEL = ModelHandle("org/one", "/cache/hub/one", Origin.CACHE, "1" * 40)
URL = "http://127.0.0.1:8000"


class Counts:
    """Counts nothing."""

    def answers(self, model: ModelHandle, finished: Sequence[Finished], failure: str | None) -> None:
        """Do nothing."""

    def embeddings(self, model: ModelHandle, tokens: int, seconds: float) -> None:
        """Do nothing."""


@attrs.define
class SharedServer:
    """Both sides of a socket."""

    folder: str
    generator: InMemoryTextGenerator = attrs.field(factory=InMemoryTextGenerator)
    """Of the server."""
    local: InMemoryTextGenerator = attrs.field(factory=InMemoryTextGenerator)
    """Of the program."""
    embedder: InMemoryTextEmbedder = attrs.field(factory=InMemoryTextEmbedder)
    local_embedder: InMemoryTextEmbedder = attrs.field(factory=InMemoryTextEmbedder)
    log: InMemoryEventLog = attrs.field(factory=InMemoryEventLog)
    budget_bytes: int | None = None
    model_bytes: int = 1000
    sizes: dict[ModelHandle, int | None] = attrs.field(factory=dict)
    """Of models that have another size; None for one whose files cannot be read."""
    loads: bool = True
    full: bool = False
    """Whether it takes no more requests."""
    owner: int = attrs.field(factory=os.getpid)

    @contextlib.contextmanager
    def listening(self, program: Program = PROGRAM) -> Iterator[SocketListener]:
        """Listen as a server."""
        engine = SharedEngine(
            generator=self.generator,
            embedder=self.embedder,
            weight_bytes=self._weight_bytes,
            budget_bytes=self.budget_bytes,
            loads=self.loads,
            admit=self._admit,
            counts=Counts(),
            owner=self.owner,
            log=self.log,
        )
        listener = SocketListener(self.folder, program, URL, engine)
        listener.start()
        try:
            yield listener
        finally:
            listener.close(lambda: 0.0)

    def servers(self, program: Program = PROGRAM) -> SocketRunningServers:
        """Return the servers as a program sees them."""
        return SocketRunningServers(self.folder, program)

    def sharing(self, servers: SocketRunningServers | None = None) -> SharedTextGenerator:
        """Return the generator of a program."""
        return SharedTextGenerator(self.local, servers or self.servers())

    def embedding(self) -> SharedTextEmbedder:
        """Return the embedder of a program."""
        return SharedTextEmbedder(lambda: self.local_embedder, self.servers())

    def _weight_bytes(self, model: ModelHandle) -> int:
        size = self.sizes.get(model, self.model_bytes)
        if size is None:
            raise FileNotFoundError
        return size

    def _admit(self) -> Callable[[], None]:
        if self.full:
            raise QueueFullError("The server is busy.")
        return lambda: None


def socket_folder_of(folder: Path) -> str:
    """Return a folder for the sockets of a test, a short one where paths below the test's own are too long."""
    return socket_folders(str(folder / "run"))[0]


def is_taken(server: SharedServer) -> bool:
    """Whether the server takes a request."""
    offer = server.servers().offer(MODEL)
    if offer is not None:
        offer.connection.close()
    return offer is not None
