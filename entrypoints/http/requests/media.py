"""The media of requests: recordings in a form, base64 and data URLs, and what may be named by path or address.

This is the only place where the reference of a content part is resolved, whichever API it comes through.
"""

import base64
import io
import os
import re
import tempfile
from collections.abc import Sequence
from types import TracebackType
from typing import BinaryIO, Self
from urllib.parse import unquote

import attrs

from mlxk.application.named_media import NamedMedia, RequestMedia, is_address, is_path
from mlxk.application.ports.media import AudioDecoder
from mlxk.application.ports.system import Clock
from mlxk.domain.errors import (
    Advice,
    BackendNotInstalledError,
    PayloadTooLargeError,
    Remedy,
    StorageError,
    ValidationError,
)
from mlxk.domain.generation.media import (
    IMAGES,
    MAX_AUDIO_BYTES,
    RECORDINGS,
    DecodedAudio,
    EncodedImage,
    MediaKind,
    check_audio_length,
    check_together,
)
from mlxk.domain.generation.video import VIDEOS, EncodedVideo, VideoSampling
from mlxk.entrypoints.http.requests.validation import located

MAX_UPLOAD_BYTES = MAX_AUDIO_BYTES + 1024 * 1024
"""An audio file and the form around it."""

NAME = "the recording"
"""Name of a recording without a file name, in error messages."""

_CHUNK = 256 * 1024


class Upload:
    """An uploaded audio file in a temporary folder; a context manager that removes it."""

    def __init__(self) -> None:
        try:
            self._folder = tempfile.TemporaryDirectory(prefix="mlxk-upload-")
        except OSError as error:
            raise _cannot_store(error) from error
        self.path = os.path.join(self._folder.name, "sound")
        self.name = "file"
        """The file name of the client, without directories."""
        self.arrived = False

    def receive(self, stream: BinaryIO, name: str | None) -> None:
        """Write the file to disk.

        Raises:
            PayloadTooLargeError: It is too large.
            ValidationError: It is empty.
            StorageError: The disk refuses.
        """
        if name:
            self.name = safe_file_name(name)
        try:
            size = self._write(stream)
        except OSError as error:
            raise _cannot_store(error) from error
        self.arrived = True
        if size == 0:
            raise ValidationError("Empty audio file")

    def _write(self, stream: BinaryIO) -> int:
        size = 0
        with open(self.path, "wb") as file:
            while data := stream.read(_CHUNK):
                size += len(data)
                if size > MAX_AUDIO_BYTES:
                    raise PayloadTooLargeError(f"Audio file exceeds {MAX_AUDIO_BYTES // 1000**2} MB limit")
                file.write(data)
        return size

    def close(self) -> None:
        """Remove the file. May be called twice."""
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _cannot_store(error: OSError) -> StorageError:
    return StorageError(
        f"The recording cannot be stored: {error.strerror}.",
        hint="The server needs space in its folder for temporary files; see TMPDIR.",
    )


def safe_file_name(name: str) -> str:
    """Return the last part of a file name, without characters that messages must not repeat."""
    last = name.replace("\\", "/").rpartition("/")[2]
    return "".join(character for character in last if character.isprintable())[:100] or "file"


_DATA_URL = re.compile(r"data:.{0,400}?;base64,", re.IGNORECASE | re.DOTALL)
"""Its media type and parameters are not looked at: many clients do not know them, and the content says what it is."""

_BASE64 = re.compile(r"[A-Za-z0-9+/\s]*+={0,2}\s*+")
_JPEG = "/9j/"
"""How a JPEG begins in base64, which is the only image that begins as a path does."""


def is_data_url(text: str) -> bool:
    """Whether a text is a data URL, of whatever kind."""
    return text[:5].lower() == "data:"


def _usual(encoded: str) -> str:
    """Return base64 in its usual alphabet, where it may be in that for addresses."""
    return encoded.replace("-", "+").replace("_", "/")


