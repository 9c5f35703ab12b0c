"""Facts told beforehand, for use cases and doors."""

from collections.abc import Mapping

from mlxk.application.ports.exif_reader import ExifReader
from mlxk.domain.generation.image_table import ImageFacts
from mlxk.domain.generation.media import EncodedImage


class InMemoryExifReader(ExifReader):
    """Knows the facts it was told, by the digest of the image.

    Args:
        facts: What images say about themselves; one that is missing here says nothing.
    """

    def __init__(self, facts: Mapping[str, ImageFacts] | None = None) -> None:
        self._facts = dict(facts or {})

    def read(self, image: EncodedImage) -> ImageFacts:
        """Return the facts; see the port."""
        return self._facts.get(image.digest, ImageFacts())
