"""Reads the media of requests: uploads in a form, base64, data URLs, and files and addresses that a request may name.

Media references of content parts are resolved only here, for every API.
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
"""Largest form with an audio file."""

NAME = "the recording"
"""What error messages call a recording without a file name."""

_CHUNK = 256 * 1024


class Upload:
    """An uploaded audio file in a temporary folder. As a context manager, it removes the file at the end."""

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
            PayloadTooLargeError: The file is too large.
            ValidationError: The file is empty.
            StorageError: It cannot be written.
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
"""Head of a data URL. Its media type is ignored: many clients do not know it, and the content shows the format."""

_BASE64 = re.compile(r"[A-Za-z0-9+/\s]*+={0,2}\s*+")
_JPEG = "/9j/"
"""The beginning of a JPEG in base64; no other image format begins with a slash, as a path does."""


def is_data_url(text: str) -> bool:
    """Whether a text is a data URL of any kind."""
    return text[:5].lower() == "data:"


def _standard_alphabet(encoded: str) -> str:
    """Return base64 in the standard alphabet; it may be in the URL-safe one."""
    return encoded.replace("-", "+").replace("_", "/")


def read_base64(encoded: str, path: str, kind: MediaKind | None = None) -> bytes:
    """Decode a data URL or base64: of either alphabet, with or without padding and white space.

    Args:
        encoded: The value of the field.
        path: The path of the field.
        kind: Its limit of size is checked before decoding; None leaves that to the caller.

    Raises:
        ValidationError: The value is not base64, or empty, or too large.
    """
    head = _DATA_URL.match(encoded)
    if head is None and is_data_url(encoded):
        raise ValidationError.in_field(path, "must be data:<type>;base64,<data>")
    encoded = encoded if head is None else encoded[head.end() :]
    if head is not None and "%" in encoded:
        encoded = unquote(encoded)
    encoded = _standard_alphabet("".join(encoded.split())).rstrip("=")
    if kind is not None:
        kind.check_size(len(encoded) * 3 // 4, path)
    try:
        decoded = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except ValueError as error:  # also for characters outside ASCII
        raise ValidationError.in_field(path, "is not valid base64") from error
    if not decoded:
        raise ValidationError.in_field(path, "is empty")
    return decoded


@attrs.frozen
class MediaReader:
    """Reads the media of messages.

    Args:
        decoder: Decodes audio.
        named: Reads files and addresses that the operator allows messages to name.
        clock: Limits the time to fetch them.
    """

    decoder: AudioDecoder
    named: NamedMedia
    clock: Clock

    def of_request(self) -> "PartReader":
        """Return the reader for the parts of one request."""
        return PartReader(self.decoder, self.named.of_request(self.clock.monotonic))


@attrs.frozen
class PartReader:
    """Reads the media in the content parts of one request."""

    decoder: AudioDecoder
    named: RequestMedia

    def image(self, url: str, path: str) -> EncodedImage:
        """Return the image of a part.

        Args:
            url: Base64, a data URL, or an address or path that the operator allows.
            path: The path of the field.

        Raises:
            ValidationError: It is none of these, or the image cannot be read, is empty, too large or of an unknown
                format.
        """
        url = url.lstrip()
        if is_address(url) or (is_path(url) and not url.startswith(_JPEG)):
            return EncodedImage.of(self.named.read(url, IMAGES, path), path)
        if not is_data_url(url) and (not url or not _BASE64.fullmatch(_standard_alphabet(url))):
            raise _not_readable(url, path)
        return EncodedImage.of(read_base64(url, path, IMAGES), path)

    def video(self, reference: str, sampling: VideoSampling, path: str) -> EncodedVideo:
        """Return the clip of a part.

        Args:
            reference: Base64, a data URL, or an address or path that the operator allows.
            sampling: How frames are sampled for the model.
            path: The path of the field.

        Raises:
            ValidationError: It is none of these, or the clip cannot be read, is empty, too large or in an unknown
                container.
        """
        reference = reference.lstrip()
        # No container format begins with a slash in base64.
        if is_address(reference) or is_path(reference):
            return EncodedVideo.of(self.named.read(reference, VIDEOS, path), path, sampling)
        return EncodedVideo.of(read_base64(reference, path, VIDEOS), path, sampling)

    def frames(self, references: Sequence[str], path: str) -> tuple[EncodedImage, ...]:
        """Return the frames of a clip that the client sampled; see ``image``.

        Raises:
            ValidationError: A frame cannot be read, or they are too large together.
        """
        images: list[EncodedImage] = []
        for index, each in enumerate(references):
            images.append(self.image(each, f"{path}[{index}]"))
            check_together([len(image.data) for image in images], path)
        return tuple(images)

    def recording(self, data: str, path: str) -> bytes:
        """Return the file of a recording.

        Args:
            data: Base64, a data URL, or an address or path that the operator allows.
            path: The path of the field.

        Raises:
            ValidationError: It is none of these, or the recording cannot be read, or is empty.
        """
        data = data.lstrip()
        if is_address(data) or names_file(data):
            content = self.named.read(data, RECORDINGS, path)
            if not content:
                raise ValidationError.in_field(path, "is empty")
            return content
        return read_base64(data, path)

    def audio(self, data: str, path: str) -> DecodedAudio:
        """Return the decoded samples of a recording.

        Args:
            data: As for ``recording``.
            path: The path of the field.

        Raises:
            ValidationError: It is no audio, too long for a model, or as for ``recording``.
            PayloadTooLargeError: The file is too large.
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
    """Whether a text is the path or URL of a file, and not base64, which may begin with a slash as well."""
    return is_path(text) and not (text.startswith("/") and _BASE64.fullmatch(text))


def _not_readable(url: str, path: str) -> ValidationError:
    if not url:
        return ValidationError.in_field(path, "cannot be empty")
    fault = "must be a data URL (data:image/jpeg;base64,...), an address (https://...) or a path (/...)"
    return ValidationError.in_field(path, fault, hint=Advice(Remedy.ALLOW_MEDIA_PATHS))
