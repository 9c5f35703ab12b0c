"""Ports to media: pixels and EXIF metadata of images, frames of clips, audio samples, media elsewhere, sound."""

from abc import abstractmethod
from typing import Protocol

from mlxk.domain.generation.media import DecodedAudio, DecodedImage, EncodedImage, MediaKind
from mlxk.domain.generation.media_facts import ImageFacts, ReadVideo
from mlxk.domain.generation.video import EncodedVideo


class ImageReader(Protocol):
    """Reads image files that are in memory. Thread-safe."""

    @abstractmethod
    def decode(self, image: EncodedImage) -> DecodedImage:
        """Return the RGB pixels of the first frame, rotated by its EXIF orientation, transparency on white.

        Raises:
            ValidationError: The file is damaged or truncated, or has more than ``MAX_IMAGE_PIXELS`` pixels.
            BackendNotInstalledError: The format needs a package that is not installed.
        """

    @abstractmethod
    def read_exif(self, image: EncodedImage) -> ImageFacts:
        """Return the plausible EXIF values without decoding pixels; empty for a file that cannot be read."""


class AudioDecoder(Protocol):
    """Decodes audio files into samples for prompts. Thread-safe."""

    @abstractmethod
    def decode(self, path: str, name: str) -> DecodedAudio:
        """Decode a file of any length.

        Args:
            path: Path of the file.
            name: The name used in error messages, as the user wrote it.

        Raises:
            ValidationError: The file is missing, empty, too large, or not audio.
            StorageError: The file cannot be read.
            BackendNotInstalledError: The format needs a package or program that is not installed.
        """


class VideoDecoder(Protocol):
    """Decodes clips that are in memory. Thread-safe."""

    @abstractmethod
    def decode(self, video: EncodedVideo) -> ReadVideo:
        """Return the frames that its sampling chooses, upright, and what is known of the clip.

        Nothing but the clip is opened: no file and no address that it names. Whatever the clip holds, the time and the
        memory that it takes are limited, and nothing of it goes on after the return.

        Raises:
            ValidationError: The clip is damaged, cut off or too long, has too many pixels or no frames, or takes too
                much time or memory; or the sampling is out of range.
            BackendNotInstalledError: It needs a package that is not installed.
        """


class MediaSource(Protocol):
    """Reads media that a request names instead of holding them. Thread-safe."""

    @abstractmethod
    def read(self, reference: str, kind: MediaKind, max_bytes: int, seconds: float) -> bytes:
        """Return a complete file.

        Args:
            reference: The path or address, as the client wrote it.
            kind: What it is to be; its content is not looked at.
            max_bytes: Its largest size, at most that of the kind.
            seconds: Longest time it may take to come over a network.

        Raises:
            ValidationError: It is not there, not to be had, too large or too slow. The message follows the name of a
                field, and tells nothing of what is beyond the places that may be read.
        """


class SoundEncoder(Protocol):
    """Encodes sound in compressed formats. Thread-safe."""

    @abstractmethod
    def problem(self, kind: str) -> str | None:
        """Return why sound cannot be encoded in a format here; None when it can.

        Args:
            kind: ``mp3``, ``opus``, ``aac`` or ``flac``.
        """

    @abstractmethod
    def encode(self, pcm: bytes, sample_rate: int, kind: str) -> bytes:
        """Return the bytes of a file.

        Args:
            pcm: Mono, signed numbers of 16 bits, the lower byte first.
            sample_rate: Hz.
            kind: As for ``problem``.

        Raises:
            BackendNotInstalledError: What encodes this format is not installed.
            ExecutionError: It failed, or took too long.
        """
