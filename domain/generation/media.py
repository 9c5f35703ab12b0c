"""Media of a prompt, encoded and decoded, and the limits on their size and number.

Encoded clips, and the sampling of their frames, are in ``video``.
"""

import enum
import hashlib
from collections.abc import Sequence
from typing import TypeVar

import attrs

from mlxk.domain.errors import MlxkError, ValidationError

Refusal = TypeVar("Refusal", bound=MlxkError)

MIB = 1024 * 1024

MAX_IMAGE_BYTES = 20 * MIB
"""Largest size of one encoded image."""

MAX_IMAGES_BYTES = 50 * MIB
"""Largest total size of the encoded images of one chunk."""

MAX_IMAGE_PIXELS = 64 * 1000 * 1000
"""Largest number of pixels of one decoded image; a small file can hold billions of pixels of one colour."""

MAX_CHUNK = 5
"""Most images in one chunk, which a model gets in one prompt."""

DEFAULT_CHUNK = 1
"""One image at a time is slowest and most reliable, since a model cannot confuse the images of different chunks."""

DEFAULT_IMAGE_PROMPT = "Describe the image."

SIGNATURE_BYTES = 16
"""Number of leading bytes that identify the format."""

_PLAIN_SIGNATURES = ((b"\xff\xd8\xff", "jpeg"), (b"\x89PNG\r\n\x1a\n", "png"), (b"GIF87a", "gif"), (b"GIF89a", "gif"))
_FOREIGN = (
    (b"II*\0", "TIFF, or a camera's raw format"),
    (b"MM\0*", "TIFF, or a camera's raw format"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"BM", "BMP"),
    (b"<svg", "SVG"),
    (b"<?xml", "SVG or another kind of XML"),
    (b"\xef\xbb\xbf<svg", "SVG"),
    (b"\xef\xbb\xbf<?xml", "SVG or another kind of XML"),
    (b"\0\0\x01\0", "ICO"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"8BPS", "PSD"),
    (b"%PDF", "PDF"),
)
"""Signature and name of unsupported formats that users may send."""

_HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
_AVIF_BRANDS = frozenset({b"avif", b"avis"})


@attrs.frozen
class MediaKind:
    """A kind of media that a request contains or refers to."""

    name: str
    """Its name in messages."""
    max_bytes: int
    """Size of the largest file."""
    types: tuple[str, ...]
    """Prefixes of its MIME types. They are a first check; the format is detected from the content."""
    advice: str | None = None
    """What to do with a larger file."""

    def check_size(self, size_bytes: int, place: str) -> None:
        """Refuse a file that is empty or too large.

        Raises:
            ValidationError: It is empty or too large.
        """
        if size_bytes == 0:
            raise ValidationError.in_field(place, f"the {self.name} is empty")
        if size_bytes > self.max_bytes:
            fault = f"the {self.name} has {size_bytes / MIB:.1f} MiB; at most {self.max_bytes // MIB} MiB are taken"
            raise ValidationError.in_field(place, fault, hint=self.advice)


IMAGES = MediaKind("image", MAX_IMAGE_BYTES, ("image/",), "Make it smaller; models get a reduced copy anyway.")


class ImageFormat(enum.Enum):
    """Encodings of images; values are file name extensions."""

    JPEG = "jpeg"
    PNG = "png"
    GIF = "gif"
    WEBP = "webp"
    HEIC = "heic"
    AVIF = "avif"

    @classmethod
    def of(cls, beginning: bytes) -> "ImageFormat | None":
        """Return the format by the first ``SIGNATURE_BYTES`` bytes; None when it is unknown."""
        for signature, name in _PLAIN_SIGNATURES:
            if beginning.startswith(signature):
                return cls(name)
        if beginning[:4] == b"RIFF" and beginning[8:12] == b"WEBP":
            return cls.WEBP
        if beginning[4:8] == b"ftyp":
            brand = beginning[8:12]
            return cls.AVIF if brand in _AVIF_BRANDS else cls.HEIC if brand in _HEIC_BRANDS else None
        return None


@attrs.frozen
class EncodedImage:
    """One image as received, in a supported format. Its pixels have not been checked."""

    data: bytes = attrs.field(repr=False)
    format: ImageFormat
    digest: str
    """SHA-256 of the data, hexadecimal."""
    original: str | None = None
    """The original file name, if any."""
    place: str | None = attrs.field(default=None, eq=False)
    """The request field or option that it came from, for error messages; None when unknown."""

    @classmethod
    def of(cls, data: bytes, place: str, original: str | None = None) -> "EncodedImage":
        """Create an image from the content of its file.

        Args:
            data: The complete file.
            place: Its origin in error messages: a field, or a flag and its value.
            original: The original file name.

        Raises:
            ValidationError: The file is empty, too large, or in an unknown format.
        """
        IMAGES.check_size(len(data), place)
        return cls(data, format_of(data[:SIGNATURE_BYTES], place), hashlib.sha256(data).hexdigest(), original, place)

    @property
    def file_name(self) -> str:
        """Its name in the table of images, derived from the digest."""
        return f"image_{self.digest[:8]}.{self.format.value}"

    @property
    def title(self) -> str:
        """Its name in messages."""
        return f"'{self.original}'" if self.original else self.file_name

    def refused(self, kind: type[Refusal], message: str, *, hint: str | None = None) -> Refusal:
        """Return an error about this image, which names its file or its field.

        Args:
            kind: Class of the error.
            message: The fault, without the name of the image.
            hint: What to do next.
        """
        return refusal(kind, message, self.title, None if self.original else self.place, hint)


