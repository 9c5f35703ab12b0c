"""The contract of reading what photos say about themselves, held by every adapter."""

import datetime
import io

import pytest
from doubles.exif_reader import InMemoryExifReader
from PIL import ExifTags, Image

from mlxk.adapters.pillow.exif import PillowExifReader
from mlxk.application.ports.exif_reader import ExifReader
from mlxk.domain.generation.image_table import ImageFacts
from mlxk.domain.generation.media import EncodedImage

FACTS = ImageFacts(datetime.datetime(2024, 5, 1, 12, 30, 15), 48.25, -11.5, "Apple iPhone SE")


def encoded(exif: Image.Exif | None = None) -> EncodedImage:
    """Return a JPEG."""
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2)).save(buffer, "JPEG", exif=exif or Image.Exif())
    return EncodedImage.of(buffer.getvalue(), "test")


def photo() -> EncodedImage:
    """Return a JPEG that states ``FACTS``."""
    exif = Image.Exif()
    exif[ExifTags.Base.Make], exif[ExifTags.Base.Model] = "Apple", "iPhone SE"
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = "2024:05:01 12:30:15"
    place = exif.get_ifd(ExifTags.IFD.GPSInfo)
    place.update({ExifTags.GPS.GPSLatitude: (48.0, 15.0, 0.0), ExifTags.GPS.GPSLatitudeRef: "N"})
    place.update({ExifTags.GPS.GPSLongitude: (11.0, 30.0, 0.0), ExifTags.GPS.GPSLongitudeRef: "W"})
    return encoded(exif)


@pytest.fixture(params=["pillow", "in_memory"])
def reader(request: pytest.FixtureRequest) -> ExifReader:
    """Return a reader that knows the facts of ``photo``."""
    return PillowExifReader() if request.param == "pillow" else InMemoryExifReader({photo().digest: FACTS})


class TestExifReader:
    def test_the_facts_of_a_photo_are_read(self, reader: ExifReader) -> None:
        assert reader.read(photo()) == FACTS

    def test_an_image_without_facts_has_none(self, reader: ExifReader) -> None:
        assert reader.read(encoded()) == ImageFacts()

    def test_a_damaged_image_has_none(self, reader: ExifReader) -> None:
        assert reader.read(EncodedImage.of(encoded().data[:30], "test")) == ImageFacts()
