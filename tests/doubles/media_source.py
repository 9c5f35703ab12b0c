"""In-memory double of a media source: contents by reference."""

from collections.abc import Mapping

from mlxk.application.ports.media import MediaSource
from mlxk.domain.errors import ValidationError
from mlxk.domain.generation.media import MediaKind


class InMemoryMediaSource(MediaSource):
    """Returns given contents.

    Args:
        contents: Content by reference; any other file is missing.
    """

    def __init__(self, contents: Mapping[str, bytes]) -> None:
        self._contents = contents
        self.asked: list[str] = []

    def read(self, reference: str, kind: MediaKind, max_bytes: int, seconds: float) -> bytes:
        self.asked.append(reference)
        if reference not in self._contents:
            raise ValidationError("there is no such file")
        content = self._contents[reference]
        if len(content) > max_bytes:
            raise ValidationError(f"the {kind.name} is too large")
        return content
