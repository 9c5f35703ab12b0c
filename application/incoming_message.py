"""Conversations as an entrypoint receives them: text with encoded images and audio, before anything is decoded."""

from collections.abc import Callable

import attrs

from mlxk.domain.generation.conversation import Conversation, Message, MessagePart
from mlxk.domain.generation.media import DecodedAudio, EncodedImage

ImageSource = Callable[[], EncodedImage]
"""Reads an image when it is needed."""


@attrs.frozen
class Recording:
    """An audio file."""

    path: str
    """Its path on this machine."""
    name: str
    """Its name in messages."""


IncomingPart = MessagePart | EncodedImage | ImageSource | Recording


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
        cls, conversation: Conversation, *media: EncodedImage | ImageSource | Recording, images_field: str = "messages"
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
