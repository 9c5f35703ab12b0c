"""Text streams: a queue between threads, and the completions of image chunks joined into one stream."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Self

import attrs

from mlxk.application.ports.text_generator import TextStream
from mlxk.domain.errors import ExecutionError, MlxkError
from mlxk.domain.generation.conversation import Adaptation
from mlxk.domain.generation.image_table import Chunk
from mlxk.domain.generation.request import Finished, FinishReason, StreamEvent, TextDelta

StreamItem = str | StreamEvent | MlxkError
"""An item of a queued stream; a plain string is text, the common case."""


class QueuedTextStream(TextStream):
    """A queue from a producer thread, which puts items up to a ``Finished`` or an error, to a reader thread.

    Adjacent plain strings become one ``TextDelta``, and the reader's callback is called once for all items put since
    the last ``take``, so that a slow reader does not slow the producer. An error is raised after all items before it
    were read.
    """

    def __init__(self) -> None:
        self.adaptations: tuple[Adaptation, ...] = ()
        self.prompt_tokens = 0
        self.on_cancel: Callable[[], None] = _do_nothing
        """Called by ``cancel``, on any thread; not called after the end was read."""
        self._items: queue.SimpleQueue[StreamItem] = queue.SimpleQueue()
        self._callback: Callable[[], None] = _do_nothing
        self._notified = False
        """Whether the callback was called since the last ``take``."""
        self._next: StreamItem | None = None
        """An item removed from the queue but not returned yet."""
        self._ended = False

    def put(self, item: StreamItem) -> None:
        """Append text, an event, or the error that ends the stream. To be called by one thread."""
        self._items.put(item)
        if not self._notified:
            self._notified = True
            self._callback()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> StreamEvent:
        if self._ended:
            raise StopIteration
        item = self._items.get() if self._next is None else self._next
        self._next = None
        return self._event(item)

    def take(self) -> tuple[StreamEvent, ...]:
        self._notified = False
        events: list[StreamEvent] = []
        while not self._ended:
            try:
                item = self._items.get_nowait() if self._next is None else self._next
            except queue.Empty:
                break
            self._next = None
            if events and isinstance(item, MlxkError):
                self._next = item
                break
            events.append(self._event(item))
        return tuple(events)

    def subscribe(self, callback: Callable[[], None]) -> None:
        self._callback = callback
        self._notified = True
        callback()

    def cancel(self) -> None:
        if not self._ended:
            self.on_cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.cancel()

    def _event(self, item: StreamItem) -> StreamEvent:
        if isinstance(item, str):
            return TextDelta(self._joined(item))
        if isinstance(item, (Finished, MlxkError)):
            self._ended = True
            self.on_cancel = _do_nothing
        if isinstance(item, MlxkError):
            raise item
        return item

    def _joined(self, text: str) -> str:
        """Return the text joined with all plain strings directly after it."""
        parts = [text]
        try:
            while isinstance(item := self._items.get_nowait(), str):
                parts.append(item)
            self._next = item
        except queue.Empty:
            pass
        return "".join(parts) if len(parts) > 1 else text


def _do_nothing() -> None:
    return


@attrs.frozen
class DescribedChunk:
    """One chunk of images and its running completion."""

    chunk: Chunk
    stream: TextStream


@attrs.frozen
class ImageTableDelta(TextDelta):
    """The table of a chunk of images, which precedes its completion."""


class ChunkedStream(TextStream):
    """The completions of all chunks of images as one stream, each after the table of its chunk.

    Args:
        first: The first chunk and its completion.
        remaining: The other chunks; advancing the iterator, on a thread of its own, starts the next completion.
        tables: Whether to emit tables; without them an empty line separates the completions.
    """

    def __init__(self, first: DescribedChunk, remaining: Iterator[DescribedChunk], *, tables: bool = True) -> None:
        self.adaptations = first.stream.adaptations
        self.prompt_tokens = first.stream.prompt_tokens
        self._remaining = remaining
        self._lock = threading.Lock()
        """Guards the change from one chunk to the next."""
        self._stream = first.stream
        """The completion of the current chunk."""
        self._tables = tables
        self._opening: str | None = f"{first.chunk.table()}\n\n" if tables else None
        """Text to emit before the current completion."""
        self._left = first.chunk.count - first.chunk.index
        """Number of chunks that were not started."""
        self._advancing = False
        """Whether a thread is starting the next completion."""
        self._cancelled = False
        self._failure: MlxkError | None = None
        self._ends: list[Finished] = []
        """The last events of the completed chunks."""
        self._ended = False
        self._callback: Callable[[], None] = _do_nothing
        self._woken = threading.Event()
        """Set by the callback of a blocking reader."""
        self._unread: deque[StreamEvent] = deque()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> StreamEvent:
        if not self._unread and not self._ended:
            self.subscribe(self._woken.set)
        while not self._unread:
            if self._ended:
                raise StopIteration
            self._woken.wait()
            self._woken.clear()
            self._unread.extend(self.take())
        return self._unread.popleft()

    def take(self) -> tuple[StreamEvent, ...]:
        with self._lock:
            if self._ended or self._advancing:
                return ()
            stream, opening, failure = self._stream, self._opening, self._failure
            self._opening = None
        events: list[StreamEvent] = [ImageTableDelta(opening)] if opening else []
        try:
            if failure is not None:
                raise failure
            for event in stream.take():
                events += self._end_chunk(event) if isinstance(event, Finished) else [event]
        except MlxkError as error:
            if events:
                self._failure = error
                return tuple(events)
            self._ended = True
            raise
        return tuple(events)

    def subscribe(self, callback: Callable[[], None]) -> None:
        with self._lock:
            self._callback = callback
            stream = self._stream
        stream.subscribe(callback)

    def cancel(self) -> None:
        """Cancel the current chunk, and start no further one."""
        with self._lock:
            self._cancelled = True
            stream = self._stream
        stream.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.cancel()

    def _end_chunk(self, end: Finished) -> list[StreamEvent]:
        """Start the next chunk, or return the last event of the stream if there is none."""
        self._ends.append(end)
        if self._left and not self._cancelled and end.reason is not FinishReason.CANCELLED:
            self._left -= 1
            with self._lock:
                self._advancing = True
            threading.Thread(target=self._advance, name="mlxk-next-chunk", daemon=True).start()
            return []
        self._ended = True
        joined = Finished.joined(self._ends)
        return [attrs.evolve(joined, reason=FinishReason.CANCELLED) if self._left else joined]

    def _advance(self) -> None:
        """Start the next completion; runs on a thread of its own."""
        try:
            described = next(self._remaining)
        except MlxkError as error:
            self._fail(error)
            return
        except Exception as fault:  # noqa: BLE001 - the reader waits for an end, whatever happens
            self._fail(ExecutionError(f"The next images could not be shown ({type(fault).__name__})."))
            return
        with self._lock:
            table = f"{described.chunk.table()}\n\n" if self._tables else ""
            self._stream, self._opening = described.stream, f"\n\n{table}"
            self._advancing = False
            cancelled, callback = self._cancelled, self._callback
        if cancelled:
            described.stream.cancel()
        described.stream.subscribe(callback)

    def _fail(self, error: MlxkError) -> None:
        with self._lock:
            self._failure, self._advancing = error, False
            callback = self._callback
        callback()
