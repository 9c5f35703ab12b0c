"""Port: what a photo says about itself."""

from abc import abstractmethod
from typing import Protocol

from mlxk.domain.generation.image_table import ImageFacts
from mlxk.domain.generation.media import EncodedImage


class ExifReader(Protocol):
    """Reads the facts that cameras write into photos. Safe to share between threads."""

    @abstractmethod
    def read(self, image: EncodedImage) -> ImageFacts:
        """Return the facts that are there and make sense; none for an image that cannot be read. Decodes no pixel."""
