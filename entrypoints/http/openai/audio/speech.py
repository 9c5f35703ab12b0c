"""``POST /v1/audio/speech``: a text as sound.

A text is spoken in the thread of its request, one piece at a time. PCM is sent as it is spoken, and so are the events
of a stream; files are sent when they are complete, since their headers and encoders need all of the sound.
"""

import base64
import contextlib
import functools
import io
from collections.abc import Iterator
from types import MappingProxyType
from typing import Annotated, Any

import attrs
import falcon

from mlxk.application.named_media import is_address
from mlxk.application.policy import require_voice
from mlxk.domain.errors import (
    Advice,
    BackendNotInstalledError,
    ExecutionError,
    FeatureGateError,
    MlxkError,
    ParameterNotSupportedError,
    Remedy,
    ValidationError,
)
from mlxk.domain.models.model import ServedModel
from mlxk.domain.synthesis import (
    DEFAULT_VOICE,
    MAX_INSTRUCTION_CHARACTERS,
    MAX_SAMPLE_CHARACTERS,
    MAX_SPEED,
    MIN_SPEED,
    SAMPLE_TEXT,
    SpeechBegun,
    SpeechEnded,
    SpeechEvent,
    SpokenPart,
    SynthesisSettings,
    VoiceSample,
    wav_header,
)
from mlxk.entrypoints.http.api import ServerContext
from mlxk.entrypoints.http.generation.renderer import OPENING_COMMENT, SSE_HEADERS, sse_frame
from mlxk.entrypoints.http.generation.responder import ADAPTATIONS
from mlxk.entrypoints.http.lifecycle import api_of
from mlxk.entrypoints.http.openai.audio.events import ServedEvents, StreamedBody
from mlxk.entrypoints.http.openai.audio.request import read_form
from mlxk.entrypoints.http.openai.errors import error_document
from mlxk.entrypoints.http.request_scope import request_id, trace_of
from mlxk.entrypoints.http.requests.body import BodyReader
from mlxk.entrypoints.http.requests.media import Upload
from mlxk.entrypoints.http.requests.validation import FieldError, Neutral, OneOf, Range, located
from mlxk.entrypoints.http.server.channel import ENVIRON_ON_DISCONNECT

MAX_INPUT = 16_384
"""Characters of a request, some 20 minutes of speech; OpenAI takes 4096."""

PCM_RATE = 24_000
"""Hz: that of OpenAI's PCM, which has no header to state another."""

FORMATS = MappingProxyType(
    {
        "mp3": "audio/mpeg",
        "opus": "audio/ogg",
        "aac": "audio/aac",
        "flac": "audio/flac",
        "wav": "audio/wav",
        "pcm": "audio/pcm",
    }
)
"""Media types by format."""

_OURS = frozenset({"wav", "pcm"})
"""Formats that need no encoder."""

_STANDARD_VOICES = frozenset(
    {
        *("alloy", "ash", "ballad", "cedar", "coral", "echo", "fable"),
        *("marin", "nova", "onyx", "sage", "shimmer", "verse"),
    }
)
"""OpenAI's; where a model has no voice of the name, its usual one stands in, since clients have to name one."""

FORMAT_WAV, VOICE_SUBSTITUTED, INSTRUCTIONS_IGNORED = "format-wav", "voice-substituted", "instructions-ignored"
"""Adaptations: nothing was asked and MP3 cannot be made; OpenAI's voice was asked; the model takes no instructions."""

REF_TEXT_IGNORED = "ref-text-ignored"
"""Adaptation: the model imitates a voice without the words of the recording."""

_RECORDING, _SAID = "ref_audio", "ref_text"
"""The fields of a recording whose voice is imitated, and of what is said in it."""

_NEUTRAL: Neutral = dict.fromkeys(("response_format", "stream_format", "speed", _RECORDING), ("",))

_FRAME_BYTES = 32 * 1024
"""Of an encoded file in one event."""


@attrs.frozen(kw_only=True)
class SpeechBody:
    """The body of a request."""

    model: Annotated[str, Range(1, None)]
    input: Annotated[str, Range(1, MAX_INPUT)]
    voice: Any = None
    instructions: Annotated[str, Range(None, MAX_INSTRUCTION_CHARACTERS)] | None = None
    response_format: Annotated[str, OneOf(tuple(FORMATS))] | None = None
    speed: Annotated[float, Range(MIN_SPEED, MAX_SPEED)] | None = None
    stream_format: Annotated[str, OneOf(("audio", "sse"))] | None = None
    ref_audio: Annotated[str, Range(1, None)] | None = attrs.field(default=None, repr=False)
    ref_text: Annotated[str, Range(None, MAX_SAMPLE_CHARACTERS)] | None = attrs.field(default=None, repr=False)

    def faults(self) -> list[FieldError]:
        """Return the faults of the voice, which is a name, or an object with it."""
        faults = []
        if self.voice not in (None, "") and not isinstance(self.named_voice, str):
            faults.append(FieldError("voice", "must be a string, or an object with a string 'id'"))
        if not any(character.isalnum() for character in self.input):
            faults.append(FieldError("input", "has no letter or digit that could be spoken"))
        if self.ref_text and not any(character.isalnum() for character in self.ref_text):
            faults.append(FieldError(_SAID, "has no letter or digit that could be said in the recording"))
        return faults

    @property
    def named_voice(self) -> Any:  # noqa: ANN401 - checked by faults
        """The voice's name; None for the model's usual one."""
        named = self.voice.get("id") if isinstance(self.voice, dict) else self.voice
        return None if named == "" else named


