"""The resource of ``POST /v1/audio/transcriptions`` and ``POST /v1/audio/translations``.

A recording is transcribed in the thread of its request, one segment at a time.
"""

import functools
import json
from collections.abc import Callable, Iterator

import falcon

from mlxk.application.generation_input import Recording
from mlxk.application.policy import require_speech_model
from mlxk.domain import transcription
from mlxk.domain.errors import (
    CapabilityError,
    ExecutionError,
    StorageError,
    ValidationError,
)
from mlxk.domain.transcription import Segment, SpeechTask, TimedWord, Transcript, TranscriptEvent, TranscriptionProgress
from mlxk.entrypoints.http.api import ServerContext
from mlxk.entrypoints.http.generation.renderer import KEEP_ALIVE_COMMENT, OPENING_COMMENT, sse_frame
from mlxk.entrypoints.http.lifecycle import api_of
from mlxk.entrypoints.http.openai.audio.events import ServedEvents, send_stream
from mlxk.entrypoints.http.openai.audio.request import AudioRequest, read_audio
from mlxk.entrypoints.http.request_scope import trace_of
from mlxk.entrypoints.http.requests.body import report_ignored
from mlxk.entrypoints.http.requests.media import Upload
from mlxk.entrypoints.http.requests.validation import located
from mlxk.entrypoints.http.server.channel import ENVIRON_ON_DISCONNECT

JSON_TYPE = "application/json"
TEXT_TYPE = "text/plain; charset=utf-8"
VTT_TYPE = "text/vtt; charset=utf-8"

UNKNOWN_LANGUAGE = "unknown"
"""Language if the model reports none; clients expect a string."""


class AudioResource:
    """Transcribes or translates recordings.

    Args:
        server: Services and limits.
        task: Transcribe in the spoken language, or translate to English.
    """

    def __init__(self, server: ServerContext, task: SpeechTask) -> None:
        self._server = server
        self._services = server.services
        self._task = task

    def on_post(self, request: falcon.Request, response: falcon.Response) -> None:
        """Transcribe an uploaded file."""
        self._server.lifecycle.require_open()
        upload = Upload()
        release: Callable[[], None] = upload.close
        try:
            body = read_audio(request, upload, self._task, self._services.catalogue.default)
            report_ignored(response, body.ignored)
            transcription = self._begin(request, body, upload)
            release = transcription.close
            # Errors before the first segment set the status of the response; later ones are events.
            try:
                transcription.begin()
            except (ValidationError, StorageError) as error:
                raise located(error, "file") from error
            if body.stream:
                send_stream(self._server, request, response, _frames(transcription), transcription.close)
                release = _no_release
            else:
                self._answer(response, body, _whole(transcription))
        finally:
            release()

    def _begin(self, request: falcon.Request, body: AudioRequest, upload: Upload) -> ServedEvents[TranscriptEvent]:
        model = self._services.catalogue.find(
            body.model, functools.partial(require_speech_model, needed=self._task.capability)
        )
        trace_of(request).model = model.id
        release_slot, clock = self._server.limit.enter(1), self._services.clock
        began = clock.monotonic()

        def notice(event: TranscriptEvent) -> None:
            if isinstance(event, Transcript):
                self._server.metrics.transcription(model.id, api_of(request.uri_template), clock.monotonic() - began)

        try:
            recording = Recording(upload.path, upload.name)
            events = self._services.transcribe(model.description, recording, body.settings)
            transcription = ServedEvents(events, self._server.lifecycle, (release_slot, upload.close), notice)
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


def _whole(events: ServedEvents[TranscriptEvent]) -> Transcript:
    """Return the transcript.

    Raises:
        MlxkError: As raised by iterating over the events.
    """
    for event in events:
        if isinstance(event, Transcript):
            return event
    raise ExecutionError("the transcription ended without a transcript")


def _frames(events: ServedEvents[TranscriptEvent]) -> Iterator[bytes]:
    yield OPENING_COMMENT
    begun = False
    for event in events:
        if isinstance(event, Transcript):
            yield _done_event(event)
        elif isinstance(event, TranscriptionProgress) and event.segments:
            text = "".join(segment.text for segment in event.segments)
            yield _delta_event(text if begun else text.lstrip())
            begun = True
        else:
            yield KEEP_ALIVE_COMMENT


def _no_release() -> None:
    """Do nothing: the body of the response releases the resources."""


def _rendered(transcript: Transcript, response_format: str) -> tuple[str, bytes]:
    """Return media type and body of a response in any format but ``verbose_json``."""
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
    """Return media type and body of a ``verbose_json`` response."""
    document: dict[str, object] = {
        "task": task.value,
        "language": transcript.language or UNKNOWN_LANGUAGE,
        "duration": round(transcript.seconds, 3),
        "text": transcript.text,
    }
    if segments:
        document["segments"] = [_segment(number, segment) for number, segment in enumerate(transcript.segments)]
    if words:
        document["words"] = [_word(word) for word in transcript.words]
    return JSON_TYPE, _encoded({**document, "usage": _usage(transcript)})


def _delta_event(text: str) -> bytes:
    return sse_frame({"type": "transcript.text.delta", "delta": text})


def _done_event(transcript: Transcript) -> bytes:
    return sse_frame({"type": "transcript.text.done", "text": transcript.text, "usage": _usage(transcript)})


def _usage(transcript: Transcript) -> dict[str, object]:
    return {"type": "duration", "seconds": round(transcript.seconds, 3)}


def _segment(number: int, segment: Segment) -> dict[str, object]:
    """Return a segment; numbers that the model does not report are 0: clients expect numbers."""
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
