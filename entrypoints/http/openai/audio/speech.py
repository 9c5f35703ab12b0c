"""``POST /v1/audio/speech``: a text as sound.

A text is spoken in the thread of its request, one piece at a time. PCM is sent as it is spoken, and so are the events
of a stream; files are sent when they are complete, since their headers and encoders need all of the sound.
"""

import base64
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Annotated, Any

import attrs
import falcon

from mlxk.application.policy import require_voice
from mlxk.domain.errors import ExecutionError, MlxkError, ParameterNotSupportedError
from mlxk.domain.models.model import ServedModel
from mlxk.domain.synthesis import (
    MAX_INSTRUCTION_CHARACTERS,
    MAX_SPEED,
    MIN_SPEED,
    SpeechBegun,
    SpeechEnded,
    SpeechEvent,
    SpokenPart,
    SynthesisSettings,
    wav_header,
)
from mlxk.entrypoints.http.api import ServerContext
from mlxk.entrypoints.http.generation.renderer import OPENING_COMMENT, SSE_HEADERS, sse_frame
from mlxk.entrypoints.http.generation.responder import ADAPTATIONS
from mlxk.entrypoints.http.lifecycle import api_of
from mlxk.entrypoints.http.middleware import request_id
from mlxk.entrypoints.http.openai.audio.events import ServedEvents, StreamedBody
from mlxk.entrypoints.http.openai.errors import error_document
from mlxk.entrypoints.http.requests.body import BodyReader
from mlxk.entrypoints.http.requests.validation import FieldError, OneOf, Range, Unsupported
from mlxk.entrypoints.http.server.channel import ENVIRON_ON_DISCONNECT
from mlxk.entrypoints.http.tracing import trace_of

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

_CLONING = Unsupported("voices are not copied from recordings; name one of the model's in voice")
_UNSUPPORTED: Mapping[str, Unsupported] = {"ref_audio": _CLONING, "ref_text": _CLONING}

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

    def faults(self) -> list[FieldError]:
        """Return the faults of the voice, which is a name, or an object with it."""
        faults = []
        if self.voice is not None and not isinstance(self.named_voice, str):
            faults.append(FieldError("voice", "must be a string, or an object with a string 'id'"))
        if not any(character.isalnum() for character in self.input):
            faults.append(FieldError("input", "has no letter or digit that could be spoken"))
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
            unsupported=_UNSUPPORTED,
            default_model=lambda: server.services.catalogue.default,
        )
        self._server = server
        self._services = server.services

    def on_post(self, request: falcon.Request, response: falcon.Response) -> None:
        """Return sound, or events with it."""
        request.context.prompt_field = "input"
        body = self._reader.read(request, response)
        self._server.lifecycle.require_open()
        model = self._services.catalogue.find(body.model, require_voice)
        trace_of(request).model = model.id
        kind, adaptations = self._format(body)
        voice, substituted = _voice(body, model)
        adaptations += substituted
        rate = PCM_RATE if kind == "pcm" else None
        settings = SynthesisSettings(voice, body.speed or 1.0, body.instructions or None, rate)
        events = self._begin(request, model, body.input, settings)
        keep_open = False
        try:
            events.begin()  # errors before the first sound have a status of their own
            begun = events.first
            if not isinstance(begun, SpeechBegun):
                raise ExecutionError("the speech ended before it began")
            if settings.instructions is not None and not begun.takes_instructions:
                adaptations += (INSTRUCTIONS_IGNORED,)
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


def _voice(body: SpeechBody, model: ServedModel) -> tuple[str | None, tuple[str, ...]]:
    """Return the voice, and how it differs from the one that was asked for."""
    asked = body.named_voice
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
