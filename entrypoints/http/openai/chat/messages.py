"""The messages of a chat request, with all roles and content parts, as messages of the domain."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import attrs

from mlxk.application.generation_input import IncomingMessage
from mlxk.domain.generation.conversation import Message, Role, ToolCall
from mlxk.domain.generation.media import DecodedAudio, EncodedImage
from mlxk.domain.generation.video import Clip
from mlxk.entrypoints.http.openai.chat.parts import (
    PART_KINDS,
    AudioPart,
    FilePart,
    ImagePart,
    MediaPart,
    Part,
    RefusalPart,
    TextPart,
    VideoPart,
    register_references,
)
from mlxk.entrypoints.http.requests.media import PartReader
from mlxk.entrypoints.http.requests.validation import (
    FieldError,
    OneOf,
    Range,
    StrictConverter,
    Unsupported,
    unsupported_faults,
)

ROLES = {
    "system": Role.SYSTEM,
    "developer": Role.SYSTEM,
    "user": Role.USER,
    "assistant": Role.ASSISTANT,
    "tool": Role.TOOL,
}
"""Roles by name; ``developer`` is OpenAI's newer name of ``system``."""

UNSUPPORTED: Mapping[str, Unsupported] = {
    "audio": Unsupported("answers are text only, so there is none to refer to"),
    "function_call": Unsupported("is deprecated; use tool_calls"),
}
"""Documented fields of a message that are not supported."""

PART_SEPARATOR = "\n"
"""Joins the text parts of one message."""

Content = str | list[Part] | None


@attrs.frozen(kw_only=True)
class FunctionCall:
    """The called function, and its arguments as JSON text."""

    name: Annotated[str, Range(1, 256)]
    arguments: str


@attrs.frozen(kw_only=True)
class ToolCallParam:
    """An earlier tool call of the assistant."""

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
    reasoning_content: str | None = None
    """Reasoning of the assistant, as returned by this and other servers; passed to the chat template."""
    reasoning: str | None = None
    """Another name of ``reasoning_content``, which takes precedence."""
    audio: Any = None
    """Not supported, like ``function_call``; both are declared to be refused by name."""
    function_call: Any = None

    def faults(self, path: str) -> list[FieldError]:
        """Return the faults of combinations of fields."""
        refused = unsupported_faults(attrs.asdict(self, recurse=False), UNSUPPORTED)
        faults = [attrs.evolve(fault, path=f"{path}.{fault.path}") for fault in refused]
        has_other = self.tool_calls or self.refusal or self.reasoning_content or self.reasoning or refused
        if self.content is None and not (self.role == "assistant" and has_other):
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
            elif isinstance(part, MediaPart | FilePart):
                faults += part.faults(f"{path}.content[{index}]")
        return faults

    @property
    def first_audio(self) -> int | None:
        """Index of the first audio part, if any."""
        parts = self.content if isinstance(self.content, list) else ()
        return next((index for index, part in enumerate(parts) if isinstance(part, AudioPart)), None)

    @property
    def first_image(self) -> int | None:
        """Index of the first part with an image or a clip, if any."""
        parts = self.content if isinstance(self.content, list) else ()
        return next((index for index, part in enumerate(parts) if isinstance(part, ImagePart | VideoPart)), None)

    def to_incoming(self, path: str, media: PartReader) -> IncomingMessage:
        """Return the message with its media.

        Args:
            path: The field of the message.
            media: Reads them.

        Raises:
            ValidationError: One of them is malformed, too large, or cannot be read.
        """
        message = self.to_message()
        if not isinstance(self.content, list) or (self.first_image is None and self.first_audio is None):
            return IncomingMessage(message)
        parts: list[str | EncodedImage | DecodedAudio | Clip] = []
        for index, part in enumerate(self.content):
            if isinstance(part, ImagePart | AudioPart | VideoPart):
                parts.append(part.read(f"{path}.content[{index}]", media))
            elif isinstance(part, TextPart | FilePart) and part.text:
                parts.append(part.text)
        return IncomingMessage(message, tuple(parts))

    def to_message(self) -> Message:
        """Return the message without its media."""
        calls = tuple(ToolCall(call.function.name, call.function.arguments, call.id) for call in self.tool_calls or ())
        reasoning = self.reasoning_content or self.reasoning or ""
        return Message(ROLES[self.role], self._text(), calls, self.tool_call_id, reasoning=reasoning)

    def _text(self) -> str:
        content = self.content if isinstance(self.content, str) else PART_SEPARATOR.join(self._texts())
        return PART_SEPARATOR.join(filter(None, (content, self.refusal)))

    def _texts(self) -> Iterator[str]:
        for part in self.content or ():
            if isinstance(part, TextPart | FilePart):
                yield part.text
            elif isinstance(part, RefusalPart):
                yield part.refusal


_PARTS_OF_ROLE = {"user": (TextPart, FilePart, ImagePart, AudioPart, VideoPart), "assistant": (TextPart, RefusalPart)}


def register_messages(converter: StrictConverter) -> None:
    """Register the unions of these classes with a converter."""
    converter.union(Part, _part_kind)
    converter.union(Content, _content_kind)
    register_references(converter)


def _part_kind(value: object) -> object:
    if not isinstance(value, dict):
        raise TypeError("must be an object")
    kind = value.get("type")
    part = PART_KINDS.get(kind) if isinstance(kind, str) else None
    if part is None:
        raise ValueError(f"must have a type of {', '.join(PART_KINDS)}")
    return part


def _content_kind(value: object) -> object:
    if isinstance(value, str):
        return str
    if isinstance(value, list):
        return list[Part]
    raise TypeError("must be a string or an array of parts")