class SpeechResource:
    """Speaks texts."""

    def __init__(self, server: ServerContext) -> None:
        self._reader = BodyReader(
            SpeechBody,
            neutral=_NEUTRAL,
            default_model=lambda: server.services.catalogue.default,
        )
        self._server = server
        self._services = server.services

    def on_post(self, request: falcon.Request, response: falcon.Response) -> None:
        """Return sound, or events with it."""
        request.context.prompt_field = "input"
        with contextlib.ExitStack() as kept:  # a recording, which is read when the speech has begun
            body, upload = self._read(request, response, kept)
            self._server.lifecycle.require_open()
            sample = self._sample(body, upload, kept)
            self._speak(request, response, body, sample)

    def _read(
        self, request: falcon.Request, response: falcon.Response, kept: contextlib.ExitStack
    ) -> tuple[SpeechBody, Upload | None]:
        """Return the body, JSON or a form, and the recording that is a part of a form."""
        if not (request.content_type or "").lower().startswith(falcon.MEDIA_MULTIPART):
            return self._reader.read(request, response), None
        upload = kept.enter_context(Upload())
        fields: dict[str, object] = {
            name: values[-1] for name, values in read_form(request, upload, _RECORDING).items() if values
        }
        with contextlib.suppress(ValueError):  # what is no number is refused with the other fields
            fields |= {"speed": float(str(fields["speed"]))} if "speed" in fields else {}
        trace_of(request).asks(fields)
        return self._reader.structured(fields, response), upload if upload.arrived else None

    def _sample(self, body: SpeechBody, upload: Upload | None, kept: contextlib.ExitStack) -> VoiceSample | None:
        """Return the recording whose voice is to be imitated, as a file that is removed with the request.

        Raises:
            FeatureGateError: The operator has not allowed it.
            ValidationError: It cannot be read, or there is only what is said in it.
        """
        if upload is None and body.ref_audio is None:
            if body.ref_text:
                raise ValidationError.in_field(_SAID, f"is what is said in {_RECORDING}, which is missing")
            return None
        if not self._server.settings.allow_voice_cloning:
            refused = "voices of recordings are not imitated on this server; name one of the model's in voice"
            raise FeatureGateError.in_field(_RECORDING, refused, hint=Advice(Remedy.ALLOW_VOICE_CLONING))
        if upload is None:
            upload = kept.enter_context(Upload())
            upload.receive(io.BytesIO(self._recording(body.ref_audio or "")), None)
        return VoiceSample(upload.path, _RECORDING, body.ref_text or None)

    def _recording(self, sent: str) -> bytes:
        if is_address(sent):
            raise ValidationError.in_field(_RECORDING, "is an address; send the recording itself, in base64 or a form")
        return self._server.media.of_request().recording(sent, _RECORDING)

    def _speak(
        self, request: falcon.Request, response: falcon.Response, body: SpeechBody, sample: VoiceSample | None
    ) -> None:
        model = self._services.catalogue.find(body.model, functools.partial(require_voice, cloning=sample is not None))
        trace_of(request).model = model.id
        kind, adaptations = self._format(body)
        voice, substituted = _voice(body, model, cloned=sample is not None)
        adaptations += substituted
        rate = PCM_RATE if kind == "pcm" else None
        settings = SynthesisSettings(voice, body.speed or 1.0, body.instructions or None, rate, sample)
        events = self._begin(request, model, body.input, settings)
        keep_open = False
        try:
            with _naming_the_recording(sample):
                events.begin()  # errors before the first sound have a status of their own
            begun = events.first
            if not isinstance(begun, SpeechBegun):
                raise ExecutionError("the speech ended before it began")
            if settings.instructions is not None and not begun.takes_instructions:
                adaptations += (INSTRUCTIONS_IGNORED,)
            if sample is not None and sample.text is not None and not begun.takes_sample_text:
                adaptations += (REF_TEXT_IGNORED,)
            if adaptations:
                response.set_header(ADAPTATIONS, ", ".join(adaptations))
            if body.stream_format == "sse" or kind == "pcm":
                self._stream(request, response, events, kind, body.stream_format == "sse")
                keep_open = True
            else:
                response.content_type, response.data = FORMATS[kind], self._file(events, kind)
        finally:
            if not keep_open:
                events.close()

    def _format(self, body: SpeechBody) -> tuple[str, tuple[str, ...]]:
        """Return the format, and how it differs from what was asked.

        Raises:
            ParameterNotSupportedError: The format that was asked for cannot be made here.
        """
        kind = body.response_format or "mp3"
        problem = None if kind in _OURS else self._services.sound_encoder.problem(kind)
        if problem is None:
            return kind, ()
        if body.response_format is None:
            return "wav", (FORMAT_WAV,)
        refused = f"'{kind}' cannot be made on this server: {problem}; wav and pcm can"
        raise ParameterNotSupportedError.in_field("response_format", refused)

    def _begin(
        self, request: falcon.Request, model: ServedModel, text: str, settings: SynthesisSettings
    ) -> ServedEvents[SpeechEvent]:
        release, clock = self._server.limit.enter(1), self._services.clock
        began, trace = clock.monotonic(), trace_of(request)

        def notice(event: SpeechEvent) -> None:
            if isinstance(event, SpeechEnded):
                trace.tokens = event.text_tokens
                self._server.metrics.speech(model.id, api_of(request.uri_template), clock.monotonic() - began)

        try:
            spoken = self._services.speak(model.details, text, settings)
        except BaseException:
            release()
            raise
        events = ServedEvents(spoken, self._server.lifecycle, (release,), notice)
        request.env.get(ENVIRON_ON_DISCONNECT, lambda _: None)(events.disconnected)
        return events

    def _stream(
        self,
        request: falcon.Request,
        response: falcon.Response,
        events: ServedEvents[SpeechEvent],
        kind: str,
        as_events: bool,
    ) -> None:
        trace, identity = trace_of(request), request_id(request)
        trace.ends_later = True
        self._server.tracer.identify(request, trace, identity)
        for name, value in SSE_HEADERS.items() if as_events else (("Content-Type", FORMATS[kind]),):
            response.set_header(name, value)

        def failed(error: MlxkError) -> bytes:
            return sse_frame(error_document(error, identity))

        frames = self._frames(events, kind) if as_events else _pcm(events)
        log, tracer = self._services.log, self._server.tracer
        response.stream = StreamedBody(frames, events.close, failed if as_events else None, log, trace, tracer)

    def _frames(self, events: ServedEvents[SpeechEvent], kind: str) -> Iterator[bytes]:
        """Yield the events of a stream: of PCM and WAV as it is spoken, of encoded formats once all of it is."""
        yield OPENING_COMMENT
        kept, rate = bytearray(), PCM_RATE
        for event in events:
            if isinstance(event, SpeechBegun):
                rate = event.sample_rate
                if kind == "wav":
                    yield _delta(wav_header(rate))
            elif isinstance(event, SpokenPart):
                if kind in _OURS:
                    yield _delta(event.pcm)
                else:
                    kept += event.pcm
            else:
                encoded = self._services.sound_encoder.encode(bytes(kept), rate, kind) if kept else b""
                for start in range(0, len(encoded), _FRAME_BYTES):
                    yield _delta(encoded[start : start + _FRAME_BYTES])
                yield sse_frame({"type": "speech.audio.done", "usage": _usage(event)})

    def _file(self, events: ServedEvents[SpeechEvent], kind: str) -> bytes:
        sound, rate = bytearray(), PCM_RATE
        for event in events:
            if isinstance(event, SpeechBegun):
                rate = event.sample_rate
            elif isinstance(event, SpokenPart):
                sound += event.pcm
        if kind == "wav":
            return wav_header(rate, len(sound)) + bytes(sound)
        return self._services.sound_encoder.encode(bytes(sound), rate, kind)


