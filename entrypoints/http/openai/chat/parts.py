"""The content parts of messages: text, refusals, images, recordings and clips, as clients of many servers spell them.

A file stands in the field that has the name of the part's type, or one that another API has for it; the value is a
text, or an object with it. What it is, its content says: media types and formats beside it are not looked at.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar

import attrs

from mlxk.domain.errors import ValidationError
from mlxk.domain.generation.media import DecodedAudio, EncodedImage
from mlxk.domain.generation.video import (
    MAX_FRAMES,
    MAX_SAMPLING_RATE,
    SEQUENCE_RATE,
    Clip,
    FrameSequence,
    VideoSampling,
)
from mlxk.entrypoints.http.requests.media import PartReader, is_data_url
from mlxk.entrypoints.http.requests.validation import FieldError, Range, StrictConverter

BY_ID = "files by their id are not supported, since nothing is stored; send the content itself"


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
class MediaObject:
    """A file as an object: its URL, or its data in base64."""

    url: str | None = None
    data: str | None = None
    type: str | None = None
    media_type: str | None = None
    format: str | None = None
    file_id: str | None = None
    detail: str | None = None


MediaReference = str | MediaObject | None


@attrs.frozen(kw_only=True)
class VideoSource(MediaObject):
    """A clip, and which of its frames the model gets."""

    fps: float | None = None
    max_frames: int | None = None
    max_pixels: int | None = None


VideoReference = str | VideoSource | Annotated[list[str], Range(1, MAX_FRAMES)] | None
"""A list has the frames of a clip, each an image."""

_JPEGS = re.compile(r"data:video/jpe?g;base64,", re.IGNORECASE)
"""What begins a text with the frames of a clip, as vLLM takes it."""


@attrs.frozen(kw_only=True)
class MediaPart:
    """A content part with a file."""

    type: str
    source: MediaReference = None
    """As in Anthropic's API."""
    url: str | None = None
    data: str | None = None

    fields: ClassVar[tuple[str, ...]] = ()
    """Names of the fields that may have the file; the first is the usual one, unless one is called as the type is."""

    def faults(self, path: str) -> Iterator[FieldError]:
        """Yield the faults of combinations of fields."""
        given = self._given
        if not given:
            yield FieldError(f"{path}.{self.type if self.type in self.fields else self.fields[0]}", "is required")
            return
        if len(given) > 1:
            yield FieldError(f"{path}.{given[1]}", f"contradicts {given[0]}; send one of them")
        source = getattr(self, given[0])
        if isinstance(source, MediaObject):
            if source.file_id is not None:
                yield FieldError(f"{path}.{given[0]}", BY_ID)
            elif (source.url is None) == (source.data is None):
                yield FieldError(f"{path}.{given[0]}", "needs either url or data")

    @property
    def located(self) -> tuple[Any, str]:
        """What the client sent, a reference, base64 or a list of these, and its field below the part."""
        name = next(iter(self._given), self.fields[0])
        source = getattr(self, name)
        if not isinstance(source, MediaObject):
            return source or "", name
        return (source.data or "", f"{name}.data") if source.url is None else (source.url, f"{name}.url")

    @property
    def _given(self) -> list[str]:
        """Names of the fields that have the file; one whose name may mean something else counts by itself only."""
        given = [name for name in self.fields if getattr(self, name) is not None]
        return given or [name for name in ("source", "url", "data") if getattr(self, name) is not None][:1]


@attrs.frozen(kw_only=True)
class ImagePart(MediaPart):
    """A content part with an image."""

    type: str = "image_url"
    image_url: MediaReference = None
    image: MediaReference = None

    fields: ClassVar[tuple[str, ...]] = ("image_url", "image")

    def read(self, path: str, media: PartReader) -> EncodedImage:
        """Return the image.

        Args:
            path: The field of the part.
            media: Reads it.

        Raises:
            ValidationError: It is malformed or too large, or cannot be had.
        """
        reference, below = self.located
        if below.endswith("data") and not is_data_url(reference):
            reference = f"data:;base64,{reference}"  # neither an address nor a path
        return media.image(reference, f"{path}.{below}")