def refusal(kind: type[Refusal], message: str, title: str, field: str | None, hint: str | None) -> Refusal:
    """Return an error about a file of a prompt.

    Args:
        kind: Class of the error.
        message: The fault, without the name of the file.
        title: Name of the file.
        field: The request field that it came from, named instead of the title; None to name the title.
        hint: What to do next.
    """
    return kind.in_field(field, message, hint=hint) if field else kind(f"{title} {message}", hint=hint)


@attrs.frozen
class DecodedImage:
    """The pixels of one image, in its upright orientation."""

    width: int
    height: int
    pixels: bytes = attrs.field(repr=False)
    """RGB, one byte a channel, rows from top to bottom."""
    digest: str
    """Digest of the encoded image."""


def format_of(beginning: bytes, place: str) -> ImageFormat:
    """Return the format of an image.

    Raises:
        ValidationError: The format is unknown.
    """
    detected = ImageFormat.of(beginning)
    if detected is None:
        known = ", ".join(each.name for each in ImageFormat)
        foreign = next((name for magic, name in _FOREIGN if beginning.startswith(magic)), None)
        if foreign is not None:
            hint = f"Convert it to PNG or JPEG first. Known formats: {known}"
            raise ValidationError.in_field(place, f"is in {foreign}, which is not supported", hint=hint)
        raise ValidationError.in_field(place, "is not an image of a known format", hint=f"Known formats: {known}")
    return detected


def check_together(sizes_bytes: Sequence[int], place: str) -> None:
    """Refuse images whose total size is too large.

    Raises:
        ValidationError: The images have more than ``MAX_IMAGES_BYTES`` together.
    """
    total = sum(sizes_bytes)
    if total > MAX_IMAGES_BYTES:
        limit = MAX_IMAGES_BYTES // MIB
        raise ValidationError.in_field(
            place, f"{len(sizes_bytes)} images have {total / MIB:.1f} MiB together; at most {limit} MiB are taken"
        )


def check_chunk(size: int, place: str = "chunk") -> None:
    """Refuse an invalid number of images for one chunk.

    Raises:
        ValidationError: It is below 1 or above ``MAX_CHUNK``.
    """
    if not 1 <= size <= MAX_CHUNK:
        raise ValidationError(f"{place} must be at least 1 and at most {MAX_CHUNK} (got {size})")


AUDIO_RATE = 16_000
"""Sample rate of audio in prompts, Hz."""

MAX_PROMPT_AUDIO_SECONDS = 30
"""Longest recording in a prompt."""

MAX_AUDIO_BYTES = 50 * 1000 * 1000
"""Largest audio file, in a prompt or for transcription."""

DEFAULT_AUDIO_PROMPT = "Transcribe this audio."

DEFAULT_MIXED_PROMPT = "Describe what is to be seen and heard."
"""For a prompt with images and sound."""

_BYTES_PER_SAMPLE = 4


@attrs.frozen
class DecodedAudio:
    """The samples of one recording."""

    samples: bytes = attrs.field(repr=False)
    """Mono, at ``AUDIO_RATE``, as little-endian 32-bit floats from -1 to 1."""
    digest: str
    """SHA-256 of the samples, hexadecimal."""

    @property
    def seconds(self) -> float:
        """Its duration."""
        return len(self.samples) / _BYTES_PER_SAMPLE / AUDIO_RATE


RECORDINGS = MediaKind("recording", MAX_AUDIO_BYTES, ("audio/", "video/", "application/ogg"))
"""Recordings of sound; video containers may hold sound alone as well."""

MAX_NAMED = 64
"""Most media that a request refers to by URL or path."""

MAX_NAMED_BYTES = 100 * MIB
"""Largest total size of these media."""

MAX_NAMED_SECONDS = 30.0
"""Time limit for fetching all of these media."""


def check_audio_length(audio: DecodedAudio, name: str) -> None:
    """Refuse a recording that is too long for a prompt, since models would ignore its end.

    Args:
        audio: The recording.
        name: Its name in the error message.

    Raises:
        ValidationError: The recording is longer than ``MAX_PROMPT_AUDIO_SECONDS``.
    """
    if audio.seconds > MAX_PROMPT_AUDIO_SECONDS:
        limit = MAX_PROMPT_AUDIO_SECONDS
        raise ValidationError(
            f"{name} has {audio.seconds:.1f} s of sound; in a prompt a model takes at most {limit} s",
            hint="Cut it, or use a speech-to-text model, such as one of the Whisper family, which takes two hours.",
        )


@attrs.frozen
class VideoFrame:
    """A frame of a clip."""

    index: int
    """Index among all frames of the clip, from 0."""
    seconds: float
    """Time from the start of the clip."""
    image: DecodedImage


@attrs.frozen
class DecodedVideo:
    """The sampled frames of a clip."""

    frames: tuple[VideoFrame, ...]
    """At least one, oldest first, all of the same size."""
    total_frames: int
    """Number of frames of the complete clip."""
    rate: float
    """Frame rate of the complete clip, frames a second."""

    @property
    def digest(self) -> str:
        """SHA-256 over the digests of its frames, hexadecimal."""
        return hashlib.sha256("".join(frame.image.digest for frame in self.frames).encode()).hexdigest()
