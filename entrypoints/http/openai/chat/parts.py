"""The content parts of messages: text, files of text, refusals, images, recordings and clips, in many servers' forms.

The content of a media part is in the field named after the part's type, or in one that another API has for it; the
value is a string, or an object with one. Media types and formats in the request are ignored: the content is detected.
"""

import functools
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar

import attrs

from mlxk.domain.errors import ValidationError
from mlxk.domain.generation.media import SIGNATURE_BYTES, DecodedAudio, EncodedImage, ImageFormat
from mlxk.domain.generation.video import (
    MAX_FRAMES,
    MAX_SAMPLING_RATE,
    SEQUENCE_RATE,
    Clip,
    FrameSequence,
    VideoSampling,
)
from mlxk.entrypoints.http.requests.media import PartReader, is_data_url, read_base64, safe_file_name
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
    """An image, recording or clip as an object: its URL, or its data in base64."""

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
    """A clip, and how its frames are sampled."""

    fps: float | None = None
    max_frames: int | None = None
    max_pixels: int | None = None


VideoReference = str | VideoSource | Annotated[list[str], Range(1, MAX_FRAMES)] | None
"""A list holds the frames of a clip as images."""

_JPEGS = re.compile(r"data:video/jpe?g;base64,", re.IGNORECASE)
"""Prefix of a string with the frames of a clip, comma-separated, as vLLM accepts it."""


@attrs.frozen(kw_only=True)
class MediaPart:
    """A content part with an image, a recording or a clip."""

    type: str
    source: MediaReference = None
    """As in Anthropic's API."""
    url: str | None = None
    data: str | None = None

    fields: ClassVar[tuple[str, ...]] = ()
    """Names of the fields that may hold the content. If none does, the one named after the type is missing, or the
    first."""

    def faults(self, path: str) -> Iterator[FieldError]:
        """Yield the faults of combinations of fields."""
        names = self._set_fields
        if not names:
            yield FieldError(f"{path}.{self.type if self.type in self.fields else self.fields[0]}", "is required")
            return
        if len(names) > 1:
            yield FieldError(f"{path}.{names[1]}", f"contradicts {names[0]}; send one of them")
        source = getattr(self, names[0])
        if isinstance(source, MediaObject):
            if source.file_id is not None:
                yield FieldError(f"{path}.{names[0]}", BY_ID)
            elif (source.url is None) == (source.data is None):
                yield FieldError(f"{path}.{names[0]}", "needs either url or data")

    @property
    def located(self) -> tuple[Any, str]:
        """The content as sent (a reference, base64, or a list of these), and its field below the part."""
        name = next(iter(self._set_fields), self.fields[0])
        source = getattr(self, name)
        if not isinstance(source, MediaObject):
            return source or "", name
        return (source.data or "", f"{name}.data") if source.url is None else (source.url, f"{name}.url")

    @property
    def _set_fields(self) -> list[str]:
        """Names of the fields that hold the content; ``source``, ``url`` and ``data`` only if no other one does."""
        names = [name for name in self.fields if getattr(self, name) is not None]
        return names or [name for name in ("source", "url", "data") if getattr(self, name) is not None][:1]


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
            media: Reads images.

        Raises:
            ValidationError: It is malformed, too large, or cannot be read.
        """
        reference, field = self.located
        if field.endswith("data") and not is_data_url(reference):
            reference = f"data:;base64,{reference}"  # never an address or a path
        return media.image(reference, f"{path}.{field}")


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
        reference, field = self.located
        return media.audio(reference, f"{path}.{field}")


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
            yield FieldError(f"{path}.{self._set_fields[0]}.{name}" if inside else f"{path}.{name}", fault)

    @property
    def sampling(self) -> VideoSampling:
        """How frames of the clip are sampled."""
        options = {name: self._sampling_option(name) for name in _SAMPLING}
        return VideoSampling(**{name: value for name, value in options.items() if value is not None})

    def _sampling_option(self, name: str) -> Any:  # noqa: ANN401 - a number of the field's type
        """Return a sampling option, from the part or else from the object of the clip."""
        source = next((getattr(self, field) for field in self._set_fields), None)
        own = getattr(self, name)
        return getattr(source, name) if own is None and isinstance(source, VideoSource) else own

    def read(self, path: str, media: PartReader) -> Clip:
        """Return the clip; arguments and errors are those of ``ImagePart.read``."""
        for fault in self.faults(path):
            raise ValidationError.in_field(fault.path, fault.message)
        reference, field = self.located
        field_path = f"{path}.{field}"
        if isinstance(reference, str) and (prefix := _JPEGS.match(reference)):
            reference = reference[prefix.end() :].split(",")
        if isinstance(reference, str):
            return media.video(reference, self.sampling, field_path)
        if len(reference) > MAX_FRAMES:
            raise ValidationError.in_field(field_path, f"has {len(reference)} frames; at most {MAX_FRAMES} are taken")
        rate = self._sampling_option("fps") or SEQUENCE_RATE
        every_frame = VideoSampling(MAX_SAMPLING_RATE, self._sampling_option("max_frames") or MAX_FRAMES)
        return FrameSequence(media.frames(reference, field_path), rate, every_frame, field_path)


@attrs.frozen(kw_only=True)
class FileSource:
    """A file of text: its base64 and its name."""

    file_data: str | None = None
    filename: str | None = None
    file_id: str | None = None


@attrs.frozen(kw_only=True)
class FilePart:
    """A content part with a file of text, which becomes text of the message: in an object ``file``, or inline."""

    type: str
    file: FileSource | None = None
    file_data: str | None = None
    filename: str | None = None
    file_id: str | None = None
    file_url: str | None = None
    detail: str | None = None

    def faults(self, path: str) -> Iterator[FieldError]:
        """Yield the faults of combinations of fields, and of the file."""
        source, prefix = self._source
        if source.file_id is not None:
            reason = "is not supported: no files are stored here; send the file itself in file_data"
            yield FieldError(f"{path}.{prefix}file_id", reason, unsupported=True)
        elif self.file_url is not None:
            reason = "is not supported: files at addresses are not read; send the file itself in file_data"
            yield FieldError(f"{path}.file_url", reason, unsupported=True)
        elif source.file_data is None:
            yield FieldError(f"{path}.{prefix}file_data", "is required")
        else:
            try:
                self.text  # noqa: B018 - decoded here once, and cached for the message
            except ValidationError as error:
                yield FieldError(f"{path}.{prefix}file_data", error.message.removeprefix("file_data: "))

    @functools.cached_property
    def text(self) -> str:
        """A line with the name of the file, and its text.

        Raises:
            ValidationError: The file is not base64, empty, or not text.
        """
        source, _ = self._source
        name = safe_file_name(source.filename) if source.filename else ""
        return f"[File{f': {name}' if name else ''}]\n{_text_of(source.file_data or '', 'file_data')}"

    @property
    def _source(self) -> tuple[FileSource, str]:
        """The file, and the prefix of its fields' paths."""
        if self.file is not None:
            return self.file, "file."
        return FileSource(file_data=self.file_data, filename=self.filename, file_id=self.file_id), ""


