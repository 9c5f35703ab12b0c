"""The input of text generation: prompts, conversations with encoded media, options, and the decoding of media."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs

from mlxk.application.ports.media import AudioDecoder, ImageReader, VideoDecoder
from mlxk.domain.generation.conversation import Conversation, Message, MessagePart, Role
from mlxk.domain.generation.image_table import Chunk, ImageNumbers, ShownImage, ShownVideo, without_tables
from mlxk.domain.generation.media import (
    DEFAULT_AUDIO_PROMPT,
    DEFAULT_CHUNK,
    DecodedAudio,
    EncodedImage,
    check_audio_length,
    check_together,
)
from mlxk.domain.generation.media_facts import ReadVideo, VideoFacts
from mlxk.domain.generation.profile import Profile
from mlxk.domain.generation.request import TokenIds, nobody_left
from mlxk.domain.generation.settings import Effort, EngineOptions, GenerationSettings
from mlxk.domain.generation.video import Clip, EncodedVideo
from mlxk.domain.models.model import ModelDetails

ImageSource = Callable[[], EncodedImage]
"""Reads an image on demand; raises ``ValidationError`` when it cannot be read."""


@attrs.frozen
class Recording:
    """An audio file."""

    path: str
    """Its path on this machine."""
    name: str
    """Its name in messages to the user."""


IncomingPart = MessagePart | EncodedImage | ImageSource | Recording | Clip


@attrs.frozen
class IncomingMessage:
    """One message with its media."""

    message: Message
    """Without the media in ``parts``."""
    parts: tuple[IncomingPart, ...] = ()
    """Text and media in order; empty for a message of text only."""

    @property
    def images(self) -> tuple[EncodedImage | ImageSource, ...]:
        """Its encoded images, in order."""
        return tuple(part for part in self.parts if isinstance(part, EncodedImage) or callable(part))

    @property
    def videos(self) -> tuple[Clip, ...]:
        """Its encoded clips, in order."""
        return tuple(part for part in self.parts if isinstance(part, Clip))

    @property
    def has_audio(self) -> bool:
        """Whether it has audio, decoded or not."""
        return bool(self.message.audio) or any(isinstance(part, (DecodedAudio, Recording)) for part in self.parts)


@attrs.frozen
class IncomingConversation:
    """Messages, oldest first, and the tools the model may call."""

    messages: tuple[IncomingMessage, ...]
    tools: tuple[str, ...] = ()
    """Function definitions in OpenAI's form, each a JSON object as text."""
    images_field: str = "messages"
    """The request field or option that holds the images, for errors."""

    @classmethod
    def of(
        cls,
        conversation: Conversation,
        *media: EncodedImage | ImageSource | Recording | EncodedVideo,
        images_field: str = "messages",
    ) -> "IncomingConversation":
        """Build a conversation whose last message has media before its text.

        Args:
            conversation: The text, and media that is decoded already.
            media: The media to put before the content of the last message.
            images_field: See the attribute.
        """
        *earlier, last = conversation.messages
        parts = (*media, *(last.parts or (last.content,))) if media else ()
        messages = (*map(IncomingMessage, earlier), IncomingMessage(last, parts))
        return cls(messages, conversation.tools, images_field)


Prompt = str | TokenIds | Conversation | IncomingConversation
"""Text or tokens, passed to the model unchanged; or a conversation, rendered with its chat template."""


