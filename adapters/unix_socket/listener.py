"""The server's side of the socket: requests of this user's other programs, with a thread per connection."""

import contextlib
import itertools
import os
import selectors
import signal
import socket
import struct
import threading
import time
from array import array
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import attrs

import mlxk
from mlxk.adapters.unix_socket.protocol import (
    PROTOCOL,
    DisconnectedError,
    Document,
    Program,
    decoded,
    difference,
    encoded,
    error_document,
    is_own_peer,
    receive,
    send,
)
from mlxk.adapters.unix_socket.servers import listen, socket_folders
from mlxk.application.ports.model_tasks import TextEmbedder
from mlxk.application.ports.system import EventLog
from mlxk.application.ports.text_generator import (
    STATE_SECONDS,
    EngineState,
    ResidentModel,
    TextGenerator,
    TextStream,
)
from mlxk.domain.embedding import EmbeddingRequest
from mlxk.domain.errors import MlxkError
from mlxk.domain.generation.request import EngineFigures, Finished, GenerationRequest
from mlxk.domain.models.model import ModelHandle

MAX_CONNECTIONS = 64
"""Simultaneous connections; further programs compute in their own process."""

ARRIVAL_SECONDS = 60.0
"""Timeout of a connection until its request has arrived."""

_POLL_SECONDS = 0.05
"""Interval of the checks whether all requests have ended."""

UNLOAD_SECONDS = 1.0
"""How long to wait for the engine to unload a model, before the reply that it has not yet."""

SEND_SECONDS = 60
"""Timeout of sending to a program that reads nothing, such as a suspended one; then its answer is cancelled."""


class UseCounts(Protocol):
    """Counts the requests of other programs. Called from many threads."""

    def answers(self, model: ModelHandle, finished: Sequence[Finished], failure: str | None) -> None:
        """Count the completions of a request, or its failure by the error code."""

    def embeddings(self, model: ModelHandle, tokens: int, seconds: float) -> None:
        """Count an embedding request and the tokens of its texts."""


@attrs.frozen
class SharedEngine:
    """The parts of the server that requests on the socket use."""

    generator: TextGenerator
    embedder: TextEmbedder
    weight_bytes: Callable[[ModelHandle], int]
    """Size of a model's weights; raises ``MlxkError`` or ``OSError``."""
    budget_bytes: int | None
    """Budget of all weights in memory; None for no limit."""
    loads: bool
    """Whether it loads models that are not in memory."""
    admit: Callable[[], Callable[[], None]]
    """Reserves a slot for a request in progress and returns the function that releases it; raises ``MlxkError`` when
    the server is full or stopping."""
    counts: UseCounts
    """Counts the requests."""
    owner: int
    """The process to signal for stopping the server: the supervisor, or this process."""
    log: EventLog


