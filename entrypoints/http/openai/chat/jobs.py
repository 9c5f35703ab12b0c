"""Generation jobs for chat requests, of the chat API and of every API that translates its requests into chat requests.

Transcription-only models respond with the transcript.
"""

import functools
import io
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import attrs

from mlxk.application.generation_input import GenerationOptions, Recording
from mlxk.application.policy import require_speech_model, require_text_model
from mlxk.application.ports.text_generator import TextStream
from mlxk.application.transcript_stream import TranscriptLimits, TranscriptStream
from mlxk.application.use_cases.model_tasks import TranscribeAudio
from mlxk.domain.errors import CapabilityError, ContextLengthError, PayloadTooLargeError, ValidationError
from mlxk.domain.generation.conversation import Adaptation
from mlxk.domain.models.model import Capability, ModelDescription, ServedModel
from mlxk.domain.transcription import TranscriptionSettings
from mlxk.entrypoints.http.api import ServerContext
from mlxk.entrypoints.http.generation.renderer import ResponseContext, ResponseRenderer
from mlxk.entrypoints.http.generation.responder import Client, GenerationJob
from mlxk.entrypoints.http.openai.chat.messages import MessageParam
from mlxk.entrypoints.http.openai.chat.parts import AudioPart, FilePart, ImagePart, TextPart, VideoPart
from mlxk.entrypoints.http.openai.chat.request import ChatRequest
from mlxk.entrypoints.http.openai.renderer import MessageOptions
from mlxk.entrypoints.http.requests.body import SAME_NAMES, FieldNames
from mlxk.entrypoints.http.requests.media import NAME, MediaReader, Upload
from mlxk.entrypoints.http.requests.validation import FieldError, Unsupported, located, raise_for, unsupported_faults

SHORTENED = Adaptation("oldest-turns-dropped", "The oldest turns were left out, since the context window is too small.")

ROOM = 0.75
"""Share of the context window for a shortened conversation; the rest is for the answer."""

Start = Callable[[Sequence[MessageParam]], Sequence[TextStream]]


def start_shortened(messages: Sequence[MessageParam], start: Start) -> Sequence[TextStream]:
    """Start the response to a conversation, dropping its oldest turns until it fits the context window.

    Args:
        messages: The conversation.
        start: Starts the response to a conversation.

    Raises:
        ContextLengthError: The last turn alone is too long.
        MlxkError: As raised by ``start``.
    """
    kept = list(messages)
    while True:
        try:
            streams = start(kept)
        except ContextLengthError as error:
            shorter = _without_oldest(kept, _excess_share(error))
            if len(shorter) == len(kept):
                raise
            kept = shorter
            continue
        if len(kept) < len(messages):
            for stream in streams:
                stream.adaptations = (*stream.adaptations, SHORTENED)
        return streams


def _excess_share(error: ContextLengthError) -> float:
    """Return the share of a conversation, from 0 to 1, that has to be dropped."""
    facts = error.detail or {}
    window = facts.get("context_length")
    tokens = facts.get("prompt_tokens") or facts.get("counted_tokens")
    if not (isinstance(window, int) and isinstance(tokens, int)):
        return 1 - ROOM
    return max(0.0, 1 - ROOM * window / tokens)


def _without_oldest(messages: list[MessageParam], share: float) -> list[MessageParam]:
    """Return a conversation without its oldest turns: at least one, and as many as hold the given share of its text.

    A turn begins with a user message. The messages before the first turn, and the last turn, are kept.
    """
    starts = [index for index, message in enumerate(messages) if message.role == "user"]
    dropped, target = 0, share * sum(map(_length, messages))
    first = starts[0] if starts else 0
    for begin, end in itertools.pairwise(starts):
        if dropped >= target and begin > first:
            return messages[:first] + messages[begin:]
        dropped += sum(map(_length, messages[begin:end]))
    return messages[:first] + messages[starts[-1] :] if starts else messages


def _length(message: MessageParam) -> int:
    """Return the characters of a message and its calls, at least 1."""
    calls = message.tool_calls or ()
    return len(message.to_message().content) + sum(len(call.function.arguments) for call in calls) + 1


_NOT_SAMPLED = "of what steers sampling, a transcription model takes temperature; leave this out"
_NO_REASONING = "a transcription model does not reason; leave this out"

