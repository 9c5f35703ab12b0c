"""Chat with a recording in it, for models that listen and do nothing else: the answer is what was said.

Owns what such a model is asked, and the refusal of everything else. Audio models that also write text are asked as any
other model that writes it.
"""

import io
from collections.abc import Iterator, Mapping

import attrs

from mlxk.application.ports.clock import Clock
from mlxk.application.ports.text_generator import TextStream
from mlxk.application.text_streams import TranscriptLimits, TranscriptStream
from mlxk.application.use_cases.serve_catalogue import ServedModel
from mlxk.application.use_cases.transcribe_audio import Recording, TranscribeAudio
from mlxk.domain.errors import CapabilityError, PayloadTooLargeError, ValidationError
from mlxk.domain.generation.request import GenerationRequest
from mlxk.domain.transcription import TranscriptionSettings
from mlxk.entrypoints.http.requests.audio import Upload
from mlxk.entrypoints.http.requests.chat import ChatRequest
from mlxk.entrypoints.http.requests.field_errors import FieldError, located, raise_for
from mlxk.entrypoints.http.requests.messages import AudioPart, ImagePart, TextPart
from mlxk.entrypoints.http.requests.sounds import NAME, read_base64
from mlxk.entrypoints.http.requests.support import Unsupported, unsupported_faults
from mlxk.entrypoints.http.responses.chat import ChatShape
from mlxk.entrypoints.http.responses.generation_responder import GenerationJob

_NOT_SAMPLED = "of what steers sampling, a model that only listens takes temperature; leave this out"
_NO_REASONING = "a model that only listens does not reason; leave this out"

UNSUPPORTED: Mapping[str, Unsupported] = {
    "chunk": Unsupported("a model that only listens takes no images; leave this out"),
    "enable_thinking": Unsupported(_NO_REASONING, (False,)),
    "frequency_penalty": Unsupported(_NOT_SAMPLED, (0.0,)),
    "logit_bias": Unsupported(_NOT_SAMPLED, ({},)),
    "logprobs": Unsupported("a model that only listens gives no log probabilities; leave this out", (False,)),
    "min_p": Unsupported(_NOT_SAMPLED, (0.0,)),
    "n": Unsupported("a model that only listens gives one answer; leave this out", (1,)),
    "presence_penalty": Unsupported(_NOT_SAMPLED, (0.0,)),
    "repetition_penalty": Unsupported(_NOT_SAMPLED, (1.0,)),
    "reasoning_effort": Unsupported(_NO_REASONING, ("none", "medium")),
    "response_format": Unsupported("a model that only listens writes plain text; leave this out", ("text",)),
    "seed": Unsupported(_NOT_SAMPLED),
    "thinking_budget": Unsupported(_NO_REASONING),
    "tools": Unsupported("a model that only listens calls no tools; leave them out", ([],)),
    "top_k": Unsupported(_NOT_SAMPLED, (0,)),
    "top_p": Unsupported(_NOT_SAMPLED, (1.0,)),
}
"""Fields of a chat that models that only listen do not take; see ``support``."""


