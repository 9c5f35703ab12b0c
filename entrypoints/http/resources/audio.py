"""``POST /v1/audio/transcriptions`` and ``POST /v1/audio/translations``.

A recording is heard in the thread of its request, one piece at a time; between two pieces it is asked whether the
client is still there and whether the server goes down.
"""

import functools
import threading
from collections.abc import Callable, Generator, Iterator

import falcon

from mlxk.application.policy import require_speech_model
from mlxk.application.ports.event_log import EventLog
from mlxk.application.use_cases.serve_catalogue import ServeCatalogue
from mlxk.application.use_cases.transcribe_audio import Recording, TranscribeAudio
from mlxk.domain.errors import (
    CapabilityError,
    ExecutionError,
    InternalError,
    MlxkError,
    ServerShutdownError,
    ValidationError,
)
from mlxk.domain.transcription import Heard, SpeechTask, Transcript, TranscriptEvent
from mlxk.entrypoints.http.errors import error_document
from mlxk.entrypoints.http.lifecycle import ConcurrencyLimit, ServerLifecycle
from mlxk.entrypoints.http.request_scope import request_id
from mlxk.entrypoints.http.requests.audio import AudioRequest, Upload, read_audio
from mlxk.entrypoints.http.requests.field_errors import located
from mlxk.entrypoints.http.resources.generation import report_ignored
from mlxk.entrypoints.http.responses import transcripts
from mlxk.entrypoints.http.responses.event_stream import COMMENT, PING, frame
from mlxk.entrypoints.http.responses.generation_responder import STREAM_HEADERS
from mlxk.entrypoints.http.server.detached import ENVIRON_ON_DISCONNECT


class Audio:
    """Writes down recordings.

    Args:
        task: In the language that is spoken, or in English.
        transcribe: Listens.
        catalogue: Finds the model.
        life: Says whether the server takes work, and until when it may take.
        admission: Counts what is in progress.
        log: Hears of failures in the middle of a stream.
    """

    def __init__(
        self,
        task: SpeechTask,
        transcribe: TranscribeAudio,
        catalogue: ServeCatalogue,
        life: ServerLifecycle,
        admission: ConcurrencyLimit,
        log: EventLog,
    ) -> None:
        self._task = task
        self._transcribe = transcribe
        self._catalogue = catalogue
        self._life = life
        self._admission = admission
        self._log = log

    def on_post(self, request: falcon.Request, response: falcon.Response) -> None:
        """Write down what is said in a file."""
        self._life.require_open()
        upload = Upload()
        leave: Callable[[], None] = upload.close
        try:
            asked = read_audio(request, upload, self._task)
            report_ignored(response, asked.ignored)
            hearing = self._begin(request, asked, upload)
            leave = hearing.close
            # What can be refused is refused before the headers are sent.
            hearing.begin()
            if asked.stream:
                self._stream(request, response, hearing)
                leave = _nothing
            else:
                self._answer(response, asked, hearing.whole())
        finally:
            leave()

    def _begin(self, request: falcon.Request, asked: AudioRequest, upload: Upload) -> "_TranscriptionEvents":
        model = self._catalogue.find(asked.model, functools.partial(require_speech_model, needed=self._task.capability))
        give_place_back = self._admission.enter(1)
        try:
            recording = Recording(upload.path, upload.name)
            events = self._transcribe.listen(model.description, recording, asked.settings)
            hearing = _TranscriptionEvents(events, self._life, (give_place_back, upload.close))
        except BaseException:
            give_place_back()
            raise
        request.env.get(ENVIRON_ON_DISCONNECT, lambda _: None)(hearing.abandon)
        return hearing

    def _answer(self, response: falcon.Response, asked: AudioRequest, transcript: Transcript) -> None:
        if asked.words and transcript.segments and not transcript.words:
            raise CapabilityError.in_field("timestamp_granularities", f"model '{asked.model}' times no words")
        if asked.response_format == "verbose_json":
            kind, data = transcripts.verbose(transcript, self._task, words=asked.words, segments=asked.segments)
        else:
            kind, data = transcripts.rendered(transcript, asked.response_format)
        response.content_type, response.data = kind, data

    def _stream(self, request: falcon.Request, response: falcon.Response, hearing: "_TranscriptionEvents") -> None:
        for name, value in STREAM_HEADERS.items():
            response.set_header(name, value)
        response.stream = _EventBody(hearing, request_id(request), self._log)


class _TranscriptionEvents:
    """One recording on its way to its client; ``close`` gives everything back, and may be called twice."""

    def __init__(
        self,
        events: Generator[TranscriptEvent, None, None],
        life: ServerLifecycle,
        give_back: tuple[Callable[[], None], ...],
    ) -> None:
        self._events = events
        self._life = life
        self._give_back = give_back
        self._first: TranscriptEvent | None = None
        self._gone = threading.Event()

    def abandon(self) -> None:
        """Hear that the client has gone. Callable from any thread."""
        self._gone.set()

    def begin(self) -> None:
        """Have the model loaded and the recording decoded.

        Raises:
            MlxkError: What cannot be done.
        """
        try:
            self._first = next(self._events, None)
        except ValidationError as error:
            raise located(error, "file") from error

    def __iter__(self) -> Iterator[TranscriptEvent]:
        """Yield what is heard.

        Raises:
            MlxkError: Whatever made it fail; also that the server goes down, or that nobody listens any more.
        """
        if self._first is not None:
            yield self._first
        for event in self._events:
            if self._gone.is_set():
                raise ExecutionError("The client has gone.")
            if self._life.aborted:
                raise ServerShutdownError("The server is shutting down.", hint="Send the request again.")
            yield event

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
        """Stop listening, and give back the file and the place."""
        try:
            self._events.close()
        finally:
            for give_back in self._give_back:
                give_back()


class _EventBody:
    """The body of a streamed transcript. WSGI servers close it, also when it was never begun."""

    def __init__(self, hearing: _TranscriptionEvents, request_id: str, log: EventLog) -> None:
        self._hearing = hearing
        self._request_id = request_id
        self._log = log

    def __iter__(self) -> Iterator[bytes]:
        yield COMMENT
        try:
            yield from self._frames()
        except MlxkError as error:
            yield frame(error_document(error, self._request_id))
        except Exception as fault:  # noqa: BLE001 - a door: headers are sent, so this is the only way to say it
            self._log.error("a transcript could not be delivered", error=type(fault).__name__)
            yield frame(error_document(InternalError("The transcript could not be delivered."), self._request_id))

    def close(self) -> None:
        """Give everything back."""
        self._hearing.close()

    def _frames(self) -> Iterator[bytes]:
        begun = False
        for event in self._hearing:
            if isinstance(event, Transcript):
                yield transcripts.done(event)
            elif isinstance(event, Heard) and event.segments:
                text = "".join(segment.text for segment in event.segments)
                yield transcripts.delta(text if begun else text.lstrip())
                begun = True
            else:
                yield PING


def _nothing() -> None:
    """Give nothing back: the body of the response does it."""
