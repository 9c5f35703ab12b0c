"""The contract of the image reader, run on every adapter."""

import datetime
import io

import pytest
from doubles.image_reader import InMemoryImageReader
from PIL import ExifTags, Image

from mlxk.adapters.pillow import PillowImageReader
from mlxk.application.ports.media import ImageReader
from mlxk.domain.errors import ValidationError
from mlxk.domain.generation.media import EncodedImage
from mlxk.domain.generation.media_facts import ImageFacts

FACTS = ImageFacts(datetime.datetime(2024, 5, 1, 12, 30, 15), 48.25, -11.5, "Apple iPhone SE")


def one_pixel(colour: tuple[int, int, int] = (200, 30, 40)) -> EncodedImage:
    """Return a complete image."""
    buffer = io.BytesIO()
    Image.new("RGB", (1, 1), colour).save(buffer, "PNG")
    return EncodedImage.of(buffer.getvalue(), "test", "dot.png")


def cut_short() -> EncodedImage:
    """Return a truncated image."""
    return EncodedImage.of(one_pixel().data[:40], "test", "cut.png")


def encoded(exif: Image.Exif | None = None) -> EncodedImage:
    """Return a JPEG."""
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2)).save(buffer, "JPEG", exif=exif or Image.Exif())
    return EncodedImage.of(buffer.getvalue(), "test")


def photo() -> EncodedImage:
    """Return a JPEG whose EXIF holds ``FACTS``."""
    exif = Image.Exif()
    exif[ExifTags.Base.Make], exif[ExifTags.Base.Model] = "Apple", "iPhone SE"
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = "2024:05:01 12:30:15"
    place = exif.get_ifd(ExifTags.IFD.GPSInfo)
    place.update({ExifTags.GPS.GPSLatitude: (48.0, 15.0, 0.0), ExifTags.GPS.GPSLatitudeRef: "N"})
    place.update({ExifTags.GPS.GPSLongitude: (11.0, 30.0, 0.0), ExifTags.GPS.GPSLongitudeRef: "W"})
    return encoded(exif)


@pytest.fixture(params=["pillow", "in_memory"])
def reader(request: pytest.FixtureRequest) -> ImageReader:
    """Return a reader for which ``cut_short`` is damaged and ``photo`` has EXIF."""
    if request.param == "pillow":
        return PillowImageReader()
    return InMemoryImageReader({cut_short().digest}, {photo().digest: FACTS})


class TestDecode:
    def test_there_are_three_bytes_a_pixel(self, reader: ImageReader) -> None:
        found = reader.decode(one_pixel())
        assert (found.width, found.height, len(found.pixels)) == (1, 1, 3)

    def test_the_digest_is_that_of_the_encoded_image(self, reader: ImageReader) -> None:
        assert reader.decode(one_pixel()).digest == one_pixel().digest

    def test_the_same_image_gives_the_same_pixels(self, reader: ImageReader) -> None:
        assert reader.decode(one_pixel()) == reader.decode(one_pixel())
        assert reader.decode(one_pixel()) != reader.decode(one_pixel((1, 2, 3)))

    def test_a_damaged_image_is_refused_by_name(self, reader: ImageReader) -> None:
        with pytest.raises(ValidationError, match=r"'cut\.png' is damaged, or no complete PNG image"):
            reader.decode(cut_short())


class TestReadExif:
    def test_the_facts_of_a_photo_are_read(self, reader: ImageReader) -> None:
        assert reader.read_exif(photo()) == FACTS

    def test_an_image_without_exif_has_no_facts(self, reader: ImageReader) -> None:
        assert reader.read_exif(encoded()) == ImageFacts()

    def test_a_damaged_image_has_no_facts(self, reader: ImageReader) -> None:
        assert reader.read_exif(EncodedImage.of(encoded().data[:30], "test")) == ImageFacts()