TRANSCRIPTION_UNSUPPORTED: Mapping[str, Unsupported] = {
    "chunk": Unsupported("a transcription model takes no images; leave this out"),
    "enable_thinking": Unsupported(_NO_REASONING, (False,)),
    "frequency_penalty": Unsupported(_NOT_SAMPLED, (0.0,)),
    "ignore_eos": Unsupported("a transcript ends with the recording; leave this out", (False,)),
    "logit_bias": Unsupported(_NOT_SAMPLED, ({},)),
    "logprobs": Unsupported("a transcription model gives no log probabilities; leave this out", (False,)),
    "min_p": Unsupported(_NOT_SAMPLED, (0.0,)),
    "n": Unsupported("a transcription model gives one answer; leave this out", (1,)),
    "presence_penalty": Unsupported(_NOT_SAMPLED, (0.0,)),
    "repetition_penalty": Unsupported(_NOT_SAMPLED, (1.0,)),
    "reasoning_effort": Unsupported(_NO_REASONING, ("none", "medium")),
    "response_format": Unsupported("a transcription model writes plain text; leave this out", ("text",)),
    "seed": Unsupported(_NOT_SAMPLED),
    "thinking_budget": Unsupported(_NO_REASONING),
    "thinking": Unsupported(_NO_REASONING),
    "thinking_budget_tokens": Unsupported(_NO_REASONING),
    "reasoning": Unsupported(_NO_REASONING),
    "reasoning_budget_tokens": Unsupported(_NO_REASONING),
    "thinking_start_token": Unsupported(_NO_REASONING),
    "thinking_end_token": Unsupported(_NO_REASONING),
    "chat_template_kwargs": Unsupported("a transcription model has no chat template; leave this out", ({},)),
    "tools": Unsupported("a transcription model calls no tools; leave them out", ([],)),
    "top_k": Unsupported(_NOT_SAMPLED, (0, -1)),
    "top_p": Unsupported(_NOT_SAMPLED, (1.0,)),
}
"""Fields of a chat request that transcription-only models do not support."""


class ChatRendererFactory(Protocol):
    """Builds the renderer of a response to a chat request."""

    def __call__(self, context: ResponseContext, options: MessageOptions) -> ResponseRenderer:
        """Return the renderer."""


class TranscriptionChat:
    """Makes generation jobs for chat requests to transcription-only models.

    Args:
        transcribe: Transcribes the recording.
        media: Reads it; its clock measures the timings of the response.
    """

    def __init__(self, transcribe: TranscribeAudio, media: MediaReader) -> None:
        self._transcribe = transcribe
        self._media = media

    def job(
        self, chat: ChatRequest, model: ServedModel, renderer: ChatRendererFactory, max_tokens: int | None
    ) -> GenerationJob:
        """Return the job for a chat request.

        Args:
            chat: The request.
            model: The model of the request.
            renderer: Builds the renderer of the response.
            max_tokens: The operator's limit, for requests without one.

        Raises:
            CapabilityError: The last message has no recording, or the request needs text generation.
            ValidationError: Names every field at fault.
        """
        parsed = _parse(chat, model, max_tokens)
        return GenerationJob(
            model=model,
            model_name=chat.model,
            start=lambda _: (self._start(model, parsed),),
            renderer=functools.partial(renderer, options=MessageOptions()),
            stream=bool(chat.stream),
        )

    def _start(self, model: ServedModel, parsed: "_TranscriptionRequest") -> TextStream:
        audio = self._media.of_request().recording(parsed.audio, parsed.audio_field)
        upload = Upload()
        try:
            upload.receive(io.BytesIO(audio), NAME)
            recording = Recording(upload.path, upload.name)
            events = self._transcribe(model.description, recording, parsed.settings)
            return TranscriptStream(events, self._media.clock, upload.close, parsed.limits)
        except BaseException as error:
            upload.close()
            if isinstance(error, (ValidationError, PayloadTooLargeError)):
                raise located(error, parsed.audio_field) from error
            if isinstance(error, CapabilityError):
                raise located(error, "model", {"prompt": parsed.hint_field}) from error
            raise


@attrs.frozen
class _TranscriptionRequest:
    """The parts of a chat request that a transcription uses."""

    settings: TranscriptionSettings
    limits: TranscriptLimits
    audio: str = attrs.field(repr=False)
    """The recording as sent: a reference, or base64."""
    audio_field: str
    """Its field."""
    hint_field: str
    """The field of the hint."""


def _parse(chat: ChatRequest, model: ServedModel, max_tokens: int | None) -> _TranscriptionRequest:
    content_path = f"messages[{len(chat.messages) - 1}].content"
    content = chat.messages[-1].content
    parts = [
        (f"{content_path}[{index}]", part) for index, part in enumerate(content if isinstance(content, list) else ())
    ]
    recordings = [(path, *part.located) for path, part in parts if isinstance(part, AudioPart)]
    if not recordings:
        raise CapabilityError.in_field(
            content_path,
            f"'{model.id}' only transcribes; the last message has no input_audio",
            hint="Send a recording as a part of the type input_audio, or use /v1/audio/transcriptions.",
        )
    texts = [(f"{path}.text", part.text) for path, part in parts if isinstance(part, TextPart) and part.text.strip()]
    audio_path, audio, field = recordings[0]
    hint_field = texts[0][0] if texts else content_path
    settings = TranscriptionSettings(
        hint=" ".join(text for _, text in texts).strip() or None, temperature=chat.temperature or 0.0
    )
    names = {"prompt": hint_field}
    faults = [FieldError(names.get(name, name), message) for name, message in settings.faults().items()]
    faults += [*unsupported_faults(_settings_of(chat), TRANSCRIPTION_UNSUPPORTED), *_other_content(chat)]
    raise_for(faults, unsupported=CapabilityError)
    generation = chat.generation_settings(max_tokens)
    limits = TranscriptLimits(generation.max_tokens, generation.stop)
    return _TranscriptionRequest(settings, limits, audio, f"{audio_path}.{field}", hint_field)


