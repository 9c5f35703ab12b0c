"""Text generation and embedding on a running server, or in this process if no server accepts the request."""

import contextlib
import itertools
import socket
import threading
import weakref
from array import array
from collections.abc import Callable, Sequence

import attrs

from mlxk.adapters.unix_socket.protocol import (
    DisconnectedError,
    OversizeFrameError,
    decoded,
    encoded,
    error_of,
    receive,
    send,
)
from mlxk.adapters.unix_socket.servers import SocketRunningServers
from mlxk.application.ports.model_tasks import TextEmbedder
from mlxk.application.ports.text_generator import EngineState, KeptPrompts, TextGenerator, TextStream
from mlxk.application.text_streams import QueuedTextStream
from mlxk.domain.embedding import EmbeddingRequest, Embeddings
from mlxk.domain.errors import ExecutionError, MlxkError
from mlxk.domain.generation.request import Finished, GenerationRequest, PromptProgress
from mlxk.domain.models.model import ModelHandle

ENDED = "the server ended before it answered"
ARRIVAL_SECONDS = 30.0
"""Timeout of sending a part of a request."""


class SharedTextGenerator(TextGenerator):
    """Generates text on a running server of this user, else by the generator of this process.

    Args:
        local: The generator of this process.
        servers: The running servers.
    """

    def __init__(self, local: TextGenerator, servers: SocketRunningServers) -> None:
        self.local = local
        self._servers = servers
        self._streams_lock = threading.Lock()
        self._streams: weakref.WeakSet[SocketTextStream] = weakref.WeakSet()
        """Running completions; guarded by the lock, since a set must not change while it is iterated."""

    def submit(self, request: GenerationRequest) -> TextStream:
        request.validate()
        offer = self._servers.offer(request.model)
        if offer is None:
            return self.local.submit(request)
        stream = SocketTextStream(offer.connection, lambda: self._submit_here(request, ENDED))
        try:
            refusal = stream.start(request)
        except BaseException:
            offer.connection.close()
            raise
        if refusal is not None:
            offer.connection.close()
            return self._submit_here(request, refusal)
        with self._streams_lock:
            self._streams.add(stream)
        return stream

    def load(self, request: GenerationRequest) -> None:
        self.local.load(request)

    def state(self, timeout_seconds: float) -> EngineState:
        return self.local.state(timeout_seconds)

    def unload(self, model: ModelHandle | None = None, *, once_idle: bool = False) -> tuple[ModelHandle, ...]:
        return self.local.unload(model, once_idle=once_idle)

    def kept_prompts(self, tenant: str | None = None) -> KeptPrompts:
        return self.local.kept_prompts(tenant)

    def forget_prompts(self, tenant: str | None = None) -> None:
        self.local.forget_prompts(tenant)

    def close(self) -> None:
        with self._streams_lock:
            streams = list(self._streams)
        for stream in streams:
            stream.cancel()
        self.local.close()

    def _submit_here(self, request: GenerationRequest, reason: str) -> TextStream:
        self._servers.computed_here(reason)
        return self.local.submit(request)


class SocketTextStream(QueuedTextStream):
    """The events of a request on a server, read by a thread of its own.

    Args:
        connection: Connection to the server that accepts the request.
        submit_here: Submits the request to the generator of this process, if the server ends before the first event.
    """

    def __init__(self, connection: socket.socket, submit_here: Callable[[], TextStream]) -> None:
        super().__init__()
        self._connection = connection
        self._submit_here = submit_here
        self._cancelled = threading.Event()

    def start(self, request: GenerationRequest) -> str | None:
        """Send the request and wait until it is queued; return the reason of a refusal, else None.

        Raises:
            MlxkError: The request is invalid or failed.
        """
        try:
            blobs: list[bytes] = []
            document = {"request": encoded(request, blobs)}
            self._connection.settimeout(ARRIVAL_SECONDS)
            send(self._connection, document, blobs)
            self._connection.settimeout(None)
            reply, _ = receive(self._connection)
            if "declined" in reply:
                return f"the server says: {reply['declined']}"
            if "error" in reply:
                raise error_of(reply["error"])
            self.adaptations = decoded(reply["started"]["adaptations"])
            self.prompt_tokens = reply["started"]["prompt_tokens"]
        except OversizeFrameError:
            return "the request is too large for the socket"
        except (OSError, DisconnectedError, LookupError, TypeError):
            return ENDED
        self.on_cancel = self._cancel_there
        threading.Thread(target=self._read, name="mlxk-server-events", daemon=True).start()
        return None

    def _cancel_there(self) -> None:
        """Have the server cancel the request by closing our side; the stream then ends with its last event."""
        self._cancelled.set()
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)

    def _read(self) -> None:
        has_output = False
        with self._connection:
            try:
                while True:
                    reply, blobs = receive(self._connection)
                    if "error" in reply:
                        self.put(error_of(reply["error"]))
                        return
                    for document in reply["events"]:
                        event = decoded(document, blobs)
                        has_output = has_output or not isinstance(event, PromptProgress)
                        self.put(event)
                        if isinstance(event, Finished):
                            return
            except (OSError, DisconnectedError, LookupError, TypeError):
                pass
        if has_output or self._cancelled.is_set():
            self.put(
                ExecutionError(
                    "the server that was answering has ended", hint="Repeat the command: it needs no server."
                )
            )
        else:
            self._compute_here()

    def _compute_here(self) -> None:
        try:
            with self._submit_here() as stream:
                self.on_cancel = stream.cancel
                if self._cancelled.is_set():
                    stream.cancel()
                for event in stream:
                    self.put(event)
        except MlxkError as error:
            self.put(error)


class SharedTextEmbedder(TextEmbedder):
    """Embeds texts on a running server of this user, else by the embedder of this process.

    Args:
        local: Returns the embedder of this process.
        servers: The running servers.
    """

    def __init__(self, local: Callable[[], TextEmbedder], servers: SocketRunningServers) -> None:
        self._local = local
        self._servers = servers

    def embed(self, request: EmbeddingRequest) -> Embeddings:
        offer = self._servers.offer(request.model)
        if offer is None:
            return self._local().embed(request)
        with offer.connection as connection:
            try:
                connection.settimeout(ARRIVAL_SECONDS)
                sending: list[bytes] = []
                send(connection, {"request": encoded(request, sending)}, sending)
                connection.settimeout(None)
                reply, blobs = receive(connection)
                if "error" in reply:
                    raise error_of(reply["error"])
                if "embeddings" in reply:
                    embeddings = decoded(reply["embeddings"])
                    return _with_vectors(embeddings, blobs[0], int(reply["dimensions"]), reply["counts"])
                reason = f"the server says: {reply.get('declined')}"
            except (OSError, DisconnectedError, LookupError, ValueError, TypeError):
                reason = ENDED
        self._servers.computed_here(reason)
        return self._local().embed(request)


def _with_vectors(embeddings: Embeddings, data: bytes, dimensions: int, counts: Sequence[int]) -> Embeddings:
    """Return embeddings with their vectors.

    Args:
        embeddings: Embeddings without vectors.
        data: The numbers of all vectors, as doubles.
        dimensions: Length of a vector.
        counts: Vectors per input of a multi-vector model; empty for one vector per input.
    """
    numbers = array("d", data)
    starts = range(0, len(numbers), dimensions or 1)
    vectors = tuple(tuple(numbers[start : start + dimensions]) for start in starts)
    if not counts:
        return attrs.evolve(embeddings, vectors=vectors)
    remaining = iter(vectors)
    return attrs.evolve(embeddings, of_tokens=tuple(tuple(itertools.islice(remaining, count)) for count in counts))