@attrs.frozen(kw_only=True)
class AudioPart(MediaPart):
    """A content part with a recording."""

    type: str = "input_audio"
    input_audio: MediaReference = None
    audio_url: MediaReference = None
    audio: MediaReference = None

    fields: ClassVar[tuple[str, ...]] = ("input_audio", "audio_url", "audio")

    def read(self, path: str, media: PartReader) -> DecodedAudio:
        """Return the samples of the recording; arguments and errors are those of ``ImagePart.read``."""
        reference, below = self.located
        return media.audio(reference, f"{path}.{below}")


_SAMPLING = ("fps", "max_frames", "max_pixels")


@attrs.frozen(kw_only=True)
class VideoPart(MediaPart):
    """A content part with a clip."""

    type: str = "video_url"
    video_url: VideoReference = None
    input_video: VideoReference = None
    video: VideoReference = None
    fps: float | None = None
    max_frames: int | None = None
    max_pixels: int | None = None

    fields: ClassVar[tuple[str, ...]] = ("video_url", "input_video", "video")

    def faults(self, path: str) -> Iterator[FieldError]:
        """Yield the faults of combinations of fields."""
        yield from super().faults(path)
        try:
            self.sampling.validate()
        except ValidationError as error:
            name, _, fault = error.message.partition(": ")
            inside = getattr(self, name) is None
            yield FieldError(f"{path}.{self._given[0]}.{name}" if inside else f"{path}.{name}", fault)

    @property
    def sampling(self) -> VideoSampling:
        """Which frames of the clip the model gets."""
        given = {name: self._sampling(name) for name in _SAMPLING}
        return VideoSampling(**{name: value for name, value in given.items() if value is not None})

    def _sampling(self, name: str) -> Any:  # noqa: ANN401 - a number of the field's type
        """Return a field of the sampling, which may stand beside the clip or in its object."""
        source = next((getattr(self, each) for each in self._given), None)
        own = getattr(self, name)
        return getattr(source, name) if own is None and isinstance(source, VideoSource) else own

    def read(self, path: str, media: PartReader) -> Clip:
        """Return the clip; arguments and errors are those of ``ImagePart.read``."""
        for fault in self.faults(path):
            raise ValidationError.in_field(fault.path, fault.message)
        reference, below = self.located
        place = f"{path}.{below}"
        if isinstance(reference, str) and (opening := _JPEGS.match(reference)):
            reference = reference[opening.end() :].split(",")
        if isinstance(reference, str):
            return media.video(reference, self.sampling, place)
        if len(reference) > MAX_FRAMES:
            raise ValidationError.in_field(place, f"has {len(reference)} frames; at most {MAX_FRAMES} are taken")
        rate = self._sampling("fps") or SEQUENCE_RATE
        every = VideoSampling(MAX_SAMPLING_RATE, self._sampling("max_frames") or MAX_FRAMES)
        return FrameSequence(media.frames(reference, place), rate, every, place)


Part = TextPart | RefusalPart | ImagePart | AudioPart | VideoPart

IMAGE_TYPES = ("image_url", "input_image", "image")
AUDIO_TYPES = ("input_audio", "audio_url", "audio")
VIDEO_TYPES = ("video_url", "input_video", "video")
"""Names of the types of parts with a file; so are their fields called."""

PART_KINDS: Mapping[str, type[Any]] = {
    "text": TextPart,
    "input_text": TextPart,
    "refusal": RefusalPart,
    **dict.fromkeys(IMAGE_TYPES, ImagePart),
    **dict.fromkeys(AUDIO_TYPES, AudioPart),
    **dict.fromkeys(VIDEO_TYPES, VideoPart),
}


def register_references(converter: StrictConverter) -> None:
    """Register the references of media with a converter."""
    converter.union(MediaReference, lambda value: MediaObject if isinstance(value, dict) else str)
    converter.union(VideoReference, _video_kind)


def _video_kind(value: object) -> object:
    if isinstance(value, list):
        return Annotated[list[str], Range(1, MAX_FRAMES)]
    return VideoSource if isinstance(value, dict) else str
