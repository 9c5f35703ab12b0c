"""A transcript as the answer of a conversation: what is heard comes as text, and the end as the end of an answer.

Listening begins in the thread that asks, so that what cannot be heard is refused there; it goes on in a thread of its
own, so that whoever moves many streams never waits for one.
"""

import threading
from collections.abc import Callable, Generator, Sequence

import attrs

from mlxk.application.ports.clock import Clock
from mlxk.application.queued_stream import QueuedTextStream
from mlxk.domain.errors import ExecutionError, MlxkError
from mlxk.domain.generation import Finished, FinishReason, TextDelta, Timings, Usage
from mlxk.domain.speech import Heard, Segment, Transcript, TranscriptEvent
from mlxk.domain.stop_sequences import StopSequences


@attrs.frozen
class HeardLimits:
    """Where an answer ends that would go on."""

    max_tokens: int | None = None
    """Segments come whole: one that goes beyond is left out, and ends the answer."""
    stop: tuple[str, ...] = ()
    """Texts that end it and are no part of it."""


class HeardAnswer(QueuedTextStream):
    """Reads one transcript; see ``TextStream``.

    Args:
        events: What the transcriber yields; it is closed at the end.
        clock: Measures.
        on_end: Called once when nothing more is heard, such as to remove the recording.
        limits: Where the answer ends that would go on.

    Raises:
        MlxkError: Nothing can be heard, such as because the recording is none. ``on_end`` is not called then.
    """

    def __init__(
        self,
        events: Generator[TranscriptEvent, None, None],
        clock: Clock,
        on_end: Callable[[], None],
        limits: HeardLimits | None = None,
    ) -> None:
        super().__init__()
        limits = limits or HeardLimits()
        self._events = events
        self._clock = clock
        self._on_end = on_end
        self._max_tokens = limits.max_tokens
        self._stops = StopSequences(limits.stop)
        self._tokens = 0
        self._begun = False
        self._cancelled = threading.Event()
        self._asked_at = clock.monotonic()
        self._first = next(events, None)
        self._loaded_at = clock.monotonic()
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
        """Hear everything, up to a limit, or until nobody wants more; return the end."""
        event = self._first
        while event is not None and not self._cancelled.is_set():
            reason = FinishReason.STOP if isinstance(event, Transcript) else self._take(event)
            if reason is not None:
                self._say(self._stops.flush())
                return self._end(FinishReason.STOP if self._stops.stopped else reason)
            event = next(self._events, None)
        return self._end(FinishReason.CANCELLED)

    def _take(self, heard: Heard) -> FinishReason | None:
        """Say what was heard; return why the answer ends here, if it does."""
        fitting = self._fitting(heard.segments)
        text = "".join(segment.text for segment in fitting)
        self._say(self._stops.feed(text if self._begun else text.lstrip())[0])
        self._begun = self._begun or bool(fitting)
        if self._stops.stopped:
            return FinishReason.STOP
        return FinishReason.LENGTH if len(fitting) < len(heard.segments) else None

    def _fitting(self, segments: Sequence[Segment]) -> Sequence[Segment]:
        """Return the segments that there is room for, and count them."""
        for index, segment in enumerate(segments):
            size = _size(segment)
            if self._max_tokens is not None and self._tokens + size > self._max_tokens:
                return segments[:index]
            self._tokens += size
        return segments

    def _say(self, text: str) -> None:
        if text:
            self._put(TextDelta(text))

    def _end(self, reason: FinishReason) -> Finished:
        timings = Timings(self._loaded_at - self._asked_at, 0.0, self._clock.monotonic() - self._loaded_at)
        return Finished(reason, Usage(0, self._tokens), timings)


def _size(segment: Segment) -> int:
    """Return the tokens of a segment; its words for models that do not show their tokens."""
    return len(segment.tokens) or len(segment.text.split())
