"""A transcription as a text stream, so that a chat request to a speech-to-text model is answered by its transcript."""

import threading
from collections.abc import Callable, Generator, Sequence

import attrs

from mlxk.application.ports.system import Clock
from mlxk.application.text_streams import QueuedTextStream
from mlxk.domain.errors import ExecutionError, MlxkError
from mlxk.domain.formats.scanner import StopSequences
from mlxk.domain.generation.request import Finished, FinishReason, TextDelta, Timings, Usage
from mlxk.domain.transcription import Segment, Transcript, TranscriptEvent, TranscriptionProgress


@attrs.frozen
class TranscriptLimits:
    """Limits of a transcript that is streamed as a completion."""

    max_tokens: int | None = None
    """The stream ends before the first segment that exceeds it; segments are never cut."""
    stop: tuple[str, ...] = ()
    """Stop sequences; not part of the text."""


class TranscriptStream(QueuedTextStream):
    """Streams the segments of a transcription as text. The constructor blocks until the first event.

    Args:
        events: The events of the transcriber; closed at the end.
        clock: Measures the timings.
        on_end: Callback at the end of the transcription, such as to remove the recording.
        limits: Limits that end the text early; None sets none.

    Raises:
        MlxkError: The transcription cannot start, such as because the file is not audio; ``on_end`` is not called.
    """

    def __init__(
        self,
        events: Generator[TranscriptEvent, None, None],
        clock: Clock,
        on_end: Callable[[], None],
        limits: TranscriptLimits | None = None,
    ) -> None:
        super().__init__()
        limits = limits or TranscriptLimits()
        self._events = events
        self._clock = clock
        self._on_end = on_end
        self._max_tokens = limits.max_tokens
        self._stops = StopSequences(limits.stop)
        self._tokens = 0
        self._begun = False
        """Whether any segment was emitted."""
        self._cancelled = threading.Event()
        self.on_cancel = self._cancelled.set
        self._submitted_at = clock.monotonic()
        self._first = next(events, None)
        self._loaded_at = clock.monotonic()
        threading.Thread(target=self._run, name="mlxk-transcript", daemon=True).start()

    def _run(self) -> None:
        try:
            self.put(self._transcribe())
        except MlxkError as error:
            self.put(error)
        except Exception as fault:  # noqa: BLE001 - the reader waits for an end, whatever happens
            self.put(ExecutionError(f"The recording could not be heard ({type(fault).__name__})."))
        finally:
            self._events.close()
            self._on_end()

    def _transcribe(self) -> Finished:
        """Read events until the end, a limit or cancellation; return the last event of the stream."""
        event = self._first
        while event is not None and not self._cancelled.is_set():
            reason = FinishReason.STOP if isinstance(event, Transcript) else self._take(event)
            if reason is not None:
                self._emit(self._stops.flush())
                return self._end(FinishReason.STOP if self._stops.stopped else reason)
            event = next(self._events, None)
        return self._end(FinishReason.CANCELLED)

    def _take(self, progress: TranscriptionProgress) -> FinishReason | None:
        """Emit the text of the segments; return the finish reason when a limit is reached, else None."""
        fitting = self._fitting(progress.segments)
        text = "".join(segment.text for segment in fitting)
        self._emit(self._stops.feed(text if self._begun else text.lstrip())[0])
        self._begun = self._begun or bool(fitting)
        if self._stops.stopped:
            return FinishReason.STOP
        return FinishReason.LENGTH if len(fitting) < len(progress.segments) else None

    def _fitting(self, segments: Sequence[Segment]) -> Sequence[Segment]:
        """Return the segments within the token limit, and count their tokens."""
        for index, segment in enumerate(segments):
            # Words where the model does not report tokens.
            size = len(segment.tokens) or len(segment.text.split())
            if self._max_tokens is not None and self._tokens + size > self._max_tokens:
                return segments[:index]
            self._tokens += size
        return segments

    def _emit(self, text: str) -> None:
        if text:
            self.put(TextDelta(text))

    def _end(self, reason: FinishReason) -> Finished:
        timings = Timings(self._loaded_at - self._submitted_at, 0.0, self._clock.monotonic() - self._loaded_at)
        return Finished(reason, Usage(0, self._tokens), timings)
