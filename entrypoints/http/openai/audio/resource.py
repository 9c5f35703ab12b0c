"""The resources of ``POST /v1/audio/transcriptions`` and ``POST /v1/audio/translations``.

A recording is transcribed in the thread of its request, one segment at a time; between segments a disconnect and the
shutdown of the server are checked.
"""

import functools
import json
import threading
from collections.abc import Callable, Generator, Iterator

import falcon

from mlxk.application.generation_input import Recording
from mlxk.application.policy import require_speech_model
from mlxk.application.ports.system import EventLog
from mlxk.domain import transcription
from mlxk.domain.errors import (
    CapabilityError,
    ExecutionError,
    InternalError,
    MlxkError,
    ServerShutdownError,
    StorageError,
    ValidationError,
)
from mlxk.domain.transcription import Segment, SpeechTask, TimedWord, Transcript, TranscriptEvent, TranscriptionProgress
from mlxk.entrypoints.http.api import ServerContext
from mlxk.entrypoints.http.generation.renderer import KEEP_ALIVE_COMMENT, OPENING_COMMENT, SSE_HEADERS, sse_frame
from mlxk.entrypoints.http.lifecycle import ServerLifecycle, api_of
from mlxk.entrypoints.http.middleware import request_id
from mlxk.entrypoints.http.openai.audio.request import AudioRequest, read_audio
from mlxk.entrypoints.http.openai.errors import error_document
from mlxk.entrypoints.http.requests.body import report_ignored
from mlxk.entrypoints.http.requests.upload import Upload
from mlxk.entrypoints.http.requests.validation import located
from mlxk.entrypoints.http.server.channel import ENVIRON_ON_DISCONNECT
from mlxk.entrypoints.http.tracing import Trace, Tracer, trace_of

JSON_TYPE = "application/json"
TEXT_TYPE = "text/plain; charset=utf-8"
VTT_TYPE = "text/vtt; charset=utf-8"

UNKNOWN_LANGUAGE = "unknown"
"""Language when the model reports none; clients expect a string."""


class AudioResource:
    """Transcribes or translates recordings.

    Args:
        server: Services and limits.
        task: Transcribe in the spoken language, or translate to English.
    """

    def __init__(self, server: ServerContext, task: SpeechTask) -> None:
        self._services = server.services
        self._lifecycle = server.lifecycle
        self._limit = server.limit
        self._metrics = server.metrics
        self._tracer = server.tracer
        self._task = task

    def on_post(self, request: falcon.Request, response: falcon.Response) -> None:
        """Transcribe an uploaded file."""
        self._lifecycle.require_open()
        upload = Upload()
        release: Callable[[], None] = upload.close
        try:
            body = read_audio(request, upload, self._task, self._services.catalogue.default)
            report_ignored(response, body.ignored)
            transcription = self._begin(request, body, upload)
            release = transcription.close
            # Errors before the first segment have a status of their own; later ones are events.
            transcription.begin()
            if body.stream:
                self._stream(request, response, transcription)
                release = _nothing
            else:
                self._answer(response, body, transcription.whole())
        finally:
            release()

    def _begin(self, request: falcon.Request, body: AudioRequest, upload: Upload) -> "_TranscriptionEvents":
        model = self._services.catalogue.find(
            body.model, functools.partial(require_speech_model, needed=self._task.capability)
        )
        trace_of(request).model = model.id
        release_slot, clock = self._limit.enter(1), self._services.clock
        began = clock.monotonic()

        def on_transcript() -> None:
            self._metrics.transcription(model.id, api_of(request.uri_template), clock.monotonic() - began)

        try:
            recording = Recording(upload.path, upload.name)
            events = self._services.transcribe(model.description, recording, body.settings)
            transcription = _TranscriptionEvents(events, self._lifecycle, (release_slot, upload.close), on_transcript)
        except BaseException:
            release_slot()
            raise
        request.env.get(ENVIRON_ON_DISCONNECT, lambda _: None)(transcription.disconnected)
        return transcription

    def _answer(self, response: falcon.Response, body: AudioRequest, transcript: Transcript) -> None:
        if body.words and transcript.segments and not transcript.words:
            raise CapabilityError.in_field("timestamp_granularities", f"model '{body.model}' times no words")
        if body.response_format == "verbose_json":
            kind, data = _verbose(transcript, self._task, words=body.words, segments=body.segments)
        else:
            kind, data = _rendered(transcript, body.response_format)
        response.content_type, response.data = kind, data

    def _stream(
        self, request: falcon.Request, response: falcon.Response, transcription: "_TranscriptionEvents"
    ) -> None:
        for name, value in SSE_HEADERS.items():
            response.set_header(name, value)
        trace, identity = trace_of(request), request_id(request)
        trace.ends_later = True
        self._tracer.identify(request, trace, identity)
        response.stream = _EventBody(transcription, identity, self._services.log, trace, self._tracer)


