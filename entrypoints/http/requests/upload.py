"""Audio files from clients: uploaded in a form, or in base64 within a message."""

import base64
import os
import tempfile
from types import TracebackType
from typing import BinaryIO, Self

from mlxk.domain.errors import PayloadTooLargeError, StorageError, ValidationError
from mlxk.domain.generation.media import MAX_AUDIO_BYTES

MAX_UPLOAD_BYTES = MAX_AUDIO_BYTES + 1024 * 1024
"""An audio file and the form around it."""

NAME = "input_audio"
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


def read_base64(data: str, path: str) -> bytes:
    """Return the bytes of a recording in base64.

    Args:
        data: The value of the field.
        path: The field.

    Raises:
        ValidationError: It is not base64, or empty.
    """
    try:
        decoded = base64.b64decode(data, validate=True)
    except ValueError as error:  # characters beyond ASCII, too
        raise ValidationError.in_field(path, "is not valid base64") from error
    if not decoded:
        raise ValidationError.in_field(path, "is empty")
    return decoded


def safe_file_name(name: str) -> str:
    """Return the last part of a file name, without characters that messages must not repeat."""
    last = name.replace("\\", "/").rpartition("/")[2]
    return "".join(character for character in last if character.isprintable())[:100] or "file"