class SocketListener:
    """Accepts connections on the server's socket.

    Args:
        folder: The folder for sockets of this user's servers.
        program: This program.
        url: The server's address for clients.
        engine: The parts of the server that requests use.
    """

    def __init__(self, folder: str, program: Program, url: str, engine: SharedEngine) -> None:
        self._folder = folder
        self._facts = program.facts()  # taken now, as the code was loaded: later installations do not count
        self._url = url
        self._engine = engine
        self._path = ""
        self._listening: socket.socket | None = None
        self._threads: set[threading.Thread] = set()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._held_descriptors: list[int] = []
        """Connections that stay open until the process ends."""

    def start(self) -> None:
        """Listen; if no socket can be created, log a warning and go on without one."""
        folders = socket_folders(self._folder)
        for folder in folders:
            try:
                self._listening, self._path = listen(folder, MAX_CONNECTIONS)
                break
            except (OSError, MlxkError) as error:
                reason = str(error)
            if folder != folders[-1]:
                self._engine.log.debug("the folder takes no socket, another one is used", folder=folder, reason=reason)
        if self._listening is None:
            self._engine.log.warning("other programs of this user cannot share the server", reason=reason)
            return
        threading.Thread(target=self._accept, args=(self._listening,), name="mlxk-socket", daemon=True).start()

    def close(self, deadline: Callable[[], float]) -> None:
        """Accept no more connections, and wait for the requests in progress.

        Args:
            deadline: Returns the end of the wait, seconds of the monotonic clock; called repeatedly.
        """
        self._closing.set()
        if self._listening is None:
            return
        with contextlib.suppress(OSError):
            os.unlink(self._path)
        folder = os.path.dirname(self._path)
        if folder != self._folder:
            with contextlib.suppress(OSError):  # another server has its socket there
                os.rmdir(folder)
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        while self._threads and time.monotonic() < deadline():
            time.sleep(_POLL_SECONDS)

    def _accept(self, listening: socket.socket) -> None:
        while not self._closing.is_set():
            try:
                connection, _ = listening.accept()
            except OSError:
                if self._closing.wait(0.1):  # closed; otherwise out of descriptors
                    return
                continue
            with self._lock:
                if len(self._threads) >= MAX_CONNECTIONS or not is_own_peer(connection):
                    connection.close()
                    continue
                thread = threading.Thread(target=self._serve, args=(connection,), name="mlxk-shared", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # out of threads
                    connection.close()
                    self._engine.log.warning("no thread can be started for another program")
                    continue
                self._threads.add(thread)  # its end waits for the lock

    def _serve(self, connection: socket.socket) -> None:
        began, operation, failure = time.monotonic(), "unknown", None
        try:
            with connection, contextlib.suppress(OSError, DisconnectedError):
                connection.settimeout(ARRIVAL_SECONDS)
                request, _ = receive(connection)
                operation = str(request.get("operation"))
                handler = {
                    "state": self._state,
                    "unload": self._unload,
                    "stop": self._stop,
                    "offer": self._offer,
                }.get(operation if request.get("protocol") == PROTOCOL else "")
                if handler is None:
                    operation = "unknown"
                    send(connection, {"url": self._url, "reason": "is of another version"})
                    return
                failure = handler(connection, request)
        finally:
            with self._lock:
                self._threads.discard(threading.current_thread())
            if operation != "state":
                seconds = time.monotonic() - began
                self._engine.log.info(
                    "request", logger="socket", operation=operation, error=failure, duration_ms=round(seconds * 1000, 1)
                )

    def _state(self, connection: socket.socket, _: Document) -> None:
        state = self._engine.generator.state(STATE_SECONDS)
        residents = self._residents(state)
        models = [{**attrs.asdict(each, recurse=False), "handle": encoded(each.handle, [])} for each in residents]
        send(
            connection,
            {
                "pid": self._engine.owner,
                "url": self._url,
                "version": mlxk.__version__,
                "models": models,
                "engine": attrs.asdict(_figures(state)),
            },
        )

    def _residents(self, state: EngineState) -> list[ResidentModel]:
        """Return all models in memory; a model that the engine has not reported yet has only its size."""
        reported = {each.handle: each for each in state.residents}
        missing = [handle for handle in state.models if handle not in reported]
        for handle in missing:
            with contextlib.suppress(MlxkError, OSError):
                reported[handle] = ResidentModel(handle, self._engine.weight_bytes(handle), None, in_use=True)
        return [reported[handle] for handle in state.models if handle in reported]

    def _unload(self, connection: socket.socket, request: Document) -> None:
        loaded = _loaded(_model_of(request), self._engine.generator.state(STATE_SECONDS))
        send(connection, {"unloaded": loaded is None or self._unload_once_idle(loaded)})

    def _unload_once_idle(self, model: ModelHandle) -> bool:
        """Have the engine unload a model once it is idle; return whether it has within ``UNLOAD_SECONDS``."""
        unloaded: list[ModelHandle] = []

        def unload() -> None:
            with contextlib.suppress(MlxkError):  # the engine has ended, and its models with it
                unloaded.extend(self._engine.generator.unload(model, once_idle=True))

        thread = threading.Thread(target=unload, name="mlxk-unload", daemon=True)
        thread.start()
        thread.join(UNLOAD_SECONDS)
        return bool(unloaded)

    def _stop(self, connection: socket.socket, _: Document) -> None:
        with self._lock:
            # Closed by the end of the process, for which the other program waits.
            self._held_descriptors.append(os.dup(connection.fileno()))
            is_first = len(self._held_descriptors) == 1
        send(connection, {})
        if is_first:  # a second signal would interrupt the answers in progress
            os.kill(self._engine.owner, signal.SIGTERM)

    def _offer(self, connection: socket.socket, offer: Document) -> str | None:
        """Accept or decline a request, and compute it if accepted; return the code of its error."""
        accepted, reason = self._decide(offer)
        send(connection, {"url": self._url, "offer": accepted, "reason": reason})
        if accepted is None:
            return None
        document, blobs = receive(connection)
        request = decoded(document.get("request"), blobs)
        try:
            release = self._engine.admit()
        except MlxkError as error:
            send(connection, {"declined": error.message})
            return error.code
        try:
            connection.settimeout(None)
            # A timeout of sending only: the engine's thread peeks at the connection, and must not block.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", SEND_SECONDS, 0))
            if isinstance(request, GenerationRequest):
                self._generate(connection, attrs.evolve(request, is_abandoned=lambda: _has_gone(connection)))
            elif isinstance(request, EmbeddingRequest):
                self._embed(connection, request)
        except MlxkError as error:
            send(connection, {"error": error_document(error)})
            return error.code
        finally:
            release()
        return None

    def _decide(self, offer: Document) -> tuple[str | None, str]:
        """Return ``loaded`` or ``fits`` for the model of an offered request, else None and the reason to decline it."""
        differing = difference(self._facts, offer.get("program"))
        if differing is not None:
            return None, f"has another {differing}"
        if self._closing.is_set():
            return None, "is shutting down"
        wanted = _model_of(offer)
        state = self._engine.generator.state(STATE_SECONDS)
        if _loaded(wanted, state) is not None:
            return "loaded", ""
        if not self._engine.loads:
            return None, "is for one model"
        try:
            needed = self._engine.weight_bytes(wanted)
        except (MlxkError, OSError):
            return None, "cannot read the model"
        budget, residents = self._engine.budget_bytes, self._residents(state)
        if budget is not None and len(residents) < len(state.models):
            return None, "has a model whose size is not known"
        if budget is not None and sum(each.weight_bytes for each in residents) + needed > budget:
            return None, "has no room for the model"
        return "fits", ""

    def _generate(self, connection: socket.socket, request: GenerationRequest) -> None:
        with self._engine.generator.submit(request) as stream:
            started = {"adaptations": encoded(stream.adaptations, []), "prompt_tokens": stream.prompt_tokens}
            send(connection, {"started": started})
            try:
                finished = _forward(stream, connection)
            except MlxkError as error:
                self._engine.counts.answers(request.model, (), error.code)
                raise
            except OSError:
                self._engine.counts.answers(request.model, (), "disconnected")
                raise
            self._engine.counts.answers(request.model, (finished,), None)

    def _embed(self, connection: socket.socket, request: EmbeddingRequest) -> None:
        began = time.monotonic()
        result = self._engine.embedder.embed(request)
        self._engine.counts.embeddings(request.model, result.tokens, time.monotonic() - began)
        vectors = result.vectors or tuple(itertools.chain.from_iterable(result.of_tokens))
        numbers = array("d", itertools.chain.from_iterable(vectors)).tobytes()
        remainder = encoded(attrs.evolve(result, vectors=(), of_tokens=()), [])
        counts = list(map(len, result.of_tokens))
        send(connection, {"embeddings": remainder, "dimensions": result.dimensions, "counts": counts}, [numbers])


def _forward(stream: TextStream, connection: socket.socket) -> Finished:
    """Send the events of a stream as they come, and cancel it when the client closes its side of the connection."""
    wakeup_reader, wakeup_writer = socket.socketpair()
    with wakeup_reader, wakeup_writer, selectors.DefaultSelector() as selector:
        for end in (wakeup_reader, wakeup_writer):
            end.setblocking(False)

        def on_events() -> None:
            with contextlib.suppress(OSError):  # full, so the reader wakes up anyway
                wakeup_writer.send(b"\0")

        selector.register(wakeup_reader, selectors.EVENT_READ)
        selector.register(connection, selectors.EVENT_READ)
        stream.subscribe(on_events)
        try:
            while True:
                ready = {key.fileobj for key, _ in selector.select()}
                if connection in ready and not connection.recv(1):
                    selector.unregister(connection)
                    stream.cancel()
                if wakeup_reader not in ready:
                    continue
                wakeup_reader.recv(4096)
                while events := stream.take():
                    blobs: list[bytes] = []
                    document: dict[str, Any] = {"events": [encoded(each, blobs) for each in events]}
                    send(connection, document, blobs)
                    if isinstance(events[-1], Finished):
                        return events[-1]
        finally:
            stream.subscribe(lambda: None)


def _figures(state: EngineState) -> EngineFigures:
    return EngineFigures(
        running=state.running,
        waiting=state.waiting,
        prompt_tokens=state.prompt_tokens + state.cached_tokens,
        cached_tokens=state.cached_tokens,
        generated_tokens=state.generated_tokens,
        array_bytes=state.active_bytes,
        kept_prompt_bytes=state.prefix_cache_bytes,
        responding=state.responding,
    )


def _loaded(wanted: ModelHandle, state: EngineState) -> ModelHandle | None:
    """Return the model in memory with the same files; ``models`` is current also while the engine is busy."""
    files = (wanted.directory, wanted.revision)
    return next((model for model in state.models if (model.directory, model.revision) == files), None)


def _model_of(request: Document) -> ModelHandle:
    model = decoded(request.get("model"))
    if not isinstance(model, ModelHandle):
        raise DisconnectedError
    return model


def _has_gone(connection: socket.socket) -> bool:
    """Whether the other program has closed its side."""
    try:
        return not connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True
