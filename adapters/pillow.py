"""Decoding of images by Pillow: pixels and EXIF metadata. Only the plugin of the image's format is tried."""

import contextlib
import datetime
import importlib
import io
import math
import re
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

from PIL import AvifImagePlugin, ExifTags, Image, ImageMath, features

from mlxk.application.ports.media import ImageReader
from mlxk.application.recently_used import RecentlyUsed
from mlxk.domain.errors import BackendNotInstalledError, MlxkError, ValidationError
from mlxk.domain.generation.media import MAX_IMAGE_PIXELS, DecodedImage, EncodedImage, ImageFormat
from mlxk.domain.generation.media_facts import ImageFacts, camera_name

_DECODING_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    EOFError,
    MemoryError,
    NotImplementedError,
    RecursionError,
    RuntimeError,
    Image.DecompressionBombError,
    struct.error,
    zlib.error,
)
"""Exceptions that Pillow's plugins raise on damaged files."""

_WARNINGS = threading.Lock()
"""Held while warnings are silenced: ``catch_warnings`` changes global state and is not thread-safe."""

_PLUGINS = {
    ImageFormat.JPEG: "JPEG",
    ImageFormat.PNG: "PNG",
    ImageFormat.GIF: "GIF",
    ImageFormat.WEBP: "WEBP",
    ImageFormat.HEIC: "HEIF",
    ImageFormat.AVIF: "AVIF",
}


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Keep Pillow's warnings about unusual files off standard error."""
    with _WARNINGS, warnings.catch_warnings(action="ignore"):
        yield


def _open(image: EncodedImage) -> Image.Image:
    """Open an image; call it inside ``_without_warnings``, and use the result as a context manager.

    Raises:
        ValidationError: It cannot be opened, or has too many pixels.
        BackendNotInstalledError: Its format needs a package that is not installed.
    """
    _require_plugin(image)
    try:
        opened = Image.open(io.BytesIO(image.data), formats=(_PLUGINS[image.format],))
    except Image.DecompressionBombError as error:
        raise _too_large(image, "") from error
    except _DECODING_ERRORS as error:
        raise _damaged(image) from error
    if opened.width * opened.height > MAX_IMAGE_PIXELS:
        opened.close()
        raise _too_large(image, f" ({opened.width} by {opened.height})")
    return opened


def _damaged(image: EncodedImage) -> ValidationError:
    return image.refused(ValidationError, f"is damaged, or no complete {image.format.name} image")


def _too_large(image: EncodedImage, size: str) -> ValidationError:
    most = MAX_IMAGE_PIXELS // 1_000_000
    return image.refused(ValidationError, f"has too many pixels{size}; at most {most} million are taken")


def _require_plugin(image: EncodedImage) -> None:
    if image.format is ImageFormat.HEIC:
        try:
            plugin = importlib.import_module("pillow_heif")
        except ImportError as error:
            raise image.refused(
                BackendNotInstalledError,
                "is in HEIC, and reading that needs pillow-heif, which is not installed.",
                hint="Install it: pip install pillow-heif",
            ) from error
        plugin.register_heif_opener()
    elif image.format is ImageFormat.AVIF and not features.check("avif"):
        raise image.refused(
            BackendNotInstalledError,
            "is in AVIF, and reading that needs a Pillow with AVIF.",
            hint="Install it: pip install 'pillow>=11.3'",
        )


