"""The content of messages and of the results of calls: text, images, audio."""

from collections.abc import Iterator, Mapping
from typing import Any

import attrs

from mlxk.entrypoints.http.openai.chat.messages import (
    AudioPart,
    ImagePart,
    ImageUrl,
    InputAudio,
    RefusalPart,
    TextPart,
)
from mlxk.entrypoints.http.requests.validation import FieldError, StrictConverter
from mlxk.entrypoints.http.responses.conversation import LocatedPart

TEXT_TYPES = ("input_text", "output_text", "text", "summary_text", "reasoning_text")


@attrs.frozen(kw_only=True)
class TextContent:
    """A part with text."""

    text: str
    type: str = "input_text"
    annotations: Any = None
    logprobs: Any = None
    prompt_cache_breakpoint: Any = None

    def located(self, path: str) -> LocatedPart:
        """Return the part of a chat message."""
        return LocatedPart(TextPart(text=self.text), {"": path})

    def faults(self, path: str) -> Iterator[FieldError]:
        """Yield the faults of combinations of fields."""
        yield from ()


@attrs.frozen(kw_only=True)
class RefusalContent(TextContent):
    """A part with a refusal of the assistant."""

    refusal: str
    text: str = ""
    type: str = "refusal"

    def located(self, path: str) -> LocatedPart:
        """Return the part of a chat message."""
        return LocatedPart(RefusalPart(refusal=self.refusal), {"": path})


ImageReference = str | ImageUrl | None


@attrs.frozen(kw_only=True)
class ImageContent:
    """A part with an image."""

    type: str = "input_image"
    image_url: ImageReference = None
    file_id: str | None = None
    detail: str | None = None
    prompt_cache_breakpoint: Any = None

    def located(self, path: str) -> LocatedPart:
        """Return the part of a chat message."""
        given = isinstance(self.image_url, ImageUrl)
        image = self.image_url if isinstance(self.image_url, ImageUrl) else ImageUrl(url=self.image_url or "")
        field = f"{path}.image_url.url" if given else f"{path}.image_url"
        return LocatedPart(ImagePart(image_url=image), {"": path, ".image_url.url": field})

    def faults(self, path: str) -> Iterator[FieldError]:
        """Yield the faults of combinations of fields."""
        if self.file_id is not None:
            reason = "is not supported: no files are stored here; send the image itself in image_url"
            yield FieldError(f"{path}.file_id", reason, unsupported=True)
        elif self.image_url is None:
            yield FieldError(f"{path}.image_url", "is required")


AudioReference = str | InputAudio


@attrs.frozen(kw_only=True)
class AudioContent:
    """A part with audio: its data in base64, or an object that says its format as well."""

    input_audio: AudioReference
    type: str = "input_audio"

    def located(self, path: str) -> LocatedPart:
        """Return the part of a chat message."""
        field = f"{path}.input_audio"
        if isinstance(self.input_audio, InputAudio):
            return LocatedPart(AudioPart(input_audio=self.input_audio), {"": path})
        data = self.input_audio.rpartition(";base64,")[2]
        audio = InputAudio(data=data, format="wav")
        return LocatedPart(AudioPart(input_audio=audio), {"": path, ".input_audio.data": field})

    def faults(self, path: str) -> Iterator[FieldError]:
        """Yield the faults of combinations of fields."""
        yield from ()


ContentPart = TextContent | RefusalContent | ImageContent | AudioContent | dict[str, Any]
"""The last is a part that is not supported."""
Content = str | list[ContentPart]

PART_KINDS: Mapping[str, object] = {
    **dict.fromkeys(TEXT_TYPES, TextContent),
    "refusal": RefusalContent,
    "input_image": ImageContent,
    "image_url": ImageContent,
    "input_audio": AudioContent,
}


def located(content: Content, path: str) -> str | list[LocatedPart]:
    """Return a content as that of a chat message, each part with its fields."""
    if isinstance(content, str):
        return content
    parts = ((index, each) for index, each in enumerate(content) if not isinstance(each, dict))
    return [each.located(f"{path}[{index}]") for index, each in parts]


def content_faults(content: Content, path: str) -> Iterator[FieldError]:
    """Yield the faults of a content."""
    for index, part in enumerate(content if isinstance(content, list) else ()):
        place = f"{path}[{index}]"
        if not isinstance(part, dict):
            yield from part.faults(place)
        elif part.get("type") == "input_file":
            reason = "is not supported: files are not read; send their text as input_text"
            yield FieldError(f"{place}.type", reason, unsupported=True)
        else:
            yield FieldError(f"{place}.type", f"must be one of {', '.join(PART_KINDS)}")


def register_content(converter: StrictConverter) -> None:
    """Register the unions of these classes with a converter."""
    converter.union(ImageReference, lambda value: ImageUrl if isinstance(value, dict) else str)
    converter.union(AudioReference, lambda value: InputAudio if isinstance(value, dict) else str)
    converter.union(ContentPart, _part_kind)
    converter.union(Content, content_kind)


def _part_kind(value: object) -> object:
    if not isinstance(value, dict):
        raise TypeError("must be an object")
    kind = value.get("type")
    return PART_KINDS.get(kind, dict[str, Any]) if isinstance(kind, str) else dict[str, Any]


def content_kind(value: object) -> object:
    """Return the kind of a content."""
    if isinstance(value, str):
        return str
    if isinstance(value, list):
        return list[ContentPart]
    raise TypeError("must be a string or an array of parts")