@contextlib.contextmanager
def _naming_the_recording(sample: VoiceSample | None) -> Iterator[None]:
    """Have errors of the block name the fields of the recording whose voice is imitated."""
    try:
        yield
    except (ValidationError, BackendNotInstalledError) as error:
        if sample is None:
            raise
        raise located(error, _RECORDING, {"file": _RECORDING, SAMPLE_TEXT: _SAID}) from error


def _voice(body: SpeechBody, model: ServedModel, *, cloned: bool) -> tuple[str | None, tuple[str, ...]]:
    """Return the voice, and how it differs from the one that was asked for; none beside that of a recording."""
    asked = body.named_voice
    if cloned:
        if asked is not None and asked.casefold() not in _STANDARD_VOICES | {DEFAULT_VOICE}:
            raise ValidationError.in_field("voice", f"cannot be given with {_RECORDING}, whose voice is imitated")
        return None, ()  # clients have to name one
    known = {voice.casefold() for voice in model.details.voices}
    if isinstance(asked, str) and asked.casefold() in _STANDARD_VOICES - known:
        return None, (VOICE_SUBSTITUTED,)
    return asked, ()


def _pcm(events: ServedEvents[SpeechEvent]) -> Iterator[bytes]:
    for event in events:
        if isinstance(event, SpokenPart):
            yield event.pcm


def _delta(data: bytes) -> bytes:
    return sse_frame({"type": "speech.audio.delta", "audio": base64.b64encode(data).decode()})


def _usage(ended: SpeechEnded) -> dict[str, int]:
    total = ended.text_tokens + ended.sound_tokens
    return {"input_tokens": ended.text_tokens, "output_tokens": ended.sound_tokens, "total_tokens": total}
