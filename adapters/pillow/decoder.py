"""Images as pixels, by Pillow, which is imported for the first image."""

from mlxk.application.ports.image_decoder import ImageDecoder
from mlxk.domain.media import DecodedImage, EncodedImage


class PillowImageDecoder(ImageDecoder):
    """Decodes what Pillow reads: JPEG, PNG, GIF, WebP and AVIF; HEIC with pillow-heif."""

    def decode(self, image: EncodedImage) -> DecodedImage:
        """Decode an image; see the port."""
        from mlxk.adapters.pillow import pixels  # noqa: PLC0415 - servers that never see an image do without

        return pixels.decoded(image)
