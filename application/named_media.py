"""Media that a request refers to by a path or a URL, read where the operator allows it."""

from collections.abc import Callable

import attrs

from mlxk.application.ports.media import MediaSource
from mlxk.domain.errors import Advice, Remedy, ValidationError
from mlxk.domain.generation.media import MAX_NAMED, MAX_NAMED_BYTES, MAX_NAMED_SECONDS, MIB, MediaKind

_ADDRESSES = ("http://", "https://")
_FILE = "file:"


def is_address(text: str) -> bool:
    """Whether a text is an ``http`` or ``https`` URL."""
    return text[:8].lower().startswith(_ADDRESSES)


def is_path(text: str) -> bool:
    """Whether a text is an absolute path or a ``file`` URL."""
    return text.startswith("/") or text[:5].lower() == _FILE


@attrs.frozen
class NamedMedia:
    """The sources of media that the operator allows requests to refer to."""

    files: MediaSource | None = None
    """Reads files by path; None when no folder is allowed."""
    addresses: MediaSource | None = None
    """Fetches files by URL; None when that is not allowed."""

    def of_request(self, monotonic: Callable[[], float]) -> "RequestMedia":
        """Return the reader for one request.

        Args:
            monotonic: Returns seconds of a monotonic clock.
        """
        return RequestMedia(self, monotonic)


class RequestMedia:
    """Reads the media that one request refers to, each reference once, within limits on their sum. Not thread-safe.

    Args:
        allowed: The sources that the operator allows.
        monotonic: Returns seconds of a monotonic clock.
    """

    def __init__(self, allowed: NamedMedia, monotonic: Callable[[], float]) -> None:
        self._allowed = allowed
        self._monotonic = monotonic
        self._read: dict[str, bytes] = {}
        self._bytes_left = MAX_NAMED_BYTES
        self._seconds_left = MAX_NAMED_SECONDS

    def read(self, reference: str, kind: MediaKind, field: str) -> bytes:
        """Return the content of the file that a reference names.

        Args:
            reference: A path or URL, for which ``is_path`` or ``is_address`` holds.
            kind: The expected kind of media.
            field: The field of the request, for errors.

        Raises:
            ValidationError: The source is not allowed, a limit is exceeded, or the file cannot be read.
        """
        if reference in self._read:
            return self._read[reference]
        source = self._source(reference, field)
        if len(self._read) == MAX_NAMED:
            raise ValidationError.in_field(field, f"a request names at most {MAX_NAMED} files and addresses")
        limit, began = min(kind.max_bytes, self._bytes_left), self._monotonic()
        try:
            data = source.read(reference, kind, limit, self._seconds_left)
        except ValidationError as error:
            raise ValidationError.in_field(field, error.message, hint=error.hint or self._hint(kind, limit)) from error
        if is_address(reference):
            self._seconds_left = max(0.0, self._seconds_left - (self._monotonic() - began))
        self._bytes_left -= len(data)
        self._read[reference] = data
        return data

    def _source(self, reference: str, field: str) -> MediaSource:
        if is_address(reference):
            source, noun, remedy = self._allowed.addresses, "an address", Remedy.ALLOW_REMOTE_MEDIA
        else:
            source, noun, remedy = self._allowed.files, "the path of a file", Remedy.ALLOW_MEDIA_PATHS
        if source is None:
            fault = f"is {noun}, which this server does not read; send the content itself, in base64"
            raise ValidationError.in_field(field, fault, hint=Advice(remedy))
        return source

    def _hint(self, kind: MediaKind, limit: int) -> str | None:
        if limit == kind.max_bytes:
            return None
        return f"All that a request names has at most {MAX_NAMED_BYTES // MIB} MiB together."
