"""Ports to media: decoders of images, clips and audio files, sources of referenced media, the encoder of sound."""

from abc import abstractmethod
from typing import Protocol

from mlxk.domain.generation.media import DecodedAudio, DecodedImage, EncodedImage, MediaKind
from mlxk.domain.generation.media_facts import ImageFacts, ReadVideo
from mlxk.domain.generation.video import EncodedVideo


class ImageReader(Protocol):
    """Decodes image files held in memory. Thread-safe."""

    @abstractmethod
    def decode(self, image: EncodedImage) -> DecodedImage:
        """Return the RGB pixels of the first frame, rotated by its EXIF orientation, transparency on white.

        Raises:
            ValidationError: The file is damaged or truncated, or has more than ``MAX_IMAGE_PIXELS`` pixels.
            BackendNotInstalledError: The format needs a package that is not installed.
        """

    @abstractmethod
    def read_exif(self, image: EncodedImage) -> ImageFacts:
        """Return the plausible EXIF values without decoding pixels; empty for a damaged file. Never raises."""


class AudioDecoder(Protocol):
    """Decodes audio files into the samples of a prompt. Thread-safe."""

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
    """Decodes video clips held in memory. Thread-safe."""

    @abstractmethod
    def decode(self, video: EncodedVideo) -> ReadVideo:
        """Return the frames that the clip's sampling selects, upright, and the clip's metadata.

        No file or address that the clip refers to is opened. Time and memory are limited whatever the clip contains,
        and no work continues after the return.

        Raises:
            ValidationError: The clip is damaged, truncated or too long, has too many pixels or no frames, or takes too
                much time or memory; or the sampling is out of range.
            BackendNotInstalledError: Decoding needs a package that is not installed.
        """


class MediaSource(Protocol):
    """Reads media that a request refers to by a path or an address. Thread-safe."""

    @abstractmethod
    def read(self, reference: str, kind: MediaKind, max_bytes: int, seconds: float) -> bytes:
        """Return the content of a file.

        Args:
            reference: The path or address, as the client wrote it.
            kind: The expected kind of media; the content is not checked against it.
            max_bytes: Largest size in bytes, at most that of the kind.
            seconds: Timeout of a transfer over the network.

        Raises:
            ValidationError: The file is missing, not allowed, too large or too slow. The message continues a sentence
                that begins with the name of a field, and reveals nothing about places that may not be read.
        """


class SoundEncoder(Protocol):
    """Encodes sound in compressed formats. Thread-safe."""

    @abstractmethod
    def problem(self, kind: str) -> str | None:
        """Return why this machine cannot encode a format; None when it can.

        Args:
            kind: The format: ``mp3``, ``opus``, ``aac`` or ``flac``.
        """

    @abstractmethod
    def encode(self, pcm: bytes, sample_rate: int, kind: str) -> bytes:
        """Return the content of a sound file.

        Args:
            pcm: Mono samples, signed 16-bit little-endian.
            sample_rate: Hz.
            kind: The format, as for ``problem``.

        Raises:
            BackendNotInstalledError: The encoder of this format is not installed.
            ExecutionError: Encoding failed, or took too long.
        """
