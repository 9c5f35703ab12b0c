"""What an entrypoint asks of a model: a conversation with encoded media, and how to generate."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs

from mlxk.domain.generation.conversation import Conversation, Message, MessagePart, Role
from mlxk.domain.generation.media import DEFAULT_CHUNK, DecodedAudio, EncodedImage, check_together
from mlxk.domain.generation.request import TokenIds, nobody_left
from mlxk.domain.generation.settings import Effort, EngineOptions, GenerationSettings, Profile
from mlxk.domain.generation.video import EncodedVideo
from mlxk.domain.models.model import ModelDetails

ImageSource = Callable[[], EncodedImage]
"""Reads an image when it is needed."""


@attrs.frozen
class Recording:
    """An audio file."""

    path: str
    """Its path on this machine."""
    name: str
    """Its name in messages."""


IncomingPart = MessagePart | EncodedImage | ImageSource | Recording | EncodedVideo


@attrs.frozen
class IncomingMessage:
    """One message with its media."""

    message: Message
    """Without the media in ``parts``."""
    parts: tuple[IncomingPart, ...] = ()
    """Text and media in order; empty for text alone."""

    @property
    def images(self) -> tuple[EncodedImage | ImageSource, ...]:
        """Its encoded images, in order."""
        return tuple(part for part in self.parts if isinstance(part, EncodedImage) or callable(part))

    @property
    def videos(self) -> tuple[EncodedVideo, ...]:
        """Its encoded clips, in order."""
        return tuple(part for part in self.parts if isinstance(part, EncodedVideo))

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
    """The request field or option that holds the images, for messages."""

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
            media: What to add to its last message.
            images_field: See the attribute.
        """
        *earlier, last = conversation.messages
        parts = (*media, *(last.parts or (last.content,))) if media else ()
        messages = (*map(IncomingMessage, earlier), IncomingMessage(last, parts))
        return cls(messages, conversation.tools, images_field)


Prompt = str | TokenIds | Conversation | IncomingConversation
"""Text or tokens, given to the model unchanged; or a conversation, rendered with its chat template."""


@attrs.frozen
class GenerationOptions:
    """How to generate."""

    settings: GenerationSettings = attrs.field(factory=GenerationSettings)
    thinking: bool | None = None
    """Whether the model reasons first; None leaves it to the chat template."""
    effort: Effort | None = None
    """How much the model reasons; None leaves it to the chat template."""
    template_options: Mapping[str, Any] = attrs.field(factory=dict)
    """Further variables for the chat template, by its own names; JSON values."""
    thinking_tags: tuple[str, str] | None = None
    """The texts that begin and end the reasoning; None as they are known of the model."""
    is_abandoned: Callable[[], bool] = attrs.field(default=nobody_left, eq=False)
    """Whether the client has gone, before they have streams that can be cancelled."""
    engine_options: EngineOptions = attrs.field(factory=EngineOptions)
    draft_reference: str | None = None
    """A smaller model for speculative decoding, as the user typed it."""
    draft_kind: str | None = None
    """What it must be: one of ``DRAFT_KINDS``; None takes it as what its files say."""
    strict_memory: bool = False
    """Whether a text model beyond the memory budget is refused; by default it runs with a warning."""
    strict_capabilities: bool = False
    """Whether tools are refused for a model that is not made for them; by default a text describes them to it."""
    choices: int = 1
    """Completions of each prompt."""
    chunk: int = DEFAULT_CHUNK
    """Number of images in one chunk."""
    image_tables: bool = True
    """Whether the table of its images precedes each completion."""
    image_facts: bool = True
    """Whether the model and the tables get the EXIF facts of images, where the user of this machine allows them."""
    parse_special: bool = False
    """Whether control tokens that messages spell out are control tokens; see ``GenerationRequest``."""
    fills_system: bool = True
    """Whether a conversation without a system prompt gets that of the model's profile."""
    context_limit: int | None = None
    keep_alive_seconds: float | None = None
    alternatives_limit: int | None = None
    tenant: str = ""
    """These as in ``GenerationRequest``."""

    def by_profile(
        self, profile: Profile, details: ModelDetails, prompts: Sequence[Prompt]
    ) -> "tuple[Sequence[Prompt], GenerationOptions]":
        """Return prompts and options with what these leave out from a profile.

        Args:
            profile: What the user has said about the model's name.
            details: The model.
            prompts: A conversation without a system prompt gets that of the profile; text and tokens stay.

        Raises:
            ValidationError: The options and those of the profile exclude each other.
        """
        asked = Profile(**{name: getattr(self, name) for name in _OF_PROFILES})
        filled = asked.over(profile.leaving_reasoning_to(asked, can_reason=details.may_reason))
        filled.validate()
        if profile == Profile():
            return prompts, self
        options = attrs.evolve(self, **{name: getattr(filled, name) for name in _OF_PROFILES})
        if profile.pins:
            options = attrs.evolve(options, keep_alive_seconds=profile.keep_alive_seconds)
        if self.draft_reference is None and options.draft_reference is not None:
            engine_options = attrs.evolve(options.engine_options, draft_required=False)
            options = attrs.evolve(options, engine_options=engine_options)
        system = profile.system if self.fills_system else None
        return [_with_system(each, system) for each in prompts], options


_OF_PROFILES = (
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
"""The fields that options share with profiles."""


def _with_system(prompt: Prompt, system: str | None) -> Prompt:
    """Return a conversation that begins with a system prompt, unless it has one; text and tokens as they are."""
    message = Message(Role.SYSTEM, system or "")
    if system is None or not isinstance(prompt, (Conversation, IncomingConversation)):
        return prompt
    if isinstance(prompt, Conversation):
        has_one = any(each.role is Role.SYSTEM for each in prompt.messages)
        return prompt if has_one else attrs.evolve(prompt, messages=(message, *prompt.messages))
    has_one = any(each.message.role is Role.SYSTEM for each in prompt.messages)
    return prompt if has_one else attrs.evolve(prompt, messages=(IncomingMessage(message), *prompt.messages))


def encoded_images(incoming: IncomingMessage) -> list[EncodedImage]:
    """Return the images of a message that were read."""
    return [part for part in incoming.parts if isinstance(part, EncodedImage)]


def messages_with_images(prompt: IncomingConversation) -> list[IncomingMessage]:
    """Return the messages of a conversation with every image read.

    Raises:
        ValidationError: They are too large together, or one cannot be read.
    """
    messages = [
        attrs.evolve(each, parts=tuple(part() if callable(part) else part for part in each.parts))
        for each in prompt.messages
    ]
    check_together([len(image.data) for each in messages for image in encoded_images(each)], prompt.images_field)
    return messages
