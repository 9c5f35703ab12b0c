"""EXIF facts of an image, by Pillow. Every value is checked: cameras and strangers write whatever they like."""

import datetime
import math
import re
from collections.abc import Mapping
from typing import Any

from PIL import ExifTags

from mlxk.adapters.pillow.images import DAMAGED, open_image, quietly
from mlxk.application.ports.exif_reader import ExifReader
from mlxk.domain.errors import MlxkError
from mlxk.domain.generation.image_table import ImageFacts, camera_name
from mlxk.domain.generation.media import EncodedImage

_TAG, _GPS, _IFD = ExifTags.Base, ExifTags.GPS, ExifTags.IFD
_TIME = re.compile(r"(\d{4})[:/-](\d\d)[:/-](\d\d)[ T](\d\d):(\d\d)(?::(\d\d))?")
_DAY = re.compile(r"(\d{4})[:/-](\d\d)[:/-](\d\d)")
_OFFSET = re.compile(r"(Z|[+-]\d\d:?\d\d)")
_TIMES = ((_TAG.DateTimeOriginal, _TAG.OffsetTimeOriginal), (_TAG.DateTimeDigitized, _TAG.OffsetTimeDigitized))
"""When the shutter was released, or else when the picture was made digital; not when the file was last edited."""

Tags = Mapping[int, Any]


def facts_of(image: EncodedImage) -> ImageFacts:
    """Return what the EXIF of an image says; see the port ``ExifReader``."""
    try:
        with quietly(), open_image(image) as opened:
            # The directories are read while the file is open; a broken one leaves the others as they are.
            exif = opened.getexif()
            top, details, place = dict(exif), _directory(exif, _IFD.Exif), _directory(exif, _IFD.GPSInfo)
    except (MlxkError, *DAMAGED):
        return ImageFacts()
    latitude = _degrees(place.get(_GPS.GPSLatitude), place.get(_GPS.GPSLatitudeRef), 90)
    longitude = _degrees(place.get(_GPS.GPSLongitude), place.get(_GPS.GPSLongitudeRef), 180)
    located = latitude is not None and longitude is not None
    return ImageFacts(
        taken=_taken(details, place),
        latitude=latitude if located else None,
        longitude=longitude if located else None,
        camera=camera_name(_text(top.get(_TAG.Make)), _text(top.get(_TAG.Model))),
    )


def _directory(exif: Any, which: int) -> Tags:  # noqa: ANN401 - Pillow's type has no public name
    try:
        return dict(exif.get_ifd(which))
    except DAMAGED:
        return {}


def _taken(details: Tags, place: Tags) -> datetime.datetime | None:
    for time, offset in _TIMES:
        found = _moment(_TIME.match(_text(details.get(time)) or ""))
        if found is not None:
            return found.replace(tzinfo=_zone(_text(details.get(offset))))
    return _satellite_time(place)


def _moment(match: re.Match[str] | None) -> datetime.datetime | None:
    if match is None:
        return None
    year, month, day, hour, minute, second = (int(part or 0) for part in match.groups())
    try:
        return datetime.datetime(year, month, day, hour, minute, min(second, 59))
    except ValueError:
        return None


def _zone(text: str | None) -> datetime.timezone | None:
    match = _OFFSET.fullmatch(text or "")
    if match is None:
        return None
    if match[1] == "Z":
        return datetime.UTC
    digits = match[1][1:].replace(":", "")
    size = datetime.timedelta(hours=int(digits[:2]), minutes=int(digits[2:]))
    if size >= datetime.timedelta(hours=24):
        return None
    return datetime.timezone(-size if match[1][0] == "-" else size)


def _satellite_time(place: Tags) -> datetime.datetime | None:
    """Return the time of the position, which satellites give in UTC."""
    day = _DAY.match(_text(place.get(_GPS.GPSDateStamp)) or "")
    clock = _numbers(place.get(_GPS.GPSTimeStamp))
    if day is None or clock is None or len(clock) != 3 or not all(0 <= part < 61 for part in clock):
        return None
    hour, minute, second = (int(part) for part in clock)
    try:
        return datetime.datetime(
            int(day[1]), int(day[2]), int(day[3]), hour, minute, min(second, 59), tzinfo=datetime.UTC
        )
    except ValueError:
        return None


def _degrees(value: object, reference: object, limit: int) -> float | None:
    """Return an angle in degrees, negative to the south and west; None when it is none."""
    parts = _numbers(value)
    if not parts or len(parts) > 3 or any(part < 0 for part in parts):
        return None
    degrees = sum(part / 60**index for index, part in enumerate(parts))
    direction = (_text(reference) or "").upper()[:1]
    return None if degrees > limit else -degrees if direction in ("S", "W") else degrees


def _numbers(value: object) -> list[float] | None:
    """Return finite numbers; None when any part is none, such as a fraction with nothing below."""
    parts = value if isinstance(value, tuple) else (value,)
    numbers = []
    for part in parts:
        try:
            number = float(part)
        except (TypeError, ValueError, ArithmeticError):
            return None
        if not math.isfinite(number):
            return None
        numbers.append(number)
    return numbers


def _text(value: object) -> str | None:
    if isinstance(value, bytes):
        value = value.decode("utf-8", errors="replace")
    return value.split("\0", 1)[0].strip() if isinstance(value, str) else None


class PillowExifReader(ExifReader):
    """Reads the EXIF of whatever Pillow opens."""

    def read(self, image: EncodedImage) -> ImageFacts:
        """Return the facts; see the port."""
        return facts_of(image)
