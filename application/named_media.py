"""Media that a request names by a path or an address, read where the operator allows it."""

from collections.abc import Callable

import attrs

from mlxk.application.ports.media import MediaSource
from mlxk.domain.errors import Advice, Remedy, ValidationError
from mlxk.domain.generation.media import MAX_NAMED, MAX_NAMED_BYTES, MAX_NAMED_SECONDS, MIB, MediaKind

_ADDRESSES = ("http://", "https://")
_FILE = "file:"


def is_address(text: str) -> bool:
    """Whether a text is an address of the web."""
    return text[:8].lower().startswith(_ADDRESSES)


def is_path(text: str) -> bool:
    """Whether a text is a path from the root on, or the URL of a file."""
    return text.startswith("/") or text[:5].lower() == _FILE


@attrs.frozen
class NamedMedia:
    """What the operator allows requests to name."""

    files: MediaSource | None = None
    """Reads files; None where no folder is allowed."""
    addresses: MediaSource | None = None
    """Fetches what is at addresses; None where that is not allowed."""

    def of_request(self, monotonic: Callable[[], float]) -> "RequestMedia":
        """Return the reader for one request.

        Args:
            monotonic: Returns seconds of a monotonic clock.
        """
        return RequestMedia(self, monotonic)


class RequestMedia:
    """Reads what one request names, each reference once, within limits for all of them. For one thread.

    Args:
        allowed: What the operator allows.
        monotonic: Returns seconds of a monotonic clock.
    """

    def __init__(self, allowed: NamedMedia, monotonic: Callable[[], float]) -> None:
        self._allowed = allowed
        self._monotonic = monotonic
        self._read: dict[str, bytes] = {}
        self._bytes_left = MAX_NAMED_BYTES
        self._seconds_left = MAX_NAMED_SECONDS

    def read(self, reference: str, kind: MediaKind, field: str) -> bytes:
        """Return the file of a path or an address.

        Args:
            reference: One for which ``is_path`` or ``is_address`` holds.
            kind: What it is to be.
            field: Of the request.

        Raises:
            ValidationError: It is not allowed, or cannot be had; the error names the field.
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
            source, what, remedy = self._allowed.addresses, "is an address", Remedy.ALLOW_REMOTE_MEDIA
        else:
            source, what, remedy = self._allowed.files, "is the path of a file", Remedy.ALLOW_MEDIA_PATHS
        if source is None:
            fault = f"{what}, which this server does not read; send the content itself, in base64"
            raise ValidationError.in_field(field, fault, hint=Advice(remedy))
        return source

    def _hint(self, kind: MediaKind, limit: int) -> str | None:
        if limit == kind.max_bytes:
            return None
        return f"All that a request names has at most {MAX_NAMED_BYTES // MIB} MiB together."
