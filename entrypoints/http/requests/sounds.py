"""Sound in a message: base64 in the field, a file for as long as it takes to decode it, samples in the end."""

import base64
import io

import attrs

from mlxk.application.ports.audio_decoder import AudioDecoder
from mlxk.domain.errors import PayloadTooLargeError, ValidationError
from mlxk.domain.generation.media import DecodedAudio, check_audio_length
from mlxk.entrypoints.http.requests.audio import Upload
from mlxk.entrypoints.http.requests.field_errors import located

NAME = "input_audio"
"""What refusals call a recording that has no name of its own."""


@attrs.frozen
class AudioReader:
    """Reads the recordings in messages."""

    decoder: AudioDecoder

    def __call__(self, data: str, path: str) -> DecodedAudio:
        """Return a recording as a model hears it.

        Args:
            data: As the client sent it, in base64.
            path: The field it stands in.

        Raises:
            ValidationError: It is no base64, no sound, empty, or longer than a model hears.
            PayloadTooLargeError: It is too large.
            BackendNotInstalledError: Its format needs a package or program that is not installed.
        """
        encoded = read_base64(data, path)
        try:
            with Upload() as upload:
                upload.receive(io.BytesIO(encoded), NAME)
                sound = self.decoder.decode(upload.path, upload.name)
            check_audio_length(sound, NAME)
        except (ValidationError, PayloadTooLargeError) as error:
            raise located(error, path) from error
        return sound


def read_base64(data: str, path: str) -> bytes:
    """Return the bytes of a recording.

    Args:
        data: As the client sent it.
        path: The field it stands in.

    Raises:
        ValidationError: It is no base64, or empty.
    """
    try:
        decoded = base64.b64decode(data, validate=True)
    except ValueError as error:  # characters beyond ASCII, too
        raise ValidationError.in_field(path, "is not valid base64") from error
    if not decoded:
        raise ValidationError.in_field(path, "is empty")
    return decoded
