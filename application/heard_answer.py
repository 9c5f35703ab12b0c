"""A transcript as the answer of a conversation: what is heard comes as text, and the end as the end of an answer.

Listening happens in a thread of its own, so that whoever moves many streams never waits for one.
"""

import threading
from collections.abc import Callable, Generator

from mlxk.application.ports.clock import Clock
from mlxk.application.queued_stream import QueuedTextStream
from mlxk.domain.errors import ExecutionError, MlxkError
from mlxk.domain.generation import Finished, FinishReason, TextDelta, Timings, Usage
from mlxk.domain.speech import Heard, Segment, Transcript, TranscriptEvent


class HeardAnswer(QueuedTextStream):
    """Reads one transcript; see ``TextStream``.

    Args:
        events: What the transcriber yields.
        clock: Measures.
        on_end: Called once when nothing more is heard, such as to remove the recording.
    """

    def __init__(
        self, events: Generator[TranscriptEvent, None, None], clock: Clock, on_end: Callable[[], None]
    ) -> None:
        super().__init__()
        self._events = events
        self._clock = clock
        self._on_end = on_end
        self._cancelled = threading.Event()
        threading.Thread(target=self._listen, name="mlxk-listening", daemon=True).start()

    def cancel(self) -> None:
        """Ask for no more; see the port."""
        self._cancelled.set()

    def _listen(self) -> None:
        try:
            self._put(self._hear())
        except MlxkError as error:
            self._put(error)
        except Exception as fault:  # noqa: BLE001 - a door: the reader waits for an end, whatever happens
            self._put(ExecutionError(f"The recording could not be heard ({type(fault).__name__})."))
        finally:
            self._events.close()
            self._on_end()

    def _hear(self) -> Finished:
        """Hear everything, or until nobody wants more; return the end."""
        began = self._clock.monotonic()
        loaded: float | None = None
        tokens, said = 0, False
        for event in self._events:
            loaded = self._clock.monotonic() if loaded is None else loaded
            if self._cancelled.is_set():
                break
            if isinstance(event, Transcript):
                timings = Timings(loaded - began, 0.0, self._clock.monotonic() - loaded)
                return Finished(FinishReason.STOP, Usage(0, tokens), timings)
            if isinstance(event, Heard) and event.segments:
                text = "".join(segment.text for segment in event.segments)
                self._put(TextDelta(text if said else text.lstrip()))
                said = True
                tokens += sum(map(_size, event.segments))
        seconds = self._clock.monotonic() - began
        return Finished(FinishReason.CANCELLED, Usage(0, tokens), Timings(0.0, 0.0, seconds))


def _size(segment: Segment) -> int:
    """Return the tokens of a segment; its words for models that do not show their tokens."""
    return len(segment.tokens) or len(segment.text.split())