@attrs.frozen
class GenerationOptions:
    """Options of a text generation, all independent of the prompt."""

    settings: GenerationSettings = attrs.field(factory=GenerationSettings)
    thinking: bool | None = None
    """Whether the model reasons first; None leaves it to the chat template."""
    effort: Effort | None = None
    """How much the model reasons; None leaves it to the chat template."""
    template_options: Mapping[str, Any] = attrs.field(factory=dict)
    """Additional variables of the chat template, by the template's names; JSON values."""
    thinking_tags: tuple[str, str] | None = None
    """The texts that begin and end the reasoning; None means those of the model's format."""
    is_abandoned: Callable[[], bool] = attrs.field(default=nobody_left, eq=False)
    """Returns whether the client has disconnected; polled until it has streams that can be cancelled."""
    engine_options: EngineOptions = attrs.field(factory=EngineOptions)
    draft_reference: str | None = None
    """The draft model for speculative decoding, as the user typed it."""
    draft_kind: str | None = None
    """The required kind of the draft model, one of ``DRAFT_KINDS``; None accepts any."""
    strict_memory: bool = False
    """Whether a text model beyond the memory budget is refused; by default it runs with a warning."""
    strict_capabilities: bool = False
    """Whether tools are refused for a model without tool calls; by default a text in the prompt describes them."""
    choices: int = 1
    """Number of completions of each prompt."""
    chunk: int = DEFAULT_CHUNK
    """Number of images in one chunk."""
    image_tables: bool = True
    """Whether the table of its images precedes each completion."""
    image_facts: bool = True
    """Whether the prompt and the tables include EXIF facts of images; ``MediaReaders.exif`` must allow them too."""
    parse_special: bool = False
    """Whether the spelling of a control token in a message is that token; see ``GenerationRequest``."""
    fills_system: bool = True
    """Whether a conversation without a system prompt gets that of the model's profile."""
    context_limit: int | None = None
    keep_alive_seconds: float | None = None
    alternatives_limit: int | None = None
    tenant: str = ""
    """These four: see ``GenerationRequest``."""

    def with_profile(
        self, profile: Profile, details: ModelDetails, prompts: Sequence[Prompt]
    ) -> "tuple[Sequence[Prompt], GenerationOptions]":
        """Return prompts and options, completed with the defaults of a profile.

        Args:
            profile: The user's defaults for the model.
            details: The model.
            prompts: A conversation without a system prompt gets that of the profile; text and tokens stay unchanged.

        Raises:
            ValidationError: An option is out of range, or excludes one of the profile.
        """
        requested = Profile(**{name: getattr(self, name) for name in _PROFILE_FIELDS})
        filled = requested.over(profile.leaving_reasoning_to(requested, can_reason=details.may_reason))
        filled.validate()
        if profile == Profile():
            return prompts, self
        options = attrs.evolve(self, **{name: getattr(filled, name) for name in _PROFILE_FIELDS})
        if profile.pins:
            options = attrs.evolve(options, keep_alive_seconds=profile.keep_alive_seconds)
        if self.draft_reference is None and options.draft_reference is not None:
            engine_options = attrs.evolve(options.engine_options, draft_required=False)
            options = attrs.evolve(options, engine_options=engine_options)
        system = profile.system if self.fills_system else None
        return [_with_system(each, system) for each in prompts], options


_PROFILE_FIELDS = (
    "settings",
    "thinking",
    "effort",
    "thinking_tags",
    "template_options",
    "engine_options",
    "draft_reference",
    "draft_kind",
    "context_limit",
    "keep_alive_seconds",
    "alternatives_limit",
)
"""The fields that ``GenerationOptions`` and ``Profile`` share."""


def _with_system(prompt: Prompt, system: str | None) -> Prompt:
    """Prepend a system prompt to a conversation that has none; text and tokens stay unchanged."""
    message = Message(Role.SYSTEM, system or "")
    if system is None or not isinstance(prompt, (Conversation, IncomingConversation)):
        return prompt
    if isinstance(prompt, Conversation):
        has_system = any(each.role is Role.SYSTEM for each in prompt.messages)
        return prompt if has_system else attrs.evolve(prompt, messages=(message, *prompt.messages))
    has_system = any(each.message.role is Role.SYSTEM for each in prompt.messages)
    return prompt if has_system else attrs.evolve(prompt, messages=(IncomingMessage(message), *prompt.messages))


def encoded_images(incoming: IncomingMessage) -> list[EncodedImage]:
    """Return the images of a message, without those that an ``ImageSource`` has not read yet."""
    return [part for part in incoming.parts if isinstance(part, EncodedImage)]


def messages_with_images(prompt: IncomingConversation) -> list[IncomingMessage]:
    """Return the messages of a conversation, every ``ImageSource`` replaced by its image.

    Raises:
        ValidationError: An image cannot be read, or all images together are too large.
    """
    messages = [
        attrs.evolve(each, parts=tuple(part() if callable(part) else part for part in each.parts))
        for each in prompt.messages
    ]
    check_together([len(image.data) for each in messages for image in encoded_images(each)], prompt.images_field)
    return messages


