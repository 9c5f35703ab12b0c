"""In-memory double of the image reader.

reader = InMemoryImageReader(damaged={digest}, exif={other: ImageFacts(camera="Apple iPhone SE")})
"""

from collections.abc import Collection, Mapping

from mlxk.application.ports.media import ImageReader
from mlxk.domain.errors import ValidationError
from mlxk.domain.generation.media import DecodedImage, EncodedImage
from mlxk.domain.generation.media_facts import ImageFacts


class InMemoryImageReader(ImageReader):
    """Decodes every image into one pixel, whose colour is derived from the image's digest.

    Args:
        damaged: The digests of images that cannot be decoded.
        exif: EXIF metadata by digest; other images have none.
    """

    def __init__(self, damaged: Collection[str] = (), exif: Mapping[str, ImageFacts] | None = None) -> None:
        self._damaged = damaged
        self._exif = dict(exif or {})

    def decode(self, image: EncodedImage) -> DecodedImage:
        if image.digest in self._damaged:
            raise image.refused(ValidationError, f"is damaged, or no complete {image.format.name} image")
        return DecodedImage(1, 1, bytes.fromhex(image.digest[:6]), image.digest)

    def read_exif(self, image: EncodedImage) -> ImageFacts:
        return self._exif.get(image.digest, ImageFacts())
