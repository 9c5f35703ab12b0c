"""A stream whose events one thread puts and another reads: the bookkeeping that every such ``TextStream`` shares.

Where the events come from, and what ``cancel`` does to their source, is the subclass's.
"""

import queue
from collections.abc import Callable
from typing import Self

from mlxk.application.ports.text_generator import TextStream
from mlxk.domain.errors import MlxkError
from mlxk.domain.generation import Finished, GenerationEvent


class QueuedTextStream(TextStream):
    """Hands on what is put, in order; a failure after everything before it."""

    def __init__(self) -> None:
        self._pieces: queue.SimpleQueue[GenerationEvent | MlxkError] = queue.SimpleQueue()
        self._listener: Callable[[], None] = lambda: None
        self._failure: MlxkError | None = None
        self._ended = False

    def __iter__(self) -> Self:
        """Return itself."""
        return self

    def __next__(self) -> GenerationEvent:
        """Wait for the next event; see the port."""
        if self._ended:
            raise StopIteration
        return self._event(self._failure or self._pieces.get())

    def take(self) -> tuple[GenerationEvent, ...]:
        """Return what has come; see the port."""
        events: list[GenerationEvent] = []
        while not self._ended:
            try:
                piece = self._failure or self._pieces.get_nowait()
            except queue.Empty:
                break
            if isinstance(piece, MlxkError) and events:
                self._failure = piece
                break
            events.append(self._event(piece))
        return tuple(events)

    def listen(self, listener: Callable[[], None]) -> None:
        """Have a function called when something has come; see the port."""
        self._listener = listener
        listener()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Cancel."""
        self.cancel()

    def _event(self, piece: GenerationEvent | MlxkError) -> GenerationEvent:
        self._ended = isinstance(piece, (Finished, MlxkError))
        if isinstance(piece, MlxkError):
            raise piece
        return piece

    def _put(self, piece: GenerationEvent | MlxkError) -> None:
        self._pieces.put(piece)
        self._listener()
