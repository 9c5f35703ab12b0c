"""The sample drawings that ship beside the model; one of them says, as a photo would, when and where it was made."""

from __future__ import annotations

import random
from pathlib import Path

from drawings import draw
from PIL import ExifTags, Image

SEED = 20262
SIZE = (224, 224)


def write(directory: Path) -> None:
    """Write the samples."""
    rng = random.Random(SEED)
    draw(rng, "red", "circle", SIZE).image.save(directory / "red-circle.png", optimize=True)
    draw(rng, "blue", "square", SIZE).image.save(directory / "blue-square.jpg", quality=90, exif=_exif())


def _exif() -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Make], exif[ExifTags.Base.Model] = "mlxk", "drawing machine"
    details = exif.get_ifd(ExifTags.IFD.Exif)
    details[ExifTags.Base.DateTimeOriginal] = "2023:12:06 12:19:00"
    details[ExifTags.Base.OffsetTimeOriginal] = "+00:00"
    place = exif.get_ifd(ExifTags.IFD.GPSInfo)
    place[ExifTags.GPS.GPSLatitude], place[ExifTags.GPS.GPSLatitudeRef] = (32.0, 47.0, 24.0), "N"
    place[ExifTags.GPS.GPSLongitude], place[ExifTags.GPS.GPSLongitudeRef] = (16.0, 55.0, 12.0), "W"
    return exif.tobytes()