def read_base64(encoded: str, path: str, kind: MediaKind | None = None) -> bytes:
    """Return what a data URL or plain base64 holds: with padding or without, with white space, of either alphabet.

    Args:
        encoded: The value of the field.
        path: The field.
        kind: What it is, so that its size is checked first; None leaves that to the caller.

    Raises:
        ValidationError: It is not base64, or empty, or too large.
    """
    opening = _DATA_URL.match(encoded)
    if opening is None and is_data_url(encoded):
        raise ValidationError.in_field(path, "must be data:<type>;base64,<data>")
    encoded = encoded if opening is None else encoded[opening.end() :]
    if opening is not None and "%" in encoded:
        encoded = unquote(encoded)
    encoded = _usual("".join(encoded.split())).rstrip("=")
    if kind is not None:
        kind.check_size(len(encoded) * 3 // 4, path)
    try:
        decoded = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except ValueError as error:  # characters beyond ASCII, too
        raise ValidationError.in_field(path, "is not valid base64") from error
    if not decoded:
        raise ValidationError.in_field(path, "is empty")
    return decoded


@attrs.frozen
class MediaReader:
    """Reads the media of messages.

    Args:
        decoder: Decodes sound.
        named: What the operator allows messages to name.
        clock: Measures how long it takes to fetch.
    """

    decoder: AudioDecoder
    named: NamedMedia
    clock: Clock

    def of_request(self) -> "PartReader":
        """Return the reader for the parts of one request."""
        return PartReader(self.decoder, self.named.of_request(self.clock.monotonic))


@attrs.frozen
class PartReader:
    """Reads the media of the parts of one request."""

    decoder: AudioDecoder
    named: RequestMedia

    def image(self, url: str, path: str) -> EncodedImage:
        """Return the image of a part.

        Args:
            url: It in base64 or as a data URL, or an address or path that the operator allows.
            path: The field.

        Raises:
            ValidationError: It is neither, or the image cannot be had, is empty, too large or of an unknown format.
        """
        url = url.lstrip()
        if is_address(url) or (is_path(url) and not url.startswith(_JPEG)):
            return EncodedImage.of(self.named.read(url, IMAGES, path), path)
        if not is_data_url(url) and (not url or not _BASE64.fullmatch(_usual(url))):
            raise _not_readable(url, path)
        return EncodedImage.of(read_base64(url, path, IMAGES), path)

    def video(self, reference: str, sampling: VideoSampling, path: str) -> EncodedVideo:
        """Return the clip of a part.

        Args:
            reference: It in base64 or as a data URL, or an address or path that the operator allows.
            sampling: Which of its frames the model gets.
            path: The field.

        Raises:
            ValidationError: It is neither, or the clip cannot be had, is empty, too large or in an unknown container.
        """
        reference = reference.lstrip()
        # No clip in base64 begins as a path does.
        if is_address(reference) or is_path(reference):
            return EncodedVideo.of(self.named.read(reference, VIDEOS, path), path, sampling)
        return EncodedVideo.of(read_base64(reference, path, VIDEOS), path, sampling)

    def frames(self, references: Sequence[str], path: str) -> tuple[EncodedImage, ...]:
        """Return the frames that a client took of a clip; see ``image``.

        Raises:
            ValidationError: One cannot be had, or they are too large together.
        """
        found: list[EncodedImage] = []
        for index, each in enumerate(references):
            found.append(self.image(each, f"{path}[{index}]"))
            check_together([len(image.data) for image in found], path)
        return tuple(found)

    def recording(self, data: str, path: str) -> bytes:
        """Return the file of a recording.

        Args:
            data: It in base64 or as a data URL, or an address or path that the operator allows.
            path: The field.

        Raises:
            ValidationError: It is neither, or cannot be had, or is empty.
        """
        data = data.lstrip()
        if is_address(data) or names_file(data):
            found = self.named.read(data, RECORDINGS, path)
            if not found:
                raise ValidationError.in_field(path, "is empty")
            return found
        return read_base64(data, path)

    def audio(self, data: str, path: str) -> DecodedAudio:
        """Return the decoded samples of a recording.

        Args:
            data: As for ``recording``.
            path: The field.

        Raises:
            ValidationError: It is no sound, too long for a model, or as for ``recording``.
            PayloadTooLargeError: It is too large.
            BackendNotInstalledError: Its format needs a package or program that is not installed.
        """
        encoded = self.recording(data, path)
        try:
            with Upload() as upload:
                upload.receive(io.BytesIO(encoded), NAME)
                audio = self.decoder.decode(upload.path, NAME)
            check_audio_length(audio, NAME)
        except (ValidationError, PayloadTooLargeError, BackendNotInstalledError) as error:
            raise located(error, path, {"file": path}) from error
        return audio


def names_file(text: str) -> bool:
    """Whether a text that may be base64, which can begin with a slash as well, is the path or the URL of a file."""
    return is_path(text) and not (text.startswith("/") and _BASE64.fullmatch(text))


def _not_readable(url: str, path: str) -> ValidationError:
    if not url:
        return ValidationError.in_field(path, "cannot be empty")
    fault = "must be a data URL (data:image/jpeg;base64,...), an address (https://...) or a path (/...)"
    return ValidationError.in_field(path, fault, hint=Advice(Remedy.ALLOW_MEDIA_PATHS))
