"""The reader's end of one running answer: plain Python values in a queue between the owner thread and a reader.

The writing end is ``EventSink``, used by the owner thread alone. Pieces that pile up while the reader is busy reach it
as one delta, and a listener is called once for all of them, so a slow reader costs the engine nothing.
"""

import queue
from collections.abc import Callable
from typing import Self

from mlxk.application.ports.text_generator import TextStream
from mlxk.domain.errors import MlxkError
from mlxk.domain.generation.request import AnswerDelta, Finished, GenerationEvent, TextDelta

Piece = str | AnswerDelta | Finished | MlxkError
"""What is written: text as plain strings, since most pieces are nothing else."""


class EventSink:
    """The writing end: takes deltas, then one ``Finished`` or one error."""

    def __init__(self) -> None:
        self._pieces: queue.SimpleQueue[Piece] = queue.SimpleQueue()
        self._listener: Callable[[], None] | None = None
        self._told = False
        self.get = self._pieces.get
        self.get_nowait = self._pieces.get_nowait

    def put(self, piece: Piece) -> None:
        """Write one piece."""
        self._pieces.put(piece)
        if self._listener is not None and not self._told:
            self._told = True
            self._listener()

    def listen(self, listener: Callable[[], None]) -> None:
        """Set who hears of new pieces."""
        self._listener = listener
        self._told = True
        listener()

    def taking(self) -> None:
        """Note that a reader is about to take everything; what is written from now on is told anew."""
        self._told = False


class MlxTextStream(TextStream):
    """Reads one answer.

    Args:
        sink: Where the owner thread writes.
        cancel: Asks the engine to stop this answer; may be called from any thread, at any time.
    """

    def __init__(self, sink: EventSink, cancel: Callable[[], None]) -> None:
        self._sink = sink
        self._cancel = cancel
        self._ahead: Piece | None = None
        self._ended = False

    def __iter__(self) -> Self:
        """Return itself."""
        return self

    def __next__(self) -> GenerationEvent:
        """Wait for the next event; see the port."""
        if self._ended:
            raise StopIteration
        piece = self._ahead if self._ahead is not None else self._sink.get()
        self._ahead = None
        return self._event(piece)

    def take(self) -> tuple[GenerationEvent, ...]:
        """Return what has come; see the port."""
        self._sink.taking()
        events: list[GenerationEvent] = []
        while not self._ended:
            try:
                piece = self._ahead if self._ahead is not None else self._sink.get_nowait()
            except queue.Empty:
                break
            self._ahead = None
            if events and isinstance(piece, MlxkError):
                self._ahead = piece
                break
            events.append(self._event(piece))
        return tuple(events)

    def listen(self, listener: Callable[[], None]) -> None:
        """Have a function called when something has come; see the port."""
        self._sink.listen(listener)

    def cancel(self) -> None:
        """Ask for no more; see the port."""
        if not self._ended:
            self._cancel()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Cancel."""
        self.cancel()

    def _event(self, piece: Piece) -> GenerationEvent:
        if isinstance(piece, str):
            return TextDelta(self._joined(piece))
        if isinstance(piece, MlxkError):
            self._ended = True
            raise piece
        self._ended = isinstance(piece, Finished)
        return piece

    def _joined(self, text: str) -> str:
        """Return the text with all that waits behind it, up to the first piece that is not plain text."""
        parts = [text]
        try:
            while isinstance(piece := self._sink.get_nowait(), str):
                parts.append(piece)
            self._ahead = piece
        except queue.Empty:
            pass
        return "".join(parts) if len(parts) > 1 else text
