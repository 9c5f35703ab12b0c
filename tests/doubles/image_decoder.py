"""Images of one colour, for use cases and doors."""

from collections.abc import Collection

from mlxk.application.ports.image_decoder import ImageDecoder
from mlxk.domain.errors import ValidationError
from mlxk.domain.generation.media import DecodedImage, EncodedImage


class InMemoryImageDecoder(ImageDecoder):
    """Decodes every image into one pixel, whose colour its digest decides.

    Args:
        damaged: The digests of images that cannot be decoded.
    """

    def __init__(self, damaged: Collection[str] = ()) -> None:
        self._damaged = damaged

    def decode(self, image: EncodedImage) -> DecodedImage:
        """Decode an image; see the port."""
        if image.digest in self._damaged:
            raise image.refused(ValidationError, f"is damaged, or no complete {image.format.name} image")
        return DecodedImage(1, 1, bytes.fromhex(image.digest[:6]), image.digest)
