"""``ResponseRenderer``, the extension point for HTTP APIs, and the writers that send what it renders.

It renders the events of ``domain.generation.request``. An API that generates text has a request reader, a renderer, a
resource, and one entry in ``app.APIS``; everything else is shared.
"""

import datetime
import json
import queue
import threading
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

import attrs

from mlxk.domain.errors import MlxkError
from mlxk.domain.generation.request import Finished, GenerationEvent


@attrs.frozen
class ResponseContext:
    """Metadata that the body of a response may contain."""

    request_id: str
    created: datetime.datetime
    model: str
    """Name in the request; the id of the model that answers in place of an unknown one."""
    fingerprint: str
    """Fingerprint of the weights."""
    choices: int
    """Number of completions in the response."""
    alternatives: int
    """Number of completions of each prompt; they have consecutive indices."""
    prompt_tokens: int = 0
    """Tokens of all prompts; 0 for a recording."""


class ResponseRenderer(Protocol):
    """Renders one response in the format of an API.

    A streamed response is ``opening``, any number of ``progress``, ``event`` and ``keep_alive``, then ``closing`` or
    ``error``. A whole response is ``whole`` alone. An instance serves one response, from one thread at a time.
    """

    media_type: str
    """Content type of a whole response."""
    stream_headers: Mapping[str, str]
    """Headers of a streamed response, its content type among them."""

    @abstractmethod
    def opening(self) -> bytes:
        """Return the first bytes of a stream; not empty, so that the headers are sent before the first token."""

    @abstractmethod
    def keep_alive(self) -> bytes:
        """Return a frame without content, sent during silence; empty if the format has none."""

    def progress(self, done: int, total: int) -> bytes:
        """Return a frame with the number of prompt tokens computed so far, sent about once a second at most.

        By default the keep-alive frame, for formats that cannot express progress.
        """
        return self.keep_alive()

    @abstractmethod
    def event(self, index: int, event: GenerationEvent) -> bytes:
        """Return the frames of one event.

        Args:
            index: Index of the choice, from 0.
            event: Next event of that choice.
        """

    @abstractmethod
    def closing(self, finished: Sequence[Finished]) -> bytes:
        """Return the last frames of a stream that succeeded.

        Args:
            finished: The last event of each choice, in order.
        """

    @abstractmethod
    def error(self, error: MlxkError) -> bytes:
        """Return the last frames of a stream that failed after its headers were sent."""

    @abstractmethod
    def whole(self, choices: Sequence[Sequence[GenerationEvent]], finished: Sequence[Finished]) -> bytes:
        """Return the body of a response that is not streamed.

        Args:
            choices: All events of each choice, in order.
            finished: The last event of each choice, in order.
        """


RendererFactory = Callable[[ResponseContext], ResponseRenderer]
"""Builds the renderer of a response once its context is known."""


SSE_HEADERS = MappingProxyType(
    {
        "Content-Type": "text/event-stream; charset=utf-8",
        "Cache-Control": "no-cache, no-transform",
        "X-Accel-Buffering": "no",
    }
)

OPENING_COMMENT = b": ok\n\n"
"""Sent at once, so that the headers are sent before the first token."""

KEEP_ALIVE_COMMENT = b": ping\n\n"
"""Sent during silence, so that no proxy between server and client times out."""


def progress_comment(done: int, total: int) -> bytes:
    """Return a comment with the number of prompt tokens computed so far."""
    return f": prefill {done}/{total}\n\n".encode()


def sse_frame(document: object) -> bytes:
    """Return an event whose data is a JSON document."""
    return b"data: " + json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def named_frame(document: Mapping[str, object]) -> bytes:
    """Return an event whose data is a JSON document, and whose name is the document's type."""
    return f"event: {document['type']}\n".encode() + sse_frame(document)


class ResponseBody(Protocol):
    """The body of a streamed response; implemented by ``server.channel.DetachedResponse`` and ``QueuedBody``."""

    def write(self, data: bytes) -> bool:
        """Send bytes; return False when the client has disconnected."""

    def finish(self) -> None:
        """End the body."""


