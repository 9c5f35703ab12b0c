"""The messages of a chat request, of all roles and content parts, and the conversation they make."""

from collections.abc import Callable, Iterator
from typing import Annotated, Any

import attrs

from mlxk.application.incoming_message import IncomingMessage
from mlxk.domain.generation.conversation import Conversation, Message, Role, ToolCall
from mlxk.domain.generation.media import DecodedAudio, EncodedImage
from mlxk.entrypoints.http.requests.converter import OneOf, Range, StrictConverter
from mlxk.entrypoints.http.requests.data_urls import read_image
from mlxk.entrypoints.http.requests.field_errors import FieldError
from mlxk.entrypoints.http.requests.support import MESSAGE_UNSUPPORTED, unsupported_faults

ROLES = {
    "system": Role.SYSTEM,
    "developer": Role.SYSTEM,
    "user": Role.USER,
    "assistant": Role.ASSISTANT,
    "tool": Role.TOOL,
}
"""Roles as the wire names them; a developer speaks as the system did before that role existed."""

ReadAudio = Callable[[str, str], DecodedAudio]
"""Decodes the sound in a field: its value and its path."""

PART_SEPARATOR = "\n"
"""Between the text parts of one message."""


@attrs.frozen(kw_only=True)
class TextPart:
    """A part of a message: text."""

    text: str
    type: str = "text"


@attrs.frozen(kw_only=True)
class RefusalPart:
    """A part of an assistant's message: that it declined."""

    refusal: str
    type: str = "refusal"


@attrs.frozen(kw_only=True)
class ImageUrl:
    """Where an image is."""

    url: str
    detail: Annotated[str, OneOf(("auto", "low", "high", "original"))] | None = None


@attrs.frozen(kw_only=True)
class ImagePart:
    """A part of a message: an image."""

    image_url: ImageUrl
    type: str = "image_url"


@attrs.frozen(kw_only=True)
class InputAudio:
    """A sound, encoded in base64."""

    data: str
    format: Annotated[str, OneOf(("wav", "mp3"))]


@attrs.frozen(kw_only=True)
class AudioPart:
    """A part of a message: sound."""

    input_audio: InputAudio
    type: str = "input_audio"


Part = TextPart | RefusalPart | ImagePart | AudioPart
Content = str | list[Part] | None

PART_KINDS = {"text": TextPart, "refusal": RefusalPart, "image_url": ImagePart, "input_audio": AudioPart}


@attrs.frozen(kw_only=True)
class FunctionCall:
    """The function a call names, and its arguments as JSON text."""

    name: Annotated[str, Range(1, 256)]
    arguments: str


@attrs.frozen(kw_only=True)
class ToolCallParam:
    """A call the assistant made earlier."""

    id: str
    function: FunctionCall
    type: Annotated[str, OneOf(("function",))] = "function"


