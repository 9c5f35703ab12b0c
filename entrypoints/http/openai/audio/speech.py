"""``POST /v1/audio/speech``: text to speech.

Speech is synthesized in the thread of its request, one piece at a time. PCM and the events of a stream are sent as
they are produced; files are sent once complete, since their headers and encoders need all of the audio.
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
from mlxk.entrypoints.http.generation.renderer import OPENING_COMMENT, sse_frame
from mlxk.entrypoints.http.generation.responder import ADAPTATIONS
from mlxk.entrypoints.http.lifecycle import api_of
from mlxk.entrypoints.http.openai.audio.events import ServedEvents, send_stream
from mlxk.entrypoints.http.openai.audio.request import read_form
from mlxk.entrypoints.http.request_scope import trace_of
from mlxk.entrypoints.http.requests.body import BodyReader
from mlxk.entrypoints.http.requests.media import Upload
from mlxk.entrypoints.http.requests.validation import FieldError, Neutral, OneOf, Range, located
from mlxk.entrypoints.http.server.channel import ENVIRON_ON_DISCONNECT

MAX_INPUT = 16_384
"""Most characters of input, some 20 minutes of speech; OpenAI accepts 4096."""

PCM_RATE = 24_000
"""Sample rate of PCM in Hz, as in OpenAI's API; PCM has no header to state another."""

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

_UNENCODED = frozenset({"wav", "pcm"})
"""Formats that need no encoder."""

_STANDARD_VOICES = frozenset(
    {
        *("alloy", "ash", "ballad", "cedar", "coral", "echo", "fable"),
        *("marin", "nova", "onyx", "sage", "shimmer", "verse"),
    }
)
"""OpenAI's voices. A model without a voice of that name uses its default one, since clients have to name a voice."""

FORMAT_WAV = "format-wav"
"""Adaptation: the request names no format and MP3 cannot be encoded."""

VOICE_SUBSTITUTED = "voice-substituted"
"""Adaptation: the model has no voice of the requested OpenAI name."""

INSTRUCTIONS_IGNORED = "instructions-ignored"
"""Adaptation: the model takes no instructions."""

REF_TEXT_IGNORED = "ref-text-ignored"
"""Adaptation: the model clones a voice without the transcript of the recording."""

_REF_AUDIO, _REF_TEXT = "ref_audio", "ref_text"
"""The fields of a recording whose voice is cloned, and of its transcript."""

_NEUTRAL: Neutral = dict.fromkeys(("response_format", "stream_format", "speed", _REF_AUDIO), ("",))

