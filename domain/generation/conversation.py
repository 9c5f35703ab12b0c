"""Conversations: messages with their roles, images, audio and tool calls, and the limits of tool definitions.

Rendering them into a prompt is the generator's work, with the model's own chat template.
"""

import enum
from collections.abc import Mapping
from typing import Any

import attrs

from mlxk.domain.errors import ValidationError
from mlxk.domain.generation.media import DecodedAudio, DecodedImage

MessagePart = str | DecodedImage | DecodedAudio
"""A piece of a turn."""


class Role(enum.Enum):
    """Who speaks."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


@attrs.frozen
class ToolCall:
    """A call the model made: a function and its arguments."""

    name: str
    arguments: str
    """A JSON object, as text."""
    id: str = ""


@attrs.frozen
class Message:
    """One turn."""

    role: Role
    content: str
    """What it says."""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    """For a tool's result: which call it answers."""
    parts: tuple[MessagePart, ...] = ()
    """What it says, shows and plays, in order, when it is more than text; the content is then the text of it."""

    @classmethod
    def showing(cls, *parts: MessagePart) -> "Message":
        """Build a user's turn of text, images and sound."""
        return cls(Role.USER, "\n".join(part for part in parts if isinstance(part, str)), parts=parts)

    @property
    def images(self) -> tuple[DecodedImage, ...]:
        """What it shows, in order."""
        return tuple(part for part in self.parts if isinstance(part, DecodedImage))

    @property
    def sounds(self) -> tuple[DecodedAudio, ...]:
        """What it plays, in order."""
        return tuple(part for part in self.parts if isinstance(part, DecodedAudio))


@attrs.frozen
class Conversation:
    """The turns so far, oldest first, and the tools on offer."""

    messages: tuple[Message, ...]
    tools: tuple[str, ...] = ()
    """Function definitions in OpenAI's form, each a JSON object as text."""

    @classmethod
    def of(cls, prompt: str, system: str | None = None, tools: tuple[str, ...] = ()) -> "Conversation":
        """Build a conversation of one user turn, with an optional system prompt before it.

        Raises:
            ValidationError: One of them is no text; see ``require_valid_unicode``.
        """
        require_valid_unicode(prompt, "prompt")
        require_valid_unicode(system or "", "system")
        opening = (Message(Role.SYSTEM, system),) if system else ()
        return cls((*opening, Message(Role.USER, prompt)), tools)

    @property
    def images(self) -> tuple[DecodedImage, ...]:
        """Everything that was shown, in order."""
        return tuple(image for message in self.messages for image in message.images)

    @property
    def sounds(self) -> tuple[DecodedAudio, ...]:
        """Everything that was played, in order."""
        return tuple(sound for message in self.messages for sound in message.sounds)

    def playing(self, sound: DecodedAudio) -> "Conversation":
        """Return this conversation with a recording in its last turn, before what that says."""
        *earlier, last = self.messages
        parts = (sound, *(last.parts or (last.content,)))
        return attrs.evolve(self, messages=(*earlier, attrs.evolve(last, parts=parts)))

    def with_turn(self, role: Role, content: str) -> "Conversation":
        """Return this conversation with one more turn."""
        return attrs.evolve(self, messages=(*self.messages, Message(role, content)))


def require_valid_unicode(text: str, field: str) -> None:
    """Refuse a text that holds half a surrogate pair: bytes that are not UTF-8 come so from a command line.

    Args:
        text: The text.
        field: What the user knows it by.

    Raises:
        ValidationError: It does.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        fault = "is not UTF-8 text (or holds half a surrogate pair)"
        raise ValidationError.in_field(field, fault, hint="Convert it to UTF-8, for example with iconv.") from None


MAX_TOOLS = 128
"""Tools on offer, as OpenAI has it."""

MAX_TOOL_BYTES = 64 * 1024
"""One definition, as JSON."""

MAX_NAME = 64
"""Characters of a function's name."""

DEFINITIONS = ("$defs", "definitions")
"""Where schemas keep what they refer to."""


def misplaced_definitions(parameters: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Return the keywords of a function's parameters under which definitions belong and something else stands."""
    given = parameters or {}
    return tuple(keyword for keyword in DEFINITIONS if not isinstance(given.get(keyword), dict | None))
