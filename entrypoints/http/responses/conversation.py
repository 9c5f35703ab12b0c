"""Builds the messages of a chat request from the items of a request, and tracks the fields that they come from.

The reasoning, text and calls of the assistant between two other turns become one message.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import attrs

from mlxk.entrypoints.http.openai.chat.messages import FunctionCall, MessageParam, ToolCallParam
from mlxk.entrypoints.http.openai.chat.parts import (
    AUDIO_TYPES,
    FILE_TYPES,
    IMAGE_TYPES,
    VIDEO_TYPES,
    AudioPart,
    FilePart,
    ImagePart,
    Part,
    RefusalPart,
    TextPart,
    VideoPart,
    register_references,
)
from mlxk.entrypoints.http.requests.validation import FieldError, StrictConverter

IMAGES_FOLLOW = "See the image in the next message."
"""The text of a tool result without text: chat templates accept images in user messages only."""


@attrs.frozen
class LocatedPart:
    """A content part and the field of the request that it comes from."""

    part: Part
    path: str


class ConversationBuilder:
    """Collects the turns of a conversation.

    Args:
        name_of: Returns the model's name of a tool for its name and namespace.
    """

    def __init__(self, name_of: Callable[[str, str | None], str]) -> None:
        self.name_of = name_of
        self.messages: list[MessageParam] = []
        self.names: dict[str, str] = {}
        """Fields of the request by paths of the chat request."""
        self._reasoning: list[str] = []
        self._texts: list[str] = []
        self._calls: list[ToolCallParam] = []
        self._path = ""
        """Field of the first item of the open assistant turn."""
        self._images: list[tuple[str, LocatedPart]] = []
        """Images of the last results, each with the field of its result."""

    def message(self, role: str, content: str | Sequence[LocatedPart], path: str) -> None:
        """Add a message of the user, system or developer."""
        self._end_turn()
        self._end_results()
        self._add(role, content, path)

    def text(self, texts: Sequence[str], path: str) -> None:
        """Add text of the assistant."""
        if self._texts and not self._calls:
            self._end_turn()
        self._begin_turn(path)
        self._texts += texts or [""]

    def reasoning(self, text: str, path: str) -> None:
        """Add reasoning of the assistant, which precedes its text and calls."""
        if self._texts and not self._calls:
            self._end_turn()
        if text:
            self._begin_turn(path)
            self._reasoning.append(text)

    def call(self, name: str, arguments: str, call_id: str, path: str) -> None:
        """Add a call of a tool, by the model's name of it."""
        self._begin_turn(path)
        call_path = f"messages[{len(self.messages)}].tool_calls[{len(self._calls)}]"
        self.names |= {call_path: path, f"{call_path}.function": path}
        self._calls.append(ToolCallParam(id=call_id, function=FunctionCall(name=name, arguments=arguments)))

    def result(self, call_id: str, content: str | Sequence[LocatedPart], path: str) -> None:
        """Add the result of a call; its images follow the results of all calls of the turn."""
        self._end_turn()
        parts = () if isinstance(content, str) else content
        images = [(path, entry) for entry in parts if isinstance(entry.part, ImagePart | VideoPart)]
        text = "\n".join(texts_of(content)) or (IMAGES_FOLLOW if images else "")
        self.names[f"messages[{len(self.messages)}]"] = path
        self.messages.append(MessageParam(role="tool", content=text, tool_call_id=call_id))
        self._images += images

    def end(self) -> None:
        """Add the open turn and the images of the last results."""
        self._end_turn()
        self._end_results()

    def _begin_turn(self, path: str) -> None:
        self._end_results()
        if not (self._reasoning or self._texts or self._calls):
            self._path = path

    def _end_turn(self) -> None:
        if not (self._reasoning or self._texts or self._calls):
            return
        self.names[f"messages[{len(self.messages)}]"] = self._path
        message = MessageParam(
            role="assistant",
            content="\n".join(self._texts) if self._texts else None,
            tool_calls=self._calls or None,
            reasoning_content="\n".join(self._reasoning) or None,
        )
        self.messages.append(message)
        self._reasoning, self._texts, self._calls = [], [], []

    def _end_results(self) -> None:
        if self._images:
            path, images = self._images[0][0], [part for _, part in self._images]
            self._images = []
            self._add("user", images, path)

    def _add(self, role: str, content: str | Sequence[LocatedPart], path: str) -> None:
        message_path = f"messages[{len(self.messages)}]"
        self.names[message_path] = path
        if isinstance(content, str):
            self.messages.append(MessageParam(role=role, content=content))
            return
        for index, entry in enumerate(content):
            self.names[f"{message_path}.content[{index}]"] = entry.path
        self.messages.append(MessageParam(role=role, content=[entry.part for entry in content]))


