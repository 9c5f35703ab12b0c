"""Video clips of a prompt as received, the sampling of their frames, and the limits on both."""

import enum
import hashlib
import math
from collections.abc import Callable, Sequence

import attrs

from mlxk.domain.errors import ValidationError
from mlxk.domain.generation.media import (
    MIB,
    DecodedImage,
    DecodedVideo,
    EncodedImage,
    MediaKind,
    Refusal,
    VideoFrame,
    refusal,
)

MAX_VIDEO_BYTES = 256 * MIB
"""Largest size of one encoded clip."""

VIDEOS = MediaKind(
    "clip",
    MAX_VIDEO_BYTES,
    ("video/", "image/gif"),
    "Cut it, or make it smaller; models get a few reduced frames anyway.",
)

MAX_VIDEO_SECONDS = 2 * 60 * 60
"""Longest clip."""

MAX_FRAME_PIXELS = 16 * 1000 * 1000
"""Most pixels of one stored frame: 4K has nine million, 8K thirty-three."""

MAX_FRAMES = 128
"""Most frames that a model gets of all clips of a prompt."""

MAX_VIDEOS = 8
"""Most clips of a prompt."""

MAX_SAMPLING_RATE = 60.0
"""Highest sampling rate that can be asked for, frames a second."""

USUAL_FRAME_PIXELS = 1280 * 720
"""Size to which frames are scaled down by default, pixels."""

MIN_FRAME_PIXELS = 16 * 16
"""Smallest size of a frame that can be asked for, pixels."""

DEFAULT_VIDEO_PROMPT = "Describe the video."

SIGNATURE_BYTES = 64
"""Number of leading bytes that identify the container."""

_FEWEST_FRAMES = 4
"""Least number of frames to sample, for clips that have as many."""

