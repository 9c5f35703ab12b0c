"""Images and audio in a prompt: encoded, decoded, and the limits of their size and number."""

import enum
import hashlib
from collections.abc import Sequence
from typing import TypeVar

import attrs

from mlxk.domain.errors import MlxkError, ValidationError

Refusal = TypeVar("Refusal", bound=MlxkError)

MIB = 1024 * 1024

MAX_IMAGE_BYTES = 20 * MIB
"""One encoded image."""

MAX_IMAGES_BYTES = 50 * MIB
"""The encoded images that a model sees together."""

MAX_IMAGE_PIXELS = 64 * 1000 * 1000
"""One decoded image; a small file can hold billions of pixels of one colour."""

MAX_CHUNK = 5
"""Images that a model sees together."""

DEFAULT_CHUNK = 1
"""One at a time is slowest and most reliable: a model cannot mix up what it has not seen."""

DEFAULT_IMAGE_PROMPT = "Describe the image."

SIGNATURE_BYTES = 16
"""How many of the first bytes tell the format."""

_PLAIN_SIGNATURES = ((b"\xff\xd8\xff", "jpeg"), (b"\x89PNG\r\n\x1a\n", "png"), (b"GIF87a", "gif"), (b"GIF89a", "gif"))
_HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
_AVIF_BRANDS = frozenset({b"avif", b"avis"})


class ImageFormat(enum.Enum):
    """How images are encoded; values are the ends of their file names."""

    JPEG = "jpeg"
    PNG = "png"
    GIF = "gif"
    WEBP = "webp"
    HEIC = "heic"
    AVIF = "avif"

    @classmethod
    def of(cls, beginning: bytes) -> "ImageFormat | None":
        """Tell the format from the first ``SIGNATURE_BYTES`` bytes; None when it is none of these."""
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
    """One image as it came, of a format we know; whether it can be decoded is not known yet."""

    data: bytes = attrs.field(repr=False)
    format: ImageFormat
    digest: str
    """SHA-256 of the data, hexadecimal: the same image has the same one wherever it turns up."""
    original: str | None = None
    """The name its file had; None when it never had one."""
    place: str | None = attrs.field(default=None, eq=False)
    """Where it came from, as messages name it; None when nobody said."""

    @classmethod
    def of(cls, data: bytes, place: str, original: str | None = None) -> "EncodedImage":
        """Take an image in.

        Args:
            data: The whole file.
            place: Where it came from, as messages name it: a field, or a flag and its value.
            original: The name its file had.

        Raises:
            ValidationError: It is empty, too large, or of no format we know.
        """
        check_size(len(data), place)
        return cls(data, format_of(data[:SIGNATURE_BYTES], place), hashlib.sha256(data).hexdigest(), original, place)

    @property
    def file_name(self) -> str:
        """The name by which answers and their readers know it."""
        return f"image_{self.digest[:8]}.{self.format.value}"

    @property
    def title(self) -> str:
        """What to call it in messages."""
        return f"'{self.original}'" if self.original else self.file_name

    def refused(self, kind: type[Refusal], message: str, *, hint: str | None = None) -> Refusal:
        """Return a failure that this image is at fault for: by the name its file had, or the field it stood in.

        Args:
            kind: Of the failure.
            message: What is wrong with it, without its name.
            hint: What to do next.
        """
        if self.original or not self.place:
            return kind(f"{self.title} {message}", hint=hint)
        return kind.in_field(self.place, message, hint=hint)


@attrs.frozen
class DecodedImage:
    """One image as pixels, the way it is to be looked at."""

    width: int
    height: int
    pixels: bytes = attrs.field(repr=False)
    """Red, green and blue of each pixel, a byte each, rows from the top."""
    digest: str
    """That of the encoded image."""


def check_size(size_bytes: int, place: str) -> None:
    """Refuse an image that is empty or too large.

    Raises:
        ValidationError: It is.
    """
    if size_bytes == 0:
        raise ValidationError.in_field(place, "the image is empty")
    if size_bytes > MAX_IMAGE_BYTES:
        raise ValidationError.in_field(
            place,
            f"the image has {size_bytes / MIB:.1f} MiB; at most {MAX_IMAGE_BYTES // MIB} MiB are taken",
            hint="Make it smaller; models look at a reduced copy anyway.",
        )


def format_of(beginning: bytes, place: str) -> ImageFormat:
    """Tell the format of an image.

    Raises:
        ValidationError: It is none we know.
    """
    found = ImageFormat.of(beginning)
    if found is None:
        known = ", ".join(each.name for each in ImageFormat)
        raise ValidationError.in_field(place, "is not an image of a known format", hint=f"Known formats: {known}")
    return found


def check_together(sizes_bytes: Sequence[int], place: str) -> None:
    """Refuse images that are too large together.

    Raises:
        ValidationError: They are.
    """
    total = sum(sizes_bytes)
    if total > MAX_IMAGES_BYTES:
        limit = MAX_IMAGES_BYTES // MIB
        raise ValidationError.in_field(
            place, f"{len(sizes_bytes)} images have {total / MIB:.1f} MiB together; at most {limit} MiB are taken"
        )


def check_chunk(size: int, place: str = "chunk") -> None:
    """Refuse a number of images that a model is not shown together.

    Raises:
        ValidationError: It is below 1 or above ``MAX_CHUNK``.
    """
    if not 1 <= size <= MAX_CHUNK:
        raise ValidationError(f"{place} must be at least 1 and at most {MAX_CHUNK} (got {size})")


AUDIO_RATE = 16_000
"""Samples a second that these models hear."""

MAX_SOUND_SECONDS = 30
"""Length of one recording in a prompt."""

MAX_AUDIO_BYTES = 50 * 1000 * 1000
"""Size of a file of sound, also of one whose words are written down."""

DEFAULT_AUDIO_PROMPT = "Transcribe this audio."

_BYTES_PER_SAMPLE = 4


@attrs.frozen
class DecodedAudio:
    """One recording as samples, the way it is to be heard."""

    samples: bytes = attrs.field(repr=False)
    """One channel, ``AUDIO_RATE`` a second, from -1 to 1, each a 32-bit float, least significant byte first."""
    digest: str
    """SHA-256 of the samples, hexadecimal."""

    @property
    def seconds(self) -> float:
        """How long it is."""
        return len(self.samples) / _BYTES_PER_SAMPLE / AUDIO_RATE


def check_audio_length(sound: DecodedAudio, name: str) -> None:
    """Refuse a recording that a model would not hear to its end.

    Args:
        sound: The recording.
        name: What the user calls it.

    Raises:
        ValidationError: It is longer than ``MAX_SOUND_SECONDS``.
    """
    if sound.seconds > MAX_SOUND_SECONDS:
        raise ValidationError(
            f"{name} has {sound.seconds:.1f} s of sound; in a prompt a model hears at most {MAX_SOUND_SECONDS} s",
            hint="Cut it, or use a speech-to-text model, such as one of the Whisper family, which takes two hours.",
        )