_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The operation that undoes an EXIF orientation. Where a container has a rotation of its own, its plugin applies it or
reports it as EXIF."""


def _exif_of(image: Image.Image) -> Image.Exif:
    """Return the EXIF metadata without the orientation of XMP, which ``getexif`` would add."""
    raw = image.info.get("exif")
    if isinstance(raw, bytes):
        exif = Image.Exif()
        exif.load(raw)
        return exif
    xmp = {key: image.info.pop(key) for key in _XMP_KEYS if key in image.info}
    try:
        return image.getexif()
    finally:
        image.info.update(xmp)


_XMP_KEYS = ("xmp", "XML:com.adobe.xmp")

_SIXTEEN_BITS = frozenset({"I;16", "I;16B", "I;16L", "I;16N"})
_WHITE = (255, 255, 255)


def _decoded(image: EncodedImage) -> DecodedImage:
    with _without_warnings(), _open(image) as opened:
        try:
            opened.load()
            upright = _upright(opened)
            pixels = _to_rgb(upright)
            return DecodedImage(pixels.width, pixels.height, pixels.tobytes(), image.digest)
        except _DECODING_ERRORS as error:
            raise _damaged(image) from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        # Without the orientation of XMP: browsers and other viewers ignore it.
        orientation = _exif_of(image).get(ExifTags.Base.Orientation)
    except _DECODING_ERRORS:  # damaged EXIF does not make the pixels unusable
        return image
    operation = _TRANSPOSITIONS.get(orientation) if isinstance(orientation, int) else None
    return image if operation is None else image.transpose(operation)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Return the image as 8-bit RGB, composited on white."""
    if image.mode in _SIXTEEN_BITS:
        return _from_sixteen_bits(image)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        background = Image.new("RGB", layer.size, _WHITE)
        background.paste(layer, mask=layer.getchannel("A"))
        return background
    return image.convert("RGB")


def _from_sixteen_bits(image: Image.Image) -> Image.Image:
    """Return a 16-bit grey image as RGB; pixels of the value that a PNG declares transparent become white."""
    values = image.convert("I")
    grey = values.point(lambda value: value / 256).convert("L")
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        matches = ImageMath.lambda_eval(lambda images: images["a"] == transparent, a=values)
        mask = matches.convert("L").point(lambda on: 255 * on)
        grey.paste(255, mask=mask)
    return grey.convert("RGB")


_TAG, _GPS, _IFD = ExifTags.Base, ExifTags.GPS, ExifTags.IFD
_TIME = re.compile(r"(\d{4})[:/-]([ \d]\d)[:/-]([ \d]\d)[ T]([ \d]\d):([ \d]\d)(?::([ \d]\d))?")
"""A time as cameras write it; some pad its numbers with spaces."""
_DAY = re.compile(r"(\d{4})[:/-]([ \d]\d)[:/-]([ \d]\d)")
_OFFSET = re.compile(r"(Z|[+-]\d\d:?\d\d)")
_TIMES = ((_TAG.DateTimeOriginal, _TAG.OffsetTimeOriginal), (_TAG.DateTimeDigitized, _TAG.OffsetTimeDigitized))
"""Tags of time and its UTC offset, in order of preference: exposure, digitization; never the last edit."""

Tags = Mapping[int, Any]


def _exif_facts(image: EncodedImage) -> ImageFacts:
    try:
        with _without_warnings(), _open(image) as opened:
            # IFDs are read lazily, so read them before the file is closed. A damaged one does not affect the others.
            exif = _original_exif(opened)
            main, details, gps = dict(exif), _directory(exif, _IFD.Exif), _directory(exif, _IFD.GPSInfo)
    except (MlxkError, *_DECODING_ERRORS):
        return ImageFacts()
    latitude = _degrees(gps.get(_GPS.GPSLatitude), gps.get(_GPS.GPSLatitudeRef), 90)
    longitude = _degrees(gps.get(_GPS.GPSLongitude), gps.get(_GPS.GPSLongitudeRef), 180)
    located = latitude is not None and longitude is not None
    return ImageFacts(
        taken=_taken(details, gps),
        latitude=latitude if located else None,
        longitude=longitude if located else None,
        camera=camera_name(_text(main.get(_TAG.Make)), _text(main.get(_TAG.Model))),
    )


def _original_exif(image: Image.Image) -> Image.Exif:
    """Return the EXIF metadata of an image.

    For an AVIF with a rotation in its container, Pillow rewrites the EXIF block and replaces letters outside ASCII by
    question marks; the decoder has the original.
    """
    with contextlib.suppress(*_DECODING_ERRORS):
        raw = image._decoder.get_info()[4] if isinstance(image, AvifImagePlugin.AvifImageFile) else None
        if raw:
            exif = Image.Exif()
            exif.load(raw)
            return exif
    return image.getexif()