class ResponseWriter(Protocol):
    """Receives the events of a response. Methods that return a bool return False after a disconnect."""

    def open(self) -> bool:
        """Begin the response."""

    def keep_alive(self) -> bool:
        """Write a frame without content."""

    def progress(self, done: int, total: int) -> bool:
        """Write the number of prompt tokens computed so far."""

    def events(self, index: int, events: Sequence[GenerationEvent]) -> bool:
        """Write the next events of a choice."""

    def close(self, finished: Sequence[Finished]) -> None:
        """End the response after every choice has finished."""

    def fail(self, error: MlxkError) -> None:
        """End the response with an error."""


class StreamWriter:
    """Writes the frames of a renderer into a response body."""

    def __init__(self, renderer: ResponseRenderer, body: ResponseBody) -> None:
        self._renderer = renderer
        self._body = body

    def open(self) -> bool:
        """Send the headers and the opening frames."""
        return self._body.write(self._renderer.opening())

    def keep_alive(self) -> bool:
        """Send a frame without content, if the format has one."""
        return self._write(self._renderer.keep_alive())

    def progress(self, done: int, total: int) -> bool:
        """Send the progress frame."""
        return self._write(self._renderer.progress(done, total))

    def events(self, index: int, events: Sequence[GenerationEvent]) -> bool:
        """Send the frames of events in one write."""
        render = self._renderer.event
        return self._write(b"".join([render(index, event) for event in events]))

    def close(self, finished: Sequence[Finished]) -> None:
        """Send the closing frames."""
        self._body.write(self._renderer.closing(finished))
        self._body.finish()

    def fail(self, error: MlxkError) -> None:
        """Send the error frames."""
        try:
            self._body.write(self._renderer.error(error))
        finally:
            self._body.finish()

    def _write(self, data: bytes) -> bool:
        return self._body.write(data) if data else True


class WholeWriter:
    """Collects the events of a response; the thread of the request waits for the body in ``wait``.

    Args:
        renderer: Renders the collected events.
        choices: Number of completions in the response.
    """

    def __init__(self, renderer: ResponseRenderer, choices: int) -> None:
        self._renderer = renderer
        self._events: list[list[GenerationEvent]] = [[] for _ in range(choices)]
        self._ended = threading.Event()
        self._finished: Sequence[Finished] = ()
        self._error: MlxkError | None = None

    def open(self) -> bool:
        """Return True; nothing is sent before the end."""
        return True

    def keep_alive(self) -> bool:
        """Return True; nothing is sent before the end."""
        return True

    def progress(self, done: int, total: int) -> bool:
        """Return True; nothing is sent before the end."""
        return True

    def events(self, index: int, events: Sequence[GenerationEvent]) -> bool:
        """Collect the events of a choice."""
        self._events[index].extend(events)
        return True

    def close(self, finished: Sequence[Finished]) -> None:
        """Release the waiting thread."""
        self._finished = finished
        self._ended.set()

    def fail(self, error: MlxkError) -> None:
        """Release the waiting thread, which raises the error."""
        self._error = error
        self._ended.set()

    def wait(self) -> bytes:
        """Wait for the end and return the body.

        Raises:
            MlxkError: The response failed.
        """
        self._ended.wait()
        if self._error is not None:
            raise self._error
        return self._renderer.whole(self._events, self._finished)


class QueuedBody:
    """A response body for WSGI servers without detached responses, which iterate over it.

    Args:
        on_close: Called when the server closes the body, after its end or a disconnect.
    """

    def __init__(self, on_close: Callable[[], None]) -> None:
        self._chunks: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._on_close = on_close
        self._closed = False

    def write(self, data: bytes) -> bool:
        """Queue bytes; return False once the body is closed."""
        self._chunks.put(data)
        return not self._closed

    def finish(self) -> None:
        """End the iteration."""
        self._chunks.put(None)

    def __iter__(self) -> Iterator[bytes]:
        """Yield the chunks as they are written."""
        while (chunk := self._chunks.get()) is not None:
            yield chunk

    def close(self) -> None:
        """Close the body, as WSGI servers do."""
        self._closed = True
        self._on_close()