def _settings_of(chat: ChatRequest) -> Mapping[str, object]:
    """Return the values of the fields that may be unsupported; of the response format, its type."""
    values = {name: getattr(chat, name) for name in TRANSCRIPTION_UNSUPPORTED}
    return {
        **values,
        "tools": chat.offered,
        "response_format": chat.response_format.type if chat.response_format else None,
    }


def _other_content(chat: ChatRequest) -> Iterator[FieldError]:
    """Yield a fault for all content except one message with one recording and text."""
    *earlier, last = chat.messages
    if earlier:
        reason = "a transcription model takes one message, without what was said before; send the last one alone"
        yield FieldError("messages[0]", reason, unsupported=True)
    has_recording = False
    for index, part in enumerate(last.content if isinstance(last.content, list) else ()):
        path = f"messages[{len(earlier)}].content[{index}]"
        if isinstance(part, ImagePart):
            yield FieldError(path, "a transcription model takes no images; leave it out", unsupported=True)
        elif isinstance(part, FilePart):
            yield FieldError(path, "a transcription model takes no files of text; leave it out", unsupported=True)
        elif isinstance(part, VideoPart):
            yield FieldError(path, "a transcription model takes no clips; send the sound alone", unsupported=True)
        elif isinstance(part, AudioPart):
            if has_recording:
                yield FieldError(
                    path, "only one recording at a time; send each in a request of its own", unsupported=True
                )
            has_recording = True


class ChatJobs:
    """Makes generation jobs for chat requests.

    Args:
        server: Services and settings.
    """

    def __init__(self, server: ServerContext) -> None:
        self._media = server.media
        self._services = server.services
        self._settings_for = server.settings_for
        self._transcription = TranscriptionChat(server.services.transcribe, server.media)

    def job(
        self,
        chat: ChatRequest,
        renderer: ChatRendererFactory,
        adjust: Callable[[GenerationOptions], GenerationOptions] = lambda options: options,
        names: FieldNames = SAME_NAMES,
        *,
        shortens: bool = False,
    ) -> GenerationJob:
        """Return the job for a chat request.

        Args:
            chat: The request. If it was translated (``names`` is given), combinations of its fields are checked here.
            renderer: Builds the renderer of the response.
            adjust: Changes the generation options, for settings that a chat request cannot express.
            names: Field names of the API that the request was translated from, for errors.
            shortens: Whether to drop the oldest turns if the context window is too small.

        Raises:
            MlxkError: The request is refused; the error names the API's field. The job's ``start`` raises the same.
        """

        def build() -> GenerationJob:
            if names is not SAME_NAMES:
                raise_for(chat.faults())
            return self._job(chat, renderer, adjust, shortens=shortens)

        job = names.naming(build)
        return attrs.evolve(job, start=lambda client: names.naming(lambda: job.start(client)))

    def _job(
        self,
        chat: ChatRequest,
        renderer: ChatRendererFactory,
        adjust: Callable[[GenerationOptions], GenerationOptions],
        *,
        shortens: bool,
    ) -> GenerationJob:
        model = self._services.catalogue.find(chat.model, _require_chat_model)
        settings = self._settings_for(model)
        if model.is_transcription_only:
            return self._transcription.job(chat, model, renderer, settings.max_tokens)
        chat.require_abilities(model, settings)
        options = adjust(chat.generation_options(model, settings, chat.forced_call))
        message_options = MessageOptions(
            one_call=chat.parallel_tool_calls is False,
            stops=bool(options.settings.stop),
            json_text=options.settings.grammar is not None,
            has_images=any(message.first_image is not None for message in chat.messages),
        )

        def start(client: Client) -> Sequence[TextStream]:
            media = self._media.of_request()

            def start_with(messages: Sequence[MessageParam]) -> Sequence[TextStream]:
                prompt = attrs.evolve(chat, messages=list(messages)).incoming(media)
                return self._services.generate(model.details, [prompt], client.add_to(options))

            return start_shortened(chat.messages, start_with) if shortens else start_with(chat.messages)

        return GenerationJob(
            model=model,
            model_name=chat.model,
            start=start,
            renderer=functools.partial(renderer, options=message_options),
            stream=bool(chat.stream),
            alternatives=options.choices,
        )


def _require_chat_model(description: ModelDescription) -> None:
    """Refuse a model that neither generates text nor transcribes speech.

    Raises:
        UnhealthyModelError, IncompatibleModelError: It cannot be loaded.
        CapabilityError: It does neither.
    """
    if description.operation is Capability.AUDIO:
        require_speech_model(description)
    else:
        require_text_model(description)
