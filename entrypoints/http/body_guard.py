"""How large the body of a request may be: the operator's limit, and another one for files of sound."""

import falcon

from mlxk.domain.errors import PayloadTooLargeError
from mlxk.domain.sound import MAX_AUDIO_BYTES

UPLOAD_PATHS = frozenset({"/v1/audio/transcriptions", "/v1/audio/translations"})

LARGEST_UPLOAD_BYTES = MAX_AUDIO_BYTES + 1024 * 1024
"""A file of sound, and the form around it."""


class BodyGuard:
    """Refuses bodies that are too large for their address.

    Args:
        limit_bytes: The operator's, for everything but files of sound.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes

    def process_request(self, request: falcon.Request, response: falcon.Response) -> None:
        """Compare the length that the server counted.

        Raises:
            PayloadTooLargeError: The body is larger.
        """
        upload = request.path.rstrip("/") in UPLOAD_PATHS
        if (request.content_length or 0) > (LARGEST_UPLOAD_BYTES if upload else self._limit):
            raise PayloadTooLargeError("The request body is larger than the server takes.")