def _directory(exif: Any, ifd: int) -> Tags:  # noqa: ANN401 - Pillow's type has no public name
    try:
        return dict(exif.get_ifd(ifd))
    except _DECODING_ERRORS:
        return {}


def _taken(details: Tags, gps: Tags) -> datetime.datetime | None:
    for time, offset in _TIMES:
        taken = _datetime(_TIME.match(_text(details.get(time)) or ""))
        if taken is not None:
            return taken.replace(tzinfo=_zone(_text(details.get(offset))))
    return _gps_time(gps)


def _datetime(match: re.Match[str] | None) -> datetime.datetime | None:
    if match is None:
        return None
    year, month, day, hour, minute, second = (int(part or 0) for part in match.groups())
    try:
        return datetime.datetime(year, month, day, hour, minute, min(second, 59))
    except ValueError:
        return None


_LARGEST_OFFSET = datetime.timedelta(hours=14)
"""Of local times from UTC."""


def _zone(text: str | None) -> datetime.timezone | None:
    match = _OFFSET.fullmatch(text or "")
    if match is None:
        return None
    if match[1] == "Z":
        return datetime.UTC
    digits = match[1][1:].replace(":", "")
    hours, minutes = int(digits[:2]), int(digits[2:])
    size = datetime.timedelta(hours=hours, minutes=minutes)
    if minutes > 59 or size > _LARGEST_OFFSET:
        return None
    return datetime.timezone(-size if match[1][0] == "-" else size)


def _gps_time(gps: Tags) -> datetime.datetime | None:
    """Return the GPS time stamp, which is in UTC."""
    day = _DAY.match(_text(gps.get(_GPS.GPSDateStamp)) or "")
    clock = _numbers(gps.get(_GPS.GPSTimeStamp))
    if day is None or clock is None or len(clock) > 3 or not all(0 <= part < 61 for part in clock):
        return None
    hour, minute, second = (int(part) for part in (*clock, 0, 0)[:3])
    try:
        return datetime.datetime(
            int(day[1]), int(day[2]), int(day[3]), hour, minute, min(second, 59), tzinfo=datetime.UTC
        )
    except ValueError:
        return None


_SIGNS = {90: {"N": 1, "S": -1}, 180: {"E": 1, "W": -1}}
"""Signs by reference letter, of latitudes (at most 90 degrees) and longitudes (at most 180)."""


def _degrees(value: object, reference: object, limit: int) -> float | None:
    """Return an angle in decimal degrees, negative for south and west; None if it or its reference is invalid."""
    parts = _numbers(value)
    if not parts or len(parts) > 3 or any(part < 0 for part in parts):
        return None
    degrees = sum(part / 60**index for index, part in enumerate(parts))
    sign = _SIGNS[limit].get((_text(reference) or "").upper()[:1])
    return None if degrees > limit or sign is None else sign * degrees


def _numbers(value: object) -> list[float] | None:
    """Return a value or tuple as finite numbers; None if any is not, such as a fraction with a zero denominator."""
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
    """Return a text, decoded as UTF-8 if valid, else as Latin-1; Pillow decodes every text as Latin-1."""
    if not isinstance(value, str | bytes):
        return None
    raw = (value.encode("latin-1", "replace") if isinstance(value, str) else value).split(b"\0", 1)[0]
    try:
        return raw.decode("utf-8").strip()
    except UnicodeDecodeError:
        return raw.decode("latin-1").strip()


class PillowImageReader(ImageReader):
    """Reads JPEG, PNG, GIF, WebP and AVIF, and HEIC where pillow-heif is installed.

    Decoded images are cached, since clients send the images of a conversation again with every turn.

    Args:
        max_bytes: Size of the cache.
    """

    def __init__(self, max_bytes: int = 64 * 1024 * 1024) -> None:
        self._cache = RecentlyUsed[DecodedImage](max_bytes)

    def decode(self, image: EncodedImage) -> DecodedImage:
        cached = self._cache.get(image.digest)
        if cached is not None:
            return cached
        decoded = _decoded(image)
        self._cache.put(image.digest, decoded, len(decoded.pixels))
        return decoded

    def read_exif(self, image: EncodedImage) -> ImageFacts:
        return _exif_facts(image)
