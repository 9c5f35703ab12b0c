"""Conversations: messages with roles, media and tool calls, and the limits of tool definitions.

The text generator renders a conversation into a prompt, with the model's chat template.
"""

import enum
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from mlxk.domain.generation.media import DecodedAudio, DecodedImage, DecodedVideo
from mlxk.domain.text import require_valid_unicode

MessagePart = str | DecodedImage | DecodedAudio | DecodedVideo
"""A part of a message's content."""


class Role(enum.Enum):
    """The author of a message."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


@attrs.frozen
class ToolCall:
    """A function call by the model."""

    name: str
    arguments: str
    """A JSON object, as text."""
    id: str = ""


@attrs.frozen
class Message:
    """One message of a conversation."""

    role: Role
    content: str
    """Its text; with media, the text parts, one a line."""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    """Id of the call whose result this message of a tool is."""
    parts: tuple[MessagePart, ...] = ()
    """Text and media in order; empty for a message of text alone."""
    reasoning: str = ""
    """The assistant's reasoning before its content; the chat template decides in which turns it is rendered."""

    @classmethod
    def of_parts(cls, *parts: MessagePart) -> "Message":
        """Build a user message of text and media."""
        return cls(Role.USER, "\n".join(part for part in parts if isinstance(part, str)), parts=parts)

    @property
    def images(self) -> tuple[DecodedImage, ...]:
        """Its images, in order."""
        return tuple(part for part in self.parts if isinstance(part, DecodedImage))

    @property
    def audio(self) -> tuple[DecodedAudio, ...]:
        """Its recordings, in order."""
        return tuple(part for part in self.parts if isinstance(part, DecodedAudio))

    @property
    def videos(self) -> tuple[DecodedVideo, ...]:
        """Its clips, in order."""
        return tuple(part for part in self.parts if isinstance(part, DecodedVideo))

    def with_frames_as_images(self) -> "Message":
        """Return the message with the frames of each clip as images, each after a text with its time."""
        if not self.videos:
            return self
        parts: list[MessagePart] = []
        for part in self.parts:
            if isinstance(part, DecodedVideo):
                for frame in part.frames:
                    parts += [f"Frame at {frame.seconds:.1f} s:", frame.image]
            else:
                parts.append(part)
        return attrs.evolve(self, parts=tuple(parts))


Turn = tuple[Message, ...]
"""A message of the user, and all messages up to the next message of the user."""


def turns(messages: Sequence[Message]) -> list[Turn]:
    """Return the turns of a conversation; messages before the first one of the user belong to none."""
    starts = [index for index, message in enumerate(messages) if message.role is Role.USER]
    return [tuple(messages[start:end]) for start, end in itertools.pairwise([*starts, len(messages)])]


@attrs.frozen
class Conversation:
    """Messages, oldest first, and the tools the model may call."""

    messages: tuple[Message, ...]
    tools: tuple[str, ...] = ()
    """Function definitions in OpenAI's form, each a JSON object as text."""

    @classmethod
    def of(cls, prompt: str, system: str | None = None, tools: tuple[str, ...] = ()) -> "Conversation":
        """Build a conversation of one user message, with an optional system prompt before it.

        Raises:
            ValidationError: A text is not valid Unicode; see ``require_valid_unicode``.
        """
        require_valid_unicode(prompt, "prompt")
        require_valid_unicode(system or "", "system")
        opening = (Message(Role.SYSTEM, system),) if system else ()
        return cls((*opening, Message(Role.USER, prompt)), tools)

    @property
    def images(self) -> tuple[DecodedImage, ...]:
        """The images of all messages, in order."""
        return tuple(image for message in self.messages for image in message.images)

    @property
    def audio(self) -> tuple[DecodedAudio, ...]:
        """The recordings of all messages, in order."""
        return tuple(audio for message in self.messages for audio in message.audio)

    @property
    def videos(self) -> tuple[DecodedVideo, ...]:
        """The clips of all messages, in order."""
        return tuple(video for message in self.messages for video in message.videos)

    def with_frames_as_images(self) -> "Conversation":
        """Return the conversation with the frames of its clips as images, for models without video tokens."""
        if not self.videos:
            return self
        return attrs.evolve(self, messages=tuple(message.with_frames_as_images() for message in self.messages))


@attrs.frozen
class Adaptation:
    """A deviation from the request, such as a changed message or an option without effect, to report to the client."""

    code: str
    """Stable name for programs: words joined by hyphens."""
    sentence: str
    """Explanation for people."""


RESERVED_VARIABLES = ("messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "tokenize")
"""Chat template variables that requests may not set: rendering sets them."""

MAX_TOOLS = 128
"""Most tools of a request; OpenAI's limit."""

MAX_TOOL_BYTES = 64 * 1024
"""Largest size of one tool definition, as JSON."""

MAX_NAME = 64
"""Most characters of a function's name."""

DEFINITIONS = ("$defs", "definitions")
"""JSON Schema keywords that hold definitions for references."""


def misplaced_definitions(parameters: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Return the definition keywords in a function's parameters whose value is not an object."""
    schema = parameters or {}
    return tuple(keyword for keyword in DEFINITIONS if not isinstance(schema.get(keyword), dict | None))