@attrs.frozen
class MediaReaders:
    """Decodes the media of messages. Methods raise the errors of the decoders' ports."""

    images: ImageReader
    audio: AudioDecoder
    videos: VideoDecoder
    exif: bool
    """Whether recording metadata of images and clips may be given to the user and the model."""

    def with_images(
        self, incoming: IncomingMessage, numbers: ImageNumbers, facts: bool
    ) -> tuple[Message, Chunk | None]:
        """Return a message with decoded media and without tables, and the chunk of its images and clips.

        Args:
            incoming: The message.
            numbers: Numbers the images and clips of the conversation.
            facts: Whether to read recording metadata.
        """
        message = incoming.message
        if message.role is Role.ASSISTANT:
            numbers.read(message.content)
            return attrs.evolve(message, content=without_tables(message.content)), None
        images = encoded_images(incoming)
        if not images and not incoming.videos:
            return self.without_images(incoming), None
        videos = tuple(self.numbered_video(each, numbers.of_video(), facts=facts) for each in incoming.videos)
        chunk = Chunk(self.numbered_images(images, numbers, facts), videos=videos)
        frames = iter(each.read.video for each in videos)
        parts = [next(frames) if isinstance(part, Clip) else self.decode(part) for part in incoming.parts]
        return chunk.message(parts), chunk

    def numbered_video(self, video: Clip, number: int, *, facts: bool) -> ShownVideo:
        """Return a clip with its number and frames, and with its recording metadata if ``facts``."""
        read = self.read_video(video)
        if not (self.exif and facts):
            read = attrs.evolve(read, facts=attrs.evolve(read.facts, recorded=None))
        return ShownVideo(number, video, read)

    def read_video(self, video: Clip) -> ReadVideo:
        """Return the sampled frames and the facts of a clip, which is a video file or a sequence of images."""
        if isinstance(video, EncodedVideo):
            return self.videos.decode(video)
        decoded = video.decoded(self.images.decode)
        first, seconds = decoded.frames[0].image, decoded.total_frames / decoded.rate
        return ReadVideo(decoded, VideoFacts(first.width, first.height, seconds, video.images[0].format.value))

    def without_images(self, incoming: IncomingMessage) -> Message:
        """Return a message with decoded audio, and a note in place of its images and clips."""
        message = incoming.message
        counts = {"image": len(incoming.images), "video": len(incoming.videos)}
        notes = tuple(f"[{count} {kind}(s) were attached]" for kind, count in counts.items() if count)
        parts: tuple[MessagePart, ...] = ()
        if incoming.has_audio and incoming.parts:
            parts = tuple(self.decode(part) for part in incoming.parts if not is_visual(part))
            parts = (*parts, *(() if message.content else (DEFAULT_AUDIO_PROMPT,)), *notes)
        if not parts and not notes:
            return message
        return attrs.evolve(message, content="\n\n".join(filter(None, (message.content, *notes))), parts=parts)

    def decode(self, part: IncomingPart) -> MessagePart:
        """Return a part of a message, decoded if it is a recording or an image that was read; not for clips."""
        if isinstance(part, Recording):
            audio = self.audio.decode(part.path, part.name)
            check_audio_length(audio, part.name)
            return audio
        assert not callable(part)
        assert not isinstance(part, Clip)
        return self.images.decode(part) if isinstance(part, EncodedImage) else part

    def numbered_images(
        self, images: Sequence[EncodedImage], numbers: ImageNumbers, facts: bool
    ) -> tuple[ShownImage, ...]:
        """Return images with their numbers, and with their recording metadata if ``facts``."""
        return tuple(self.numbered_image(image, numbers.of(image), facts=facts) for image in images)

    def numbered_image(self, image: EncodedImage, number: int, *, facts: bool) -> ShownImage:
        """Return an image with its number, and with its recording metadata if ``facts``."""
        return ShownImage(number, image, self.images.read_exif(image) if self.exif and facts else None)


def is_visual(part: IncomingPart) -> bool:
    """Whether a part is an encoded image or clip."""
    return isinstance(part, EncodedImage | Clip) or callable(part)