def _text_of(file_data: str, field: str) -> str:
    """Return the text of a file; for errors see ``FilePart.text``."""
    data = read_base64(file_data, field)
    if data.startswith(b"%PDF"):
        raise ValidationError.in_field(field, "is a PDF, which is not read; send its text, or its pages as images")
    if ImageFormat.of(data[:SIGNATURE_BYTES]) is not None:
        raise ValidationError.in_field(field, "is an image; send it in a part of the type image_url")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise ValidationError.in_field(field, "is no text in UTF-8, and other files are not read; send its text")
    return text


Part = TextPart | FilePart | RefusalPart | ImagePart | AudioPart | VideoPart

IMAGE_TYPES = ("image_url", "input_image", "image")
AUDIO_TYPES = ("input_audio", "audio_url", "audio")
VIDEO_TYPES = ("video_url", "input_video", "video")
FILE_TYPES = ("file", "input_file")
"""Values of ``type`` of media parts and file parts."""

PART_KINDS: Mapping[str, type[Any]] = {
    "text": TextPart,
    "input_text": TextPart,
    "refusal": RefusalPart,
    **dict.fromkeys(IMAGE_TYPES, ImagePart),
    **dict.fromkeys(AUDIO_TYPES, AudioPart),
    **dict.fromkeys(VIDEO_TYPES, VideoPart),
    **dict.fromkeys(FILE_TYPES, FilePart),
}
"""Classes of parts by ``type``."""


def register_references(converter: StrictConverter) -> None:
    """Register the unions of media references with a converter."""
    converter.union(MediaReference, lambda value: MediaObject if isinstance(value, dict) else str)
    converter.union(VideoReference, _video_kind)


def _video_kind(value: object) -> object:
    if isinstance(value, list):
        return Annotated[list[str], Range(1, MAX_FRAMES)]
    return VideoSource if isinstance(value, dict) else str
