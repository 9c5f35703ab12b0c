"""The events of speech and transcription requests, computed in the thread of the request, and their streamed body.

Between events the thread checks for a disconnect and for the shutdown of the server.
"""

import threading
from collections.abc import Callable, Generator, Iterator
from typing import Generic, TypeVar

import falcon

from mlxk.application.ports.system import EventLog
from mlxk.domain.errors import ExecutionError, InternalError, MlxkError, ServerShutdownError
from mlxk.entrypoints.http.api import ServerContext
from mlxk.entrypoints.http.generation.renderer import SSE_HEADERS, sse_frame
from mlxk.entrypoints.http.lifecycle import ServerLifecycle
from mlxk.entrypoints.http.openai.errors import error_document
from mlxk.entrypoints.http.request_scope import Trace, Tracer, request_id, trace_of

E = TypeVar("E")


class ServedEvents(Generic[E]):
    """The events of one request; ``close`` releases its resources, and may be called twice.

    Args:
        events: Events of the use case.
        lifecycle: Knows whether the server is shutting down.
        releases: Called by ``close``.
        notice: Called with each event before it is yielded.
    """

    def __init__(
        self,
        events: Generator[E, None, None],
        lifecycle: ServerLifecycle,
        releases: tuple[Callable[[], None], ...],
        notice: Callable[[E], None],
    ) -> None:
        self._events = events
        self._lifecycle = lifecycle
        self._releases = releases
        self._notice = notice
        self.first: E | None = None
        """The first event, after ``begin``; iteration yields it, too."""
        self._client_gone = threading.Event()

    def disconnected(self) -> None:
        """Callback of the disconnect, from any thread."""
        self._client_gone.set()

    def begin(self) -> None:
        """Compute the first event, so that an error before it still sets the status of the response.

        Raises:
            MlxkError: The computation failed.
        """
        self.first = next(self._events, None)

    def __iter__(self) -> Iterator[E]:
        """Yield the events.

        Raises:
            MlxkError: The computation failed, the server is shutting down, or the client has disconnected.
        """
        if self.first is not None:
            self._notice(self.first)
            yield self.first
        for event in self._events:
            if self._client_gone.is_set():
                raise ExecutionError("The client has gone.")
            if self._lifecycle.aborted:
                raise ServerShutdownError("The server is shutting down.", hint="Send the request again.")
            self._notice(event)
            yield event

    def close(self) -> None:
        """Stop the computation and release what it holds."""
        try:
            self._events.close()
        finally:
            for release in self._releases:
                release()


class StreamedBody:
    """The body of a streamed response. WSGI servers close it, even if they never iterated over it.

    Args:
        frames: The frames of the events.
        close: Releases the resources of the request.
        failed: Returns the frame of an error; None if the format has none, so that the connection breaks off.
        log: Receives faults.
        trace: Ends with the body.
        tracer: Records the trace.
    """

    def __init__(
        self,
        frames: Iterator[bytes],
        close: Callable[[], None],
        failed: Callable[[MlxkError], bytes] | None,
        log: EventLog,
        trace: Trace,
        tracer: Tracer,
    ) -> None:
        self._frames = frames
        self._close = close
        self._failed = failed
        self._log = log
        self._trace: Trace | None = trace
        self._tracer = tracer

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._frames
        except MlxkError as error:
            yield from self._ended_by(error)
        except Exception as fault:  # noqa: BLE001 - the headers are sent, so an event is the only way to report it
            self._log.error("a streamed answer could not be delivered", error=type(fault).__name__)
            yield from self._ended_by(InternalError("The answer could not be delivered."))

    def _ended_by(self, error: MlxkError) -> Iterator[bytes]:
        if self._trace is not None:
            self._trace.error = error.code
        if self._failed is None:
            raise error
        yield self._failed(error)

    def close(self) -> None:
        """Release the resources of the request, and end its trace."""
        self._close()
        trace, self._trace = self._trace, None
        if trace is not None:
            self._tracer.end(trace)


def send_stream(
    server: ServerContext,
    request: falcon.Request,
    response: falcon.Response,
    frames: Iterator[bytes],
    close: Callable[[], None],
    content_type: str | None = None,
) -> None:
    """Stream frames as the body of a response.

    Args:
        server: Provides log and tracer.
        request: The request.
        response: The response.
        frames: The frames.
        close: Releases the resources of the request at the end.
        content_type: Content type of a stream of plain bytes; None for server-sent events, which report errors.
    """
    trace, identity = trace_of(request), request_id(request)
    trace.ends_later = True
    server.tracer.identify(request, trace, identity)

    def error_frame(error: MlxkError) -> bytes:
        return sse_frame(error_document(error, identity))

    for name, value in SSE_HEADERS.items() if content_type is None else (("Content-Type", content_type),):
        response.set_header(name, value)
    failed = error_frame if content_type is None else None
    response.stream = StreamedBody(frames, close, failed, server.services.log, trace, server.tracer)