_FRAME_BYTES = 32 * 1024
"""Bytes of an encoded file in one event."""


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
        """Return the faults of the voice (a name, or an object with it) and of the texts."""
        faults = []
        if self.voice not in (None, "") and not isinstance(self.named_voice, str):
            faults.append(FieldError("voice", "must be a string, or an object with a string 'id'"))
        if not any(character.isalnum() for character in self.input):
            faults.append(FieldError("input", "has no letter or digit that could be spoken"))
        if self.ref_text and not any(character.isalnum() for character in self.ref_text):
            faults.append(FieldError(_REF_TEXT, "has no letter or digit that could be said in the recording"))
        return faults

    @property
    def named_voice(self) -> Any:  # noqa: ANN401 - checked by faults
        """The name of the voice; None for the model's default."""
        name = self.voice.get("id") if isinstance(self.voice, dict) else self.voice
        return None if name == "" else name


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
        """Return the audio, or events with it."""
        request.context.prompt_field = "input"
        with contextlib.ExitStack() as uploads:  # the recording has been read once the first event is computed
            body, upload = self._read(request, response, uploads)
            self._server.lifecycle.require_open()
            sample = self._sample(body, upload, uploads)
            self._speak(request, response, body, sample)

    def _read(
        self, request: falcon.Request, response: falcon.Response, uploads: contextlib.ExitStack
    ) -> tuple[SpeechBody, Upload | None]:
        """Return the body (JSON or a form) and the recording uploaded in the form, if any."""
        if not (request.content_type or "").lower().startswith(falcon.MEDIA_MULTIPART):
            return self._reader.read(request, response), None
        upload = uploads.enter_context(Upload())
        fields: dict[str, object] = {
            name: values[-1] for name, values in read_form(request, upload, _REF_AUDIO).items() if values
        }
        with contextlib.suppress(ValueError):  # the reader refuses it along with other faults
            fields |= {"speed": float(str(fields["speed"]))} if "speed" in fields else {}
        trace_of(request).asks(fields)
        return self._reader.structured(fields, response), upload if upload.arrived else None

    def _sample(self, body: SpeechBody, upload: Upload | None, uploads: contextlib.ExitStack) -> VoiceSample | None:
        """Return the recording whose voice to clone, as a file that is removed with the request.

        Raises:
            FeatureGateError: The operator has not allowed voice cloning.
            ValidationError: The recording cannot be read, or there is a transcript without one.
        """
        if upload is None and body.ref_audio is None:
            if body.ref_text:
                raise ValidationError.in_field(_REF_TEXT, f"is what is said in {_REF_AUDIO}, which is missing")
            return None
        if not self._server.settings.allow_voice_cloning:
            reason = "voices of recordings are not imitated on this server; name one of the model's in voice"
            raise FeatureGateError.in_field(_REF_AUDIO, reason, hint=Advice(Remedy.ALLOW_VOICE_CLONING))
        if upload is None:
            upload = uploads.enter_context(Upload())
            upload.receive(io.BytesIO(self._recording(body.ref_audio or "")), None)
        return VoiceSample(upload.path, _REF_AUDIO, body.ref_text or None)

    def _recording(self, reference: str) -> bytes:
        if is_address(reference):
            raise ValidationError.in_field(_REF_AUDIO, "is an address; send the recording itself, in base64 or a form")
        return self._server.media.of_request().recording(reference, _REF_AUDIO)

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
            with _recording_errors(sample):
                events.begin()  # errors before the first event set the status of the response
            first = events.first
            if not isinstance(first, SpeechBegun):
                raise ExecutionError("the speech ended before it began")
            if settings.instructions is not None and not first.takes_instructions:
                adaptations += (INSTRUCTIONS_IGNORED,)
            if sample is not None and sample.text is not None and not first.takes_sample_text:
                adaptations += (REF_TEXT_IGNORED,)
            if adaptations:
                response.set_header(ADAPTATIONS, ", ".join(adaptations))
            if body.stream_format == "sse":
                send_stream(self._server, request, response, self._frames(events, kind), events.close)
                keep_open = True
            elif kind == "pcm":
                send_stream(self._server, request, response, _pcm(events), events.close, FORMATS[kind])
                keep_open = True
            else:
                response.content_type, response.data = FORMATS[kind], self._file(events, kind)
        finally:
            if not keep_open:
                events.close()

    def _format(self, body: SpeechBody) -> tuple[str, tuple[str, ...]]:
        """Return the format, and the adaptation if it is a fallback.

        Raises:
            ParameterNotSupportedError: The requested format cannot be encoded here.
        """
        kind = body.response_format or "mp3"
        problem = None if kind in _UNENCODED else self._services.sound_encoder.problem(kind)
        if problem is None:
            return kind, ()
        if body.response_format is None:
            return "wav", (FORMAT_WAV,)
        reason = f"'{kind}' cannot be made on this server: {problem}; wav and pcm can"
        raise ParameterNotSupportedError.in_field("response_format", reason)

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
            speech = self._services.speak(model.details, text, settings)
        except BaseException:
            release()
            raise
        events = ServedEvents(speech, self._server.lifecycle, (release,), notice)
        request.env.get(ENVIRON_ON_DISCONNECT, lambda _: None)(events.disconnected)
        return events

    def _frames(self, events: ServedEvents[SpeechEvent], kind: str) -> Iterator[bytes]:
        """Yield the frames of a stream: PCM and WAV as the audio is synthesized, encoded formats at the end."""
        yield OPENING_COMMENT
        pcm, rate = bytearray(), PCM_RATE
        for event in events:
            if isinstance(event, SpeechBegun):
                rate = event.sample_rate
                if kind == "wav":
                    yield _delta(wav_header(rate))
            elif isinstance(event, SpokenPart):
                if kind in _UNENCODED:
                    yield _delta(event.pcm)
                else:
                    pcm += event.pcm
            else:
                encoded = self._services.sound_encoder.encode(bytes(pcm), rate, kind) if pcm else b""
                for start in range(0, len(encoded), _FRAME_BYTES):
                    yield _delta(encoded[start : start + _FRAME_BYTES])
                yield sse_frame({"type": "speech.audio.done", "usage": _usage(event)})

    def _file(self, events: ServedEvents[SpeechEvent], kind: str) -> bytes:
        pcm, rate = bytearray(), PCM_RATE
        for event in events:
            if isinstance(event, SpeechBegun):
                rate = event.sample_rate
            elif isinstance(event, SpokenPart):
                pcm += event.pcm
        if kind == "wav":
            return wav_header(rate, len(pcm)) + bytes(pcm)
        return self._services.sound_encoder.encode(bytes(pcm), rate, kind)


@contextlib.contextmanager
def _recording_errors(sample: VoiceSample | None) -> Iterator[None]:
    """Map errors about the voice sample to the fields of the request."""
    try:
        yield
    except (ValidationError, BackendNotInstalledError) as error:
        if sample is None:
            raise
        raise located(error, _REF_AUDIO, {"file": _REF_AUDIO, SAMPLE_TEXT: _REF_TEXT}) from error


def _voice(body: SpeechBody, model: ServedModel, *, cloned: bool) -> tuple[str | None, tuple[str, ...]]:
    """Return the voice (None for the default, or a cloned one), and the adaptation if it is substituted."""
    name = body.named_voice
    folded = None if name is None else name.strip().casefold()
    if cloned:
        if name is not None and folded not in _STANDARD_VOICES | {DEFAULT_VOICE}:
            raise ValidationError.in_field("voice", f"cannot be given with {_REF_AUDIO}, whose voice is imitated")
        return None, ()  # a standard name is ignored: clients have to send one
    known = {voice.casefold() for voice in model.details.voices}
    if folded in _STANDARD_VOICES - known:
        return None, (VOICE_SUBSTITUTED,)
    return name, ()


def _pcm(events: ServedEvents[SpeechEvent]) -> Iterator[bytes]:
    for event in events:
        if isinstance(event, SpokenPart):
            yield event.pcm


def _delta(data: bytes) -> bytes:
    return sse_frame({"type": "speech.audio.delta", "audio": base64.b64encode(data).decode()})


def _usage(ended: SpeechEnded) -> dict[str, int]:
    total = ended.text_tokens + ended.sound_tokens
    return {"input_tokens": ended.text_tokens, "output_tokens": ended.sound_tokens, "total_tokens": total}