@attrs.frozen(kw_only=True)
class MessageParam:
    """One message."""

    role: Annotated[str, OneOf(tuple(ROLES))]
    content: Content = None
    name: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCallParam] | None = None
    tool_call_id: str | None = None
    audio: Any = None
    """Not supported, like the next one; they are read to be refused."""
    function_call: Any = None

    def faults(self, path: str) -> list[FieldError]:
        """Return what is wrong with combinations of fields."""
        refused = unsupported_faults(attrs.asdict(self, recurse=False), MESSAGE_UNSUPPORTED)
        faults = [attrs.evolve(fault, path=f"{path}.{fault.path}") for fault in refused]
        if self.content is None and not (self.role == "assistant" and (self.tool_calls or self.refusal or refused)):
            faults.append(FieldError(f"{path}.content", "is required"))
        for name in ("tool_calls", "refusal"):
            if getattr(self, name) and self.role != "assistant":
                faults.append(FieldError(f"{path}.{name}", "is for the role assistant only"))
        if self.role == "tool" and self.tool_call_id is None:
            faults.append(FieldError(f"{path}.tool_call_id", "is required for the role tool"))
        if self.role != "tool" and self.tool_call_id:
            faults.append(FieldError(f"{path}.tool_call_id", "is for the role tool only"))
        for index, part in enumerate(self.content if isinstance(self.content, list) else ()):
            allowed = _PARTS_OF_ROLE.get(self.role, (TextPart,))
            if not isinstance(part, allowed):
                faults.append(FieldError(f"{path}.content[{index}].type", f"is not allowed for the role {self.role}"))
        return faults

    @property
    def first_sound(self) -> int | None:
        """Which part is the first sound; None when there is none."""
        parts = self.content if isinstance(self.content, list) else ()
        return next((index for index, part in enumerate(parts) if isinstance(part, AudioPart)), None)

    @property
    def has_images(self) -> bool:
        """Whether a part is an image."""
        return self.first_image is not None

    @property
    def first_image(self) -> int | None:
        """Which part is the first image; None when there is none."""
        parts = self.content if isinstance(self.content, list) else ()
        return next((index for index, part in enumerate(parts) if isinstance(part, ImagePart)), None)

    def to_sent(self, path: str, read_sound: ReadAudio) -> IncomingMessage:
        """Return the turn with its images and sounds.

        Args:
            path: The field it stands in.
            read_sound: Decodes a sound, given in base64, from the field that is named.

        Raises:
            ValidationError: An image or a sound is none, too large, or not in the message itself.
        """
        message = self.to_message()
        if not isinstance(self.content, list) or (self.first_image is None and self.first_sound is None):
            return IncomingMessage(message)
        parts: list[str | EncodedImage | DecodedAudio] = []
        for index, part in enumerate(self.content):
            if isinstance(part, ImagePart):
                parts.append(read_image(part.image_url.url, f"{path}.content[{index}].image_url.url"))
            elif isinstance(part, AudioPart):
                parts.append(read_sound(part.input_audio.data, f"{path}.content[{index}].input_audio.data"))
            elif isinstance(part, TextPart) and part.text:
                parts.append(part.text)
        return IncomingMessage(message, tuple(parts))

    def to_message(self) -> Message:
        """Return the turn without its images and sounds."""
        calls = tuple(ToolCall(call.function.name, call.function.arguments, call.id) for call in self.tool_calls or ())
        return Message(ROLES[self.role], self._text(), calls, self.tool_call_id)

    def _text(self) -> str:
        said = self.content if isinstance(self.content, str) else PART_SEPARATOR.join(self._texts())
        return PART_SEPARATOR.join(filter(None, (said, self.refusal)))

    def _texts(self) -> Iterator[str]:
        for part in self.content or ():
            if isinstance(part, TextPart):
                yield part.text
            elif isinstance(part, RefusalPart):
                yield part.refusal


_PARTS_OF_ROLE = {"user": (TextPart, ImagePart, AudioPart), "assistant": (TextPart, RefusalPart)}


def to_conversation(messages: list[MessageParam], tools: tuple[str, ...]) -> Conversation:
    """Return the conversation some messages make, without their images and sounds."""
    return Conversation(tuple(message.to_message() for message in messages), tools)


def register_messages(converter: StrictConverter) -> None:
    """Teach a converter the unions of these classes."""
    converter.union(Part, _part_kind)
    converter.union(Content, _content_kind)


def _part_kind(value: object) -> object:
    if not isinstance(value, dict):
        raise TypeError("must be an object")
    kind = value.get("type")
    found = PART_KINDS.get(kind) if isinstance(kind, str) else None
    if found is None:
        raise ValueError(f"must have a type of {', '.join(PART_KINDS)}")
    return found


def _content_kind(value: object) -> object:
    if isinstance(value, str):
        return str
    if isinstance(value, list):
        return list[Part]
    raise TypeError("must be a string or an array of parts")
