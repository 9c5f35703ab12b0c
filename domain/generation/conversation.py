"""Conversations: messages with their roles, media and tool calls, and the limits of tool definitions.

Rendering them into a prompt is the generator's work, with the model's own chat template.
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
    """Its text."""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    """The call that a tool's result belongs to."""
    parts: tuple[MessagePart, ...] = ()
    """Text and media in order; empty for text alone. ``content`` then holds the text parts."""
    reasoning: str = ""
    """What the assistant thought before its content; chat templates choose of which turns they show it."""

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
        """Return the message with each clip as its frames, which are images, each after a text with its time."""
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
"""A message of the user, and everything up to the next one."""


def turns(messages: Sequence[Message]) -> list[Turn]:
    """Return the turns of a conversation."""
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
            ValidationError: One of them is not valid Unicode; see ``require_valid_unicode``.
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
        """Return the conversation with the frames of its clips as images, for models without tokens for video."""
        if not self.videos:
            return self
        return attrs.evolve(self, messages=tuple(message.with_frames_as_images() for message in self.messages))


@attrs.frozen
class Adaptation:
    """A change to a conversation, or an option without effect, that the model's chat template made necessary."""

    code: str
    """Stable, for programs: words joined by hyphens."""
    sentence: str
    """For people."""


RESERVED_VARIABLES = ("messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "tokenize")
"""Variables of chat templates that the conversation and the way it is rendered decide on."""

MAX_TOOLS = 128
"""Most tools of a request; OpenAI's limit."""

MAX_TOOL_BYTES = 64 * 1024
"""Largest size of one definition, as JSON."""

MAX_NAME = 64
"""Most characters of a function's name."""

DEFINITIONS = ("$defs", "definitions")
"""JSON Schema keywords that hold definitions for references."""


def misplaced_definitions(parameters: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Return the definition keywords of a function's parameters whose value is not an object."""
    given = parameters or {}
    return tuple(keyword for keyword in DEFINITIONS if not isinstance(given.get(keyword), dict | None))