class _TranscriptionEvents:
    """The events of one transcription; ``close`` releases its resources, and may be called twice."""

    def __init__(
        self,
        events: Generator[TranscriptEvent, None, None],
        lifecycle: ServerLifecycle,
        releases: tuple[Callable[[], None], ...],
        on_transcript: Callable[[], None],
    ) -> None:
        self._events = events
        self._lifecycle = lifecycle
        self._releases = releases
        self._on_transcript = on_transcript
        self._first: TranscriptEvent | None = None
        self._client_gone = threading.Event()

    def disconnected(self) -> None:
        """Callback of the disconnect, from any thread."""
        self._client_gone.set()

    def begin(self) -> None:
        """Load the model and decode the recording.

        Raises:
            MlxkError: One of them failed.
        """
        try:
            self._first = next(self._events, None)
        except (ValidationError, StorageError) as error:
            raise located(error, "file") from error

    def __iter__(self) -> Iterator[TranscriptEvent]:
        """Yield the events.

        Raises:
            MlxkError: The transcription failed, the server shuts down, or the client has disconnected.
        """
        if self._first is not None:
            yield self._noticed(self._first)
        for event in self._events:
            if self._client_gone.is_set():
                raise ExecutionError("The client has gone.")
            if self._lifecycle.aborted:
                raise ServerShutdownError("The server is shutting down.", hint="Send the request again.")
            yield self._noticed(event)

    def _noticed(self, event: TranscriptEvent) -> TranscriptEvent:
        if isinstance(event, Transcript):
            self._on_transcript()
        return event

    def whole(self) -> Transcript:
        """Return the transcript.

        Raises:
            MlxkError: As iterating does.
        """
        for event in self:
            if isinstance(event, Transcript):
                return event
        raise ExecutionError("the transcription ended without a transcript")

    def close(self) -> None:
        """Stop the transcription, remove the file and release its slot."""
        try:
            self._events.close()
        finally:
            for release in self._releases:
                release()


class _EventBody:
    """The body of a streamed transcript. WSGI servers close it, even when its iteration never started."""

    def __init__(
        self, transcription: _TranscriptionEvents, request_id: str, log: EventLog, trace: Trace, tracer: Tracer
    ) -> None:
        self._trace: Trace | None = trace
        self._tracer = tracer
        self._transcription = transcription
        self._request_id = request_id
        self._log = log

    def __iter__(self) -> Iterator[bytes]:
        yield OPENING_COMMENT
        try:
            yield from self._frames()
        except MlxkError as error:
            self._failed(error)
            yield sse_frame(error_document(error, self._request_id))
        except Exception as fault:  # noqa: BLE001 - the headers are sent, so an event is the only way to report it
            self._log.error("a transcript could not be delivered", error=type(fault).__name__)
            failure = InternalError("The transcript could not be delivered.")
            self._failed(failure)
            yield sse_frame(error_document(failure, self._request_id))

    def close(self) -> None:
        """Release everything."""
        self._transcription.close()
        trace, self._trace = self._trace, None
        if trace is not None:
            self._tracer.end(trace)

    def _failed(self, error: MlxkError) -> None:
        if self._trace is not None:
            self._trace.error = error.code

    def _frames(self) -> Iterator[bytes]:
        begun = False
        for event in self._transcription:
            if isinstance(event, Transcript):
                yield _done_event(event)
            elif isinstance(event, TranscriptionProgress) and event.segments:
                text = "".join(segment.text for segment in event.segments)
                yield _delta_event(text if begun else text.lstrip())
                begun = True
            else:
                yield KEEP_ALIVE_COMMENT


def _nothing() -> None:
    """Release nothing: the body of the response does it."""


def _rendered(transcript: Transcript, response_format: str) -> tuple[str, bytes]:
    """Return the type and the bytes of a response in any format but ``verbose_json``."""
    match response_format:
        case "text":
            return TEXT_TYPE, f"{transcript.text}\n".encode()
        case "srt":
            return TEXT_TYPE, transcription.srt(transcript).encode()
        case "vtt":
            return VTT_TYPE, transcription.vtt(transcript).encode()
        case _:
            return JSON_TYPE, _encoded({"text": transcript.text, "usage": _usage(transcript)})


def _verbose(transcript: Transcript, task: SpeechTask, *, words: bool, segments: bool) -> tuple[str, bytes]:
    """Return the type and the bytes of a ``verbose_json`` response."""
    document: dict[str, object] = {
        "task": task.value,
        "language": transcript.language or UNKNOWN_LANGUAGE,
        "duration": round(transcript.seconds, 3),
        "text": transcript.text,
    }
    if segments:
        document["segments"] = [_segment(number, each) for number, each in enumerate(transcript.segments)]
    if words:
        document["words"] = [_word(each) for each in transcript.words]
    return JSON_TYPE, _encoded({**document, "usage": _usage(transcript)})


def _delta_event(text: str) -> bytes:
    """Return the event of new text."""
    return sse_frame({"type": "transcript.text.delta", "delta": text})


def _done_event(transcript: Transcript) -> bytes:
    """Return the event of the complete transcript."""
    return sse_frame({"type": "transcript.text.done", "text": transcript.text, "usage": _usage(transcript)})


def _usage(transcript: Transcript) -> dict[str, object]:
    return {"type": "duration", "seconds": round(transcript.seconds, 3)}


def _segment(number: int, segment: Segment) -> dict[str, object]:
    """Return a segment; numbers that the model does not report are 0, since clients expect numbers."""
    fields: dict[str, object] = {
        "id": number,
        "seek": segment.offset,
        "start": round(segment.start, 3),
        "end": round(segment.end, 3),
        "text": segment.text,
        "tokens": list(segment.tokens),
        "temperature": segment.temperature or 0.0,
        "avg_logprob": segment.mean_logprob or 0.0,
        "compression_ratio": segment.compression_ratio or 0.0,
        "no_speech_prob": segment.silence_probability or 0.0,
    }
    return fields if segment.speaker is None else {**fields, "speaker": segment.speaker}


def _word(word: TimedWord) -> dict[str, object]:
    return {"word": word.text.strip(), "start": round(word.start, 3), "end": round(word.end, 3)}


def _encoded(document: object) -> bytes:
    return json.dumps(document, ensure_ascii=False, allow_nan=False).encode()