class TranscriptionChat:
    """Turns chat requests to speech models into questions to answer.

    Args:
        transcribe: Listens.
        clock: Measures.
        max_tokens: The operator's limit for requests that name none.
    """

    def __init__(self, transcribe: TranscribeAudio, clock: Clock, max_tokens: int | None) -> None:
        self._max_tokens = max_tokens
        self._transcribe = transcribe
        self._clock = clock

    def asked(self, chat: ChatRequest, model: ServedModel) -> GenerationJob:
        """Return what to answer.

        Args:
            chat: What is asked.
            model: The one that it names, which only listens and can run.

        Raises:
            CapabilityError: There is nothing to listen to, or something else to do.
            ValidationError: Names every field at fault.
        """
        question = _understood(chat, model, self._max_tokens)
        return GenerationJob(
            model=model,
            model_name=chat.model,
            requests=(GenerationRequest(model.handle, question.settings.hint or ""),),
            alternatives=1,
            shape=ChatShape(),
            id_prefix="chatcmpl",
            stream=bool(chat.stream),
            include_usage=chat.include_usage,
            extra={"metadata": chat.metadata} if chat.metadata else {},
            start=lambda: (self._hear(model, question),),
        )

    def _hear(self, model: ServedModel, question: "_Question") -> TextStream:
        upload = Upload()
        try:
            upload.receive(io.BytesIO(question.sound), NAME)
            recording = Recording(upload.path, upload.name)
            events = self._transcribe.listen(model.description, recording, question.settings)
            return TranscriptStream(events, self._clock, upload.close, question.limits)
        except BaseException as error:
            upload.close()
            if isinstance(error, (ValidationError, PayloadTooLargeError)):
                raise located(error, question.sound_field) from error
            if isinstance(error, CapabilityError):
                raise located(error, "model", {"prompt": question.hint_field}) from error
            raise


@attrs.frozen
class _Question:
    """What a chat request asks of a model that only listens."""

    settings: TranscriptionSettings
    limits: TranscriptLimits
    sound: bytes = attrs.field(repr=False)
    """The recording, as a file."""
    sound_field: str
    """Where it stands."""
    hint_field: str
    """Where the text beside it stands."""


def _understood(chat: ChatRequest, model: ServedModel, max_tokens: int | None) -> _Question:
    place = f"messages[{len(chat.messages) - 1}].content"
    content = chat.messages[-1].content
    parts = [(f"{place}[{index}]", part) for index, part in enumerate(content if isinstance(content, list) else ())]
    sounds = [(path, part.input_audio.data) for path, part in parts if isinstance(part, AudioPart)]
    if not sounds:
        raise CapabilityError.in_field(
            place,
            f"'{model.id}' only listens; the last message has no input_audio",
            hint="Send a recording as a part of the type input_audio, or use /v1/audio/transcriptions.",
        )
    texts = [(f"{path}.text", part.text) for path, part in parts if isinstance(part, TextPart) and part.text.strip()]
    sound_field, hint_field = f"{sounds[0][0]}.input_audio.data", texts[0][0] if texts else place
    settings = TranscriptionSettings(
        hint=" ".join(text for _, text in texts).strip() or None, temperature=chat.temperature or 0.0
    )
    names = {"prompt": hint_field}
    faults = [FieldError(names.get(name, name), wrong) for name, wrong in settings.faults().items()]
    faults += [*unsupported_faults(_settings_of(chat), UNSUPPORTED), *_beside(chat)]
    raise_for(faults, unsupported=CapabilityError)
    asked = chat.generation_settings(max_tokens)
    limits = TranscriptLimits(asked.max_tokens, asked.stop)
    return _Question(settings, limits, read_base64(sounds[0][1], sound_field), sound_field, hint_field)


def _settings_of(chat: ChatRequest) -> Mapping[str, object]:
    """Return the values of the fields that are not taken, the form of the answer by its name."""
    values = {name: getattr(chat, name) for name in UNSUPPORTED}
    return {
        **values,
        "tools": chat.offered,
        "response_format": chat.response_format.type if chat.response_format else None,
    }


def _beside(chat: ChatRequest) -> Iterator[FieldError]:
    """Yield a fault for whatever stands beside one recording and text in one message."""
    *earlier, last = chat.messages
    if earlier:
        reason = "a model that only listens hears one message, without what was said before; send the last one alone"
        yield FieldError("messages[0]", reason, unsupported=True)
    heard = False
    for index, part in enumerate(last.content if isinstance(last.content, list) else ()):
        path = f"messages[{len(earlier)}].content[{index}]"
        if isinstance(part, ImagePart):
            yield FieldError(path, "a model that only listens cannot look at images; leave it out", unsupported=True)
        elif isinstance(part, AudioPart):
            if heard:
                yield FieldError(
                    path, "only one recording at a time; send each in a request of its own", unsupported=True
                )
            heard = True
