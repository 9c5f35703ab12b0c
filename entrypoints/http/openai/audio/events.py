"""The events of a request that is computed in its own thread, one step at a time, and the body of a streamed response.

Between steps a disconnect and the shutdown of the server are checked.
"""

import threading
from collections.abc import Callable, Generator, Iterator
from typing import Generic, TypeVar

from mlxk.application.ports.system import EventLog
from mlxk.domain.errors import ExecutionError, InternalError, MlxkError, ServerShutdownError
from mlxk.entrypoints.http.lifecycle import ServerLifecycle
from mlxk.entrypoints.http.request_scope import Trace, Tracer

E = TypeVar("E")


class ServedEvents(Generic[E]):
    """The events of one request; ``close`` releases its resources, and may be called twice.

    Args:
        events: Those of the use case.
        lifecycle: Says whether the server is shutting down.
        releases: Called by ``close``.
        notice: Called with each event before it is served.
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
        """After ``begin``: the first event, which iterating yields again."""
        self._client_gone = threading.Event()

    def disconnected(self) -> None:
        """Callback of the disconnect, from any thread."""
        self._client_gone.set()

    def begin(self) -> None:
        """Compute the first event, so that an error before it has a status of its own.

        Raises:
            MlxkError: It failed.
        """
        self.first = next(self._events, None)

    def __iter__(self) -> Iterator[E]:
        """Yield the events.

        Raises:
            MlxkError: The computation failed, the server shuts down, or the client has disconnected.
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
    """The body of a streamed response. WSGI servers close it, even when its iteration never started.

    Args:
        frames: The bytes, made from events.
        close: Releases everything.
        failed: Returns the frame of an error; None where the format has none, and the connection is to break off.
        log: Receives faults.
        trace: Ends with the body.
        tracer: Records it.
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
        """Release everything."""
        self._close()
        trace, self._trace = self._trace, None
        if trace is not None:
            self._tracer.end(trace)
