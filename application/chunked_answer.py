"""An answer about images as one stream: the parts one after the other, each behind the table of what was shown.

The next chunk is decoded and submitted when the answer about the last one has ended, in a thread of its own, so that
whoever moves many streams never waits for one.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Self

import attrs

from mlxk.application.ports.text_generator import TextStream
from mlxk.domain.errors import ExecutionError, MlxkError
from mlxk.domain.generation import Finished, FinishReason, GenerationEvent, TextDelta
from mlxk.domain.image_table import Chunk


@attrs.frozen
class Described:
    """One chunk and the answer about it, which is being generated."""

    chunk: Chunk
    stream: TextStream


class ChunkedAnswer(TextStream):
    """Reads the answers about all chunks; see ``TextStream``.

    Args:
        first: The first chunk and its answer.
        rest: The others, each started when it is asked for.
    """

    def __init__(self, first: Described, rest: Iterator[Described]) -> None:
        self._rest = rest
        self._lock = threading.Lock()
        """Held while the current chunk changes."""
        self._stream = first.stream
        self._opening: str | None = f"{first.chunk.table()}\n\n"
        self._left = first.chunk.count - first.chunk.index
        self._advancing = False
        self._cancelled = False
        self._failure: MlxkError | None = None
        self._ends: list[Finished] = []
        self._ended = False
        self._listener: Callable[[], None] = lambda: None
        self._woken = threading.Event()
        self._unread: deque[GenerationEvent] = deque()

    def __iter__(self) -> Self:
        """Return itself."""
        return self

    def __next__(self) -> GenerationEvent:
        """Wait for the next event; see the port."""
        if not self._unread and not self._ended:
            self.listen(self._woken.set)
        while not self._unread:
            if self._ended:
                raise StopIteration
            self._woken.wait()
            self._woken.clear()
            self._unread.extend(self.take())
        return self._unread.popleft()

    def take(self) -> tuple[GenerationEvent, ...]:
        """Return what has come; see the port."""
        with self._lock:
            if self._ended or self._advancing:
                return ()
            stream, opening, failure = self._stream, self._opening, self._failure
            self._opening = None
        events: list[GenerationEvent] = [TextDelta(opening)] if opening else []
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

    def listen(self, listener: Callable[[], None]) -> None:
        """Have a function called when something has come; see the port."""
        with self._lock:
            self._listener = listener
            stream = self._stream
        stream.listen(listener)

    def cancel(self) -> None:
        """Ask for no more; see the port."""
        with self._lock:
            self._cancelled = True
            stream = self._stream
        stream.cancel()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Cancel."""
        self.cancel()

    def _end_chunk(self, end: Finished) -> list[GenerationEvent]:
        """Take the end of a chunk; return the end of everything when it was the last."""
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
        try:
            described = next(self._rest)
        except MlxkError as error:
            self._fail(error)
            return
        except Exception as fault:  # noqa: BLE001 - a door: the reader waits for an end, whatever happens
            self._fail(ExecutionError(f"The next images could not be shown ({type(fault).__name__})."))
            return
        with self._lock:
            self._stream, self._opening = described.stream, f"\n\n{described.chunk.table()}\n\n"
            self._advancing = False
            cancelled, listener = self._cancelled, self._listener
        if cancelled:
            described.stream.cancel()
        described.stream.listen(listener)

    def _fail(self, error: MlxkError) -> None:
        with self._lock:
            self._failure, self._advancing = error, False
            listener = self._listener
        listener()