def texts_of(content: str | Sequence[LocatedPart]) -> list[str]:
    """Return the texts and refusals of a message's content."""
    if isinstance(content, str):
        return [content]
    return [
        entry.part.text if isinstance(entry.part, TextPart) else entry.part.refusal
        for entry in content
        if isinstance(entry.part, TextPart | RefusalPart)
    ]


TEXT_TYPES = ("input_text", "output_text", "text", "summary_text", "reasoning_text")


@attrs.frozen(kw_only=True)
class TextContent:
    """A part with text."""

    text: str
    type: str = "input_text"
    annotations: Any = None
    logprobs: Any = None
    prompt_cache_breakpoint: Any = None

    def located_part(self, path: str) -> LocatedPart:
        """Return the part for a chat message."""
        return LocatedPart(TextPart(text=self.text), path)

    def faults(self, path: str) -> Iterator[FieldError]:
        """Yield the faults of combinations of fields."""
        yield from ()


@attrs.frozen(kw_only=True)
class RefusalContent(TextContent):
    """A part with a refusal of the assistant."""

    refusal: str
    text: str = ""
    type: str = "refusal"

    def located_part(self, path: str) -> LocatedPart:
        """Return the part for a chat message."""
        return LocatedPart(RefusalPart(refusal=self.refusal), path)


@attrs.frozen(kw_only=True)
class ImageContent(ImagePart):
    """A part with an image, as in a chat message."""

    type: str = "input_image"
    file_id: str | None = None
    detail: str | None = None
    prompt_cache_breakpoint: Any = None

    def located_part(self, path: str) -> LocatedPart:
        """Return the part for a chat message."""
        return LocatedPart(self, path)

    def faults(self, path: str) -> Iterator[FieldError]:
        """Yield the faults of combinations of fields."""
        if self.file_id is not None:
            reason = "is not supported: no files are stored here; send the image itself in image_url"
            yield FieldError(f"{path}.file_id", reason, unsupported=True)
        else:
            yield from super().faults(path)


@attrs.frozen(kw_only=True)
class AudioContent(AudioPart):
    """A part with audio, as in a chat message."""

    def located_part(self, path: str) -> LocatedPart:
        """Return the part for a chat message."""
        return LocatedPart(self, path)


@attrs.frozen(kw_only=True)
class VideoContent(VideoPart):
    """A part with a clip, as in a chat message."""

    prompt_cache_breakpoint: Any = None

    def located_part(self, path: str) -> LocatedPart:
        """Return the part for a chat message."""
        return LocatedPart(self, path)


@attrs.frozen(kw_only=True)
class FileContent(FilePart):
    """A part with a file of text."""

    prompt_cache_breakpoint: Any = None

    def located_part(self, path: str) -> LocatedPart:
        """Return the part for a chat message."""
        return LocatedPart(TextPart(text=self.text), path)


ContentPart = TextContent | RefusalContent | ImageContent | AudioContent | VideoContent | FileContent | dict[str, Any]
"""A dictionary is an unsupported part."""
Content = str | list[ContentPart]

PART_KINDS: Mapping[str, object] = {
    **dict.fromkeys(TEXT_TYPES, TextContent),
    "refusal": RefusalContent,
    **dict.fromkeys(IMAGE_TYPES, ImageContent),
    **dict.fromkeys(AUDIO_TYPES, AudioContent),
    **dict.fromkeys(VIDEO_TYPES, VideoContent),
    **dict.fromkeys(FILE_TYPES, FileContent),
}


def located(content: Content, path: str) -> str | list[LocatedPart]:
    """Return content as that of a chat message, each part with its field."""
    if isinstance(content, str):
        return content
    return [part.located_part(f"{path}[{index}]") for index, part in enumerate(content) if not isinstance(part, dict)]


def content_faults(content: Content, path: str) -> Iterator[FieldError]:
    """Yield the faults of content."""
    for index, part in enumerate(content if isinstance(content, list) else ()):
        part_path = f"{path}[{index}]"
        if not isinstance(part, dict):
            yield from part.faults(part_path)
        else:
            yield FieldError(f"{part_path}.type", f"must be one of {', '.join(PART_KINDS)}")


def register_content(converter: StrictConverter) -> None:
    """Register the unions of these classes with a converter."""
    register_references(converter)
    converter.union(ContentPart, _part_kind)
    converter.union(Content, content_kind)


def _part_kind(value: object) -> object:
    if not isinstance(value, dict):
        raise TypeError("must be an object")
    kind = value.get("type")
    return PART_KINDS.get(kind, dict[str, Any]) if isinstance(kind, str) else dict[str, Any]


def content_kind(value: object) -> object:
    """Return the type that a value of content is structured as."""
    if isinstance(value, str):
        return str
    if isinstance(value, list):
        return list[ContentPart]
    raise TypeError("must be a string or an array of parts")
