"""Port: encoded images as pixels."""

from abc import abstractmethod
from typing import Protocol

from mlxk.domain.generation.media import DecodedImage, EncodedImage


class ImageDecoder(Protocol):
    """Turns files of images into what is to be looked at. Safe to share between threads."""

    @abstractmethod
    def decode(self, image: EncodedImage) -> DecodedImage:
        """Decode an image: its first frame, turned upright, transparent parts on white.

        Raises:
            ValidationError: It is damaged, cut short, or has more than ``MAX_IMAGE_PIXELS`` pixels.
            BackendNotInstalledError: Reading its format needs a package that is not installed.
        """