_OLD_QUICKTIME = frozenset({b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"})
_STILL_BRANDS = frozenset({b"avif", b"heic", b"heix", b"heim", b"heis", b"mif1", b"jpg ", b"jp2 "})
_EBML = b"\x1aE\xdf\xa3"


class VideoContainer(enum.Enum):
    """Containers of clips; values are file name extensions."""

    MP4 = "mp4"
    MOV = "mov"
    MATROSKA = "mkv"
    WEBM = "webm"
    AVI = "avi"
    GIF = "gif"

    @classmethod
    def of(cls, beginning: bytes) -> "VideoContainer | None":
        """Return the container by the first ``SIGNATURE_BYTES`` bytes; None when it is unknown.

        Playlists, like all files that may refer to other files or URLs, are deliberately unknown.
        """
        if beginning[4:8] == b"ftyp":
            brand = beginning[8:12]
            return cls.MOV if brand == b"qt  " else None if brand in _STILL_BRANDS else cls.MP4
        if beginning[4:8] in _OLD_QUICKTIME:
            return cls.MOV
        if beginning.startswith(_EBML):
            return cls.WEBM if b"webm" in beginning[:SIGNATURE_BYTES] else cls.MATROSKA
        if beginning[:4] == b"RIFF" and beginning[8:12] == b"AVI ":
            return cls.AVI
        return cls.GIF if beginning[:6] in (b"GIF87a", b"GIF89a") else None


@attrs.frozen
class VideoSampling:
    """Which frames of a clip a model gets."""

    fps: float = 1.0
    """Frames to sample a second."""
    max_frames: int = 16
    """Most frames; in a longer clip they are further apart."""
    max_pixels: int | None = None
    """Size to which each frame is scaled down, pixels; None means ``USUAL_FRAME_PIXELS``."""

    def validate(self) -> None:
        """Check the ranges.

        Raises:
            ValidationError: A value is out of range.
        """
        if not 0 < self.fps <= MAX_SAMPLING_RATE:
            raise ValidationError.in_field("fps", f"must be above 0 and at most {MAX_SAMPLING_RATE:g}")
        if not 1 <= self.max_frames <= MAX_FRAMES:
            raise ValidationError.in_field("max_frames", f"must be at least 1 and at most {MAX_FRAMES}")
        if self.max_pixels is not None and not MIN_FRAME_PIXELS <= self.max_pixels <= MAX_FRAME_PIXELS:
            fault = f"must be at least {MIN_FRAME_PIXELS} and at most {MAX_FRAME_PIXELS}"
            raise ValidationError.in_field("max_pixels", fault)

    @property
    def frame_pixels(self) -> int:
        """Most pixels of a frame that a model gets."""
        return USUAL_FRAME_PIXELS if self.max_pixels is None else self.max_pixels

    def indices(self, total: int, rate: float) -> tuple[int, ...]:
        """Return the indices of the frames to sample, from 0, evenly spaced from the first to the last frame.

        Their number is even, since models with video tokens read frames in pairs, and at least four where the clip has
        them.

        Args:
            total: Number of frames of the clip, at least 1.
            rate: Frame rate of the clip, frames a second.
        """
        most = _even(min(self.max_frames, total))
        count = _even(min(max(total / rate * self.fps, _FEWEST_FRAMES), most, total))
        if count < 2:
            return tuple(range(min(self.max_frames, total)))
        step = (total - 1) / (count - 1)
        return (*(round(index * step) for index in range(count - 1)), total - 1)


def _even(number: float) -> int:
    return math.floor(number / 2) * 2


@attrs.frozen
class EncodedVideo:
    """One clip as received, in a known container. Nothing in it has been checked."""

    data: bytes = attrs.field(repr=False)
    container: VideoContainer
    digest: str
    """SHA-256 of the data, hexadecimal."""
    sampling: VideoSampling = attrs.field(factory=VideoSampling)
    original: str | None = None
    """The original file name, if any."""
    place: str | None = attrs.field(default=None, eq=False)
    """The request field or option that it came from, for error messages; None when unknown."""

    @classmethod
    def of(
        cls, data: bytes, place: str, sampling: VideoSampling | None = None, original: str | None = None
    ) -> "EncodedVideo":
        """Create a clip from the content of its file.

        Args:
            data: The complete file.
            place: Its origin in error messages: a field, or a flag and its value.
            sampling: Which frames a model gets; None means the defaults.
            original: The original file name.

        Raises:
            ValidationError: The file is empty, too large, or in an unknown container.
        """
        VIDEOS.check_size(len(data), place)
        container = container_of(data[:SIGNATURE_BYTES], place)
        digest = hashlib.sha256(data).hexdigest()
        return cls(data, container, digest, sampling or VideoSampling(), original, place)

    @property
    def file_name(self) -> str:
        """Its name in the table of clips, derived from the digest."""
        return f"video_{self.digest[:8]}.{self.container.value}"

    @property
    def title(self) -> str:
        """Its name in messages."""
        return f"'{self.original}'" if self.original else self.file_name

    def refused(self, kind: type[Refusal], message: str, *, hint: str | None = None) -> Refusal:
        """Return an error about this clip, which names its file or its field; see ``media.refusal``."""
        return refusal(kind, message, self.title, None if self.original else self.place, hint)


def container_of(beginning: bytes, place: str) -> VideoContainer:
    """Return the container of a clip.

    Raises:
        ValidationError: The container is unknown.
    """
    container = VideoContainer.of(beginning)
    if container is None:
        known = ", ".join(each.name for each in VideoContainer)
        raise ValidationError.in_field(place, "is not a clip in a known container", hint=f"Known containers: {known}")
    return container


MAX_SEQUENCE_PIXELS = MAX_FRAMES * USUAL_FRAME_PIXELS
"""Most pixels of all frames of a ``FrameSequence`` together; they are not scaled down."""

SEQUENCE_RATE = 2.0
"""Frame rate of a ``FrameSequence`` whose client does not state it; usual for clients of Qwen's models."""


@attrs.frozen
class FrameSequence:
    """A clip as frames that the client extracted itself, each an image."""

    images: tuple[EncodedImage, ...]
    """Oldest first, at least one."""
    rate: float
    """Frames a second."""
    sampling: VideoSampling
    """Which of the frames a model gets."""
    place: str
    """The request field that it came from."""
    original: str | None = None
    """Always None: it has no file name; the attribute makes it usable like an ``EncodedVideo``."""

    @property
    def file_name(self) -> str:
        """Its name in the table of clips, derived from the digests of its frames."""
        return f"video_{hashlib.sha256(''.join(image.digest for image in self.images).encode()).hexdigest()[:8]}"

    @property
    def title(self) -> str:
        """Its name in messages."""
        return self.file_name

    def decoded(self, decode: Callable[[EncodedImage], DecodedImage]) -> DecodedVideo:
        """Decode the frames that a model gets.

        Args:
            decode: Decodes an image, or refuses it.

        Raises:
            ValidationError: The frames differ in size, or have too many pixels together.
        """
        frames: list[VideoFrame] = []
        for index in self.sampling.indices(len(self.images), self.rate):
            image = decode(self.images[index])
            size, first = (image.width, image.height), frames[0].image if frames else image
            if size != (first.width, first.height):
                fault = f"has {size[0]} by {size[1]} pixels, and the first frame {first.width} by {first.height}"
                raise self.images[index].refused(ValidationError, fault)
            frames.append(VideoFrame(index, index / self.rate, image))
            if len(frames) * image.width * image.height > MAX_SEQUENCE_PIXELS:
                most = MAX_SEQUENCE_PIXELS // 1_000_000
                fault = f"the frames have too many pixels; at most {most} million are taken of all of them"
                raise ValidationError.in_field(self.place, fault, hint="Make them smaller, or send fewer.")
        return DecodedVideo(tuple(frames), len(self.images), self.rate)


Clip = EncodedVideo | FrameSequence
"""A clip in a request."""


def frame_digest(video: EncodedVideo, index: int, width: int, height: int) -> str:
    """Return the digest of a decoded frame: equal digests mean equal pixels."""
    return hashlib.sha256(f"{video.digest}@{index}/{width}x{height}".encode()).hexdigest()


def check_frames(videos: Sequence[DecodedVideo], place: str) -> None:
    """Refuse clips that have too many frames together.

    Raises:
        ValidationError: The clips have more than ``MAX_FRAMES`` frames.
    """
    count = sum(len(video.frames) for video in videos)
    if count > MAX_FRAMES:
        fault = f"{len(videos)} clips have {count} frames together; at most {MAX_FRAMES} are taken"
        raise ValidationError.in_field(place, fault, hint="Ask for fewer frames of each.")


def require_few_videos(count: int, place: str) -> None:
    """Refuse too many clips, before any of them is decoded.

    Raises:
        ValidationError: There are more than ``MAX_VIDEOS``.
    """
    if count > MAX_VIDEOS:
        raise ValidationError.in_field(place, f"there are {count} clips; at most {MAX_VIDEOS} are taken")
