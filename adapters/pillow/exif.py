"""EXIF facts, by Pillow, which is imported for the first image."""

from mlxk.application.ports.exif_reader import ExifReader
from mlxk.domain.image_facts import ImageFacts
from mlxk.domain.media import EncodedImage


class PillowExifReader(ExifReader):
    """Reads the EXIF of whatever Pillow opens."""

    def read(self, image: EncodedImage) -> ImageFacts:
        """Return the facts; see the port."""
        from mlxk.adapters.pillow import exif_facts  # noqa: PLC0415 - servers that never see an image do without

        return exif_facts.facts_of(image)
