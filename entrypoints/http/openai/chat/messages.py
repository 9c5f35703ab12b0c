"""The messages of a chat request, with all roles and content parts, as a conversation."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import attrs

from mlxk.application.generation_input import IncomingMessage
from mlxk.domain.errors import ValidationError
from mlxk.domain.generation.conversation import Message, Role, ToolCall
from mlxk.domain.generation.media import DecodedAudio, EncodedImage
from mlxk.domain.generation.video import EncodedVideo, VideoSampling
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
"""Roles by their names in requests; ``developer`` is the later name of ``system``."""

UNSUPPORTED: Mapping[str, Unsupported] = {
    "audio": Unsupported("answers are text only, so there is none to refer to"),
    "function_call": Unsupported("is deprecated; use tool_calls"),
}
"""Documented fields of a message that are not supported."""

SOUND_FORMATS = ("wav", "mp3", "flac", "ogg", "opus", "m4a", "mp4", "aac", "webm")
"""What clients say of a recording."""

PART_SEPARATOR = "\n"
"""Joins the text parts of one message."""


@attrs.frozen(kw_only=True)
class TextPart:
    """A content part with text."""

    text: str
    type: str = "text"


@attrs.frozen(kw_only=True)
class RefusalPart:
    """A content part with a refusal of the assistant."""

    refusal: str
    type: str = "refusal"


@attrs.frozen(kw_only=True)
class ImageUrl:
    """The URL of an image."""

    url: str
    detail: Annotated[str, OneOf(("auto", "low", "high", "original"))] | None = None


ImageReference = str | ImageUrl


@attrs.frozen(kw_only=True)
class ImagePart:
    """A content part with an image."""

    image_url: ImageReference
    type: str = "image_url"

    @property
    def located(self) -> tuple[str, str]:
        """The URL, and its field below the part."""
        if isinstance(self.image_url, ImageUrl):
            return self.image_url.url, "image_url.url"
        return self.image_url, "image_url"


@attrs.frozen(kw_only=True)
class InputAudio:
    """Audio, encoded in base64."""

    data: str
    format: Annotated[str, OneOf(SOUND_FORMATS)] | None = None
    """Not looked at: the content says it."""


AudioReference = str | InputAudio


@attrs.frozen(kw_only=True)
class AudioPart:
    """A content part with audio."""

    input_audio: AudioReference
    type: str = "input_audio"

    @property
    def located(self) -> tuple[str, str]:
        """The recording as the client sent it, and its field below the part."""
        if isinstance(self.input_audio, InputAudio):
            return self.input_audio.data, "input_audio.data"
        return self.input_audio, "input_audio"


@attrs.frozen(kw_only=True)
class VideoSource:
    """A clip by its URL, or its data in base64."""

    url: str | None = None
    data: str | None = None
    fps: float | None = None
    max_frames: int | None = None
    max_pixels: int | None = None


VideoReference = str | VideoSource | None

_SAMPLING = ("fps", "max_frames", "max_pixels")


@attrs.frozen(kw_only=True)
class VideoPart:
    """A content part with a clip, in the field that has the name of its type or of another one."""

    type: Annotated[str, OneOf(("video_url", "input_video", "video"))]
    video_url: VideoReference = None
    input_video: VideoReference = None
    video: VideoReference = None
    fps: float | None = None
    max_frames: int | None = None
    max_pixels: int | None = None

    def faults(self, path: str) -> Iterator[FieldError]:
        """Yield the faults of combinations of fields."""
        named = [name for name in VIDEO_TYPES if getattr(self, name) is not None]
        if not named:
            yield FieldError(f"{path}.{self.type}", "is required")
        elif len(named) > 1:
            yield FieldError(f"{path}.{named[1]}", f"contradicts {named[0]}; send one of them")
        elif isinstance(source := getattr(self, named[0]), VideoSource) and (source.url is None) == (
            source.data is None
        ):
            yield FieldError(f"{path}.{named[0]}", "needs either url or data")
        try:
            self.sampling.validate()
        except ValidationError as error:
            name, _, fault = error.message.partition(": ")
            inside = getattr(self, name) is None
            yield FieldError(f"{path}.{named[0]}.{name}" if inside and named else f"{path}.{name}", fault)

    @property
    def sampling(self) -> VideoSampling:
        """Which frames of the clip the model gets."""
        _, source = self._reference
        given = {name: getattr(self, name) for name in _SAMPLING}
        if isinstance(source, VideoSource):
            given = {name: getattr(source, name) if value is None else value for name, value in given.items()}
        return VideoSampling(**{name: value for name, value in given.items() if value is not None})

    def encoded(self, path: str, media: PartReader) -> EncodedVideo:
        """Return the clip.

        Args:
            path: The field of the part.
            media: Reads it.

        Raises:
            ValidationError: It is malformed or too large, or cannot be had.
        """
        for fault in self.faults(path):
            raise ValidationError.in_field(fault.path, fault.message)
        name, source = self._reference
        if isinstance(source, VideoSource):
            below = "data" if source.url is None else "url"
            return media.video(source.url or source.data or "", self.sampling, f"{path}.{name}.{below}")
        return media.video(source or "", self.sampling, f"{path}.{name}")

    @property
    def _reference(self) -> tuple[str, VideoReference]:
        given = ((name, getattr(self, name)) for name in VIDEO_TYPES)
        return next(((name, value) for name, value in given if value is not None), (self.type, None))


VIDEO_TYPES = ("video_url", "input_video", "video")
"""The names of the type of a part with a clip, and of its field."""

Part = TextPart | RefusalPart | ImagePart | AudioPart | VideoPart
Content = str | list[Part] | None

PART_KINDS: Mapping[str, type[Any]] = {
    "text": TextPart,
    "refusal": RefusalPart,
    "image_url": ImagePart,
    "input_audio": AudioPart,
    **dict.fromkeys(VIDEO_TYPES, VideoPart),
}
_AS_ELSEWHERE: Mapping[str, type[Any]] = {"input_text": TextPart, "input_image": ImagePart}
"""Parts by their names in other APIs."""


@attrs.frozen(kw_only=True)
class FunctionCall:
    """The function of a call, and its arguments as JSON text."""

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
    """What the assistant thought, as this server and others send it; for the chat template."""
    reasoning: str | None = None
    """The same by another name; the first counts."""
    audio: Any = None
    """Not supported, as ``function_call``; declared so that they are refused by name."""
    function_call: Any = None

    def faults(self, path: str) -> list[FieldError]:
        """Return the faults of combinations of fields."""
        refused = unsupported_faults(attrs.asdict(self, recurse=False), UNSUPPORTED)
        faults = [attrs.evolve(fault, path=f"{path}.{fault.path}") for fault in refused]
        said = self.tool_calls or self.refusal or self.reasoning_content or self.reasoning or refused
        if self.content is None and not (self.role == "assistant" and said):
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
            elif isinstance(part, VideoPart):
                faults += part.faults(f"{path}.content[{index}]")
        return faults

    @property
    def first_audio(self) -> int | None:
        """Index of the first audio part; None without any."""
        parts = self.content if isinstance(self.content, list) else ()
        return next((index for index, part in enumerate(parts) if isinstance(part, AudioPart)), None)

    @property
    def first_image(self) -> int | None:
        """Index of the first part with an image or a clip; None without any."""
        parts = self.content if isinstance(self.content, list) else ()
        return next((index for index, part in enumerate(parts) if isinstance(part, ImagePart | VideoPart)), None)

    def to_incoming(self, path: str, media: PartReader) -> IncomingMessage:
        """Return the message with its media.

        Args:
            path: The field of the message.
            media: Reads them.

        Raises:
            ValidationError: One of them is malformed or too large, or cannot be had.
        """
        message = self.to_message()
        if not isinstance(self.content, list) or (self.first_image is None and self.first_audio is None):
            return IncomingMessage(message)
        parts: list[str | EncodedImage | DecodedAudio | EncodedVideo] = []
        for index, part in enumerate(self.content):
            if isinstance(part, ImagePart | AudioPart):
                reference, field = part.located
                read = media.image if isinstance(part, ImagePart) else media.audio
                parts.append(read(reference, f"{path}.content[{index}].{field}"))
            elif isinstance(part, VideoPart):
                parts.append(part.encoded(f"{path}.content[{index}]", media))
            elif isinstance(part, TextPart) and part.text:
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
            if isinstance(part, TextPart):
                yield part.text
            elif isinstance(part, RefusalPart):
                yield part.refusal


_PARTS_OF_ROLE = {"user": (TextPart, ImagePart, AudioPart, VideoPart), "assistant": (TextPart, RefusalPart)}


def register_messages(converter: StrictConverter) -> None:
    """Register the unions of these classes with a converter."""
    converter.union(Part, _part_kind)
    converter.union(Content, _content_kind)
    register_references(converter)


def register_references(converter: StrictConverter) -> None:
    """Register the references of media with a converter."""
    converter.union(VideoReference, lambda value: VideoSource if isinstance(value, dict) else str)
    converter.union(ImageReference, lambda value: ImageUrl if isinstance(value, dict) else str)
    converter.union(AudioReference, lambda value: InputAudio if isinstance(value, dict) else str)


def _part_kind(value: object) -> object:
    if not isinstance(value, dict):
        raise TypeError("must be an object")
    kind = value.get("type")
    found = {**PART_KINDS, **_AS_ELSEWHERE}.get(kind) if isinstance(kind, str) else None
    if found is None:
        raise ValueError(f"must have a type of {', '.join(PART_KINDS)}")
    return found


def _content_kind(value: object) -> object:
    if isinstance(value, str):
        return str
    if isinstance(value, list):
        return list[Part]
    raise TypeError("must be a string or an array of parts")
