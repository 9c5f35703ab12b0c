"""The contract of decoding images, held by every adapter."""

import io
from collections.abc import Callable

import pytest
from doubles.image_decoder import InMemoryImageDecoder
from PIL import Image

from mlxk.adapters.pillow.images import PillowImageDecoder
from mlxk.application.ports.image_decoder import ImageDecoder
from mlxk.domain.errors import ValidationError
from mlxk.domain.generation.media import EncodedImage

Build = Callable[[EncodedImage], ImageDecoder]


def one_pixel(colour: tuple[int, int, int] = (200, 30, 40)) -> EncodedImage:
    """Return a whole image."""
    buffer = io.BytesIO()
    Image.new("RGB", (1, 1), colour).save(buffer, "PNG")
    return EncodedImage.of(buffer.getvalue(), "test", "dot.png")


def cut_short() -> EncodedImage:
    """Return an image that lacks its end."""
    return EncodedImage.of(one_pixel().data[:40], "test", "cut.png")


@pytest.fixture(params=["pillow", "in_memory"])
def decoder(request: pytest.FixtureRequest) -> ImageDecoder:
    """Return a decoder for which ``cut_short`` is damaged."""
    return PillowImageDecoder() if request.param == "pillow" else InMemoryImageDecoder({cut_short().digest})


class TestImageDecoder:
    def test_there_are_three_bytes_a_pixel(self, decoder: ImageDecoder) -> None:
        found = decoder.decode(one_pixel())
        assert (found.width, found.height, len(found.pixels)) == (1, 1, 3)

    def test_the_digest_is_that_of_the_encoded_image(self, decoder: ImageDecoder) -> None:
        assert decoder.decode(one_pixel()).digest == one_pixel().digest

    def test_the_same_image_gives_the_same_pixels(self, decoder: ImageDecoder) -> None:
        assert decoder.decode(one_pixel()) == decoder.decode(one_pixel())
        assert decoder.decode(one_pixel()) != decoder.decode(one_pixel((1, 2, 3)))

    def test_a_damaged_image_is_refused_by_name(self, decoder: ImageDecoder) -> None:
        with pytest.raises(ValidationError, match=r"'cut\.png' is damaged, or no complete PNG image"):
            decoder.decode(cut_short())
