"""EXIF as cameras, phones, editors and fuzzers write it, in every format that carries it."""

import datetime
import io
import random
import struct
from typing import Any

import pytest
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import IFDRational
from syrupy.assertion import SnapshotAssertion

from mlxk.adapters.pillow import PillowImageReader
from mlxk.domain.generation.image_table import Chunk, ShownImage
from mlxk.domain.generation.media import EncodedImage
from mlxk.domain.generation.media_facts import ImageFacts

TAG, GPS, IFD = ExifTags.Base, ExifTags.GPS, ExifTags.IFD
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "HEIF")
MADEIRA = {
    GPS.GPSLatitude: (32.0, 47.0, 24.0),
    GPS.GPSLatitudeRef: "N",
    GPS.GPSLongitude: (16.0, 55.0, 12.0),
    GPS.GPSLongitudeRef: "W",
}


def exif_of(
    top: dict[int, Any] | None = None, details: dict[int, Any] | None = None, place: dict[int, Any] | None = None
) -> Image.Exif:
    """Return EXIF with these tags in its three directories."""
    exif = Image.Exif()
    exif.update(top or {})
    exif.get_ifd(IFD.Exif).update(details or {})
    exif.get_ifd(IFD.GPSInfo).update(place or {})
    return exif


def encoded(exif: Image.Exif | bytes, form: str = "JPEG", name: str | None = None) -> EncodedImage:
    """Return an image with EXIF."""
    if form == "HEIF":
        import pillow_heif

        pillow_heif.register_heif_opener()
    buffer = io.BytesIO()
    raw = exif if isinstance(exif, bytes) else exif.tobytes()
    Image.new("RGB", (16, 16), (90, 120, 30)).save(buffer, form, exif=raw)
    return EncodedImage.of(buffer.getvalue(), "test", name)


def facts(**directories: Any) -> ImageFacts:
    """Return what is read of a JPEG with these tags."""
    return PillowImageReader().read_exif(encoded(exif_of(**directories)))


def when(text: str, offset: str | None = None) -> datetime.datetime | None:
    """Return the time that is read of a photo taken then."""
    details = {TAG.DateTimeOriginal: text} | ({TAG.OffsetTimeOriginal: offset} if offset is not None else {})
    return facts(details=details).taken


def where(latitude: object, north: object, longitude: object = (1.0, 0.0, 0.0), east: object = "E") -> str | None:
    """Return the place that is read of a photo taken there."""
    place = {GPS.GPSLatitude: latitude, GPS.GPSLatitudeRef: north}
    return facts(place={**place, GPS.GPSLongitude: longitude, GPS.GPSLongitudeRef: east}).location


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_tells_place_time_and_camera(form: str) -> None:
    exif = exif_of(
        {TAG.Make: "Apple", TAG.Model: "iPhone SE"},
        {TAG.DateTimeOriginal: "2023:12:06 12:19:44", TAG.OffsetTimeOriginal: "+01:00"},
        MADEIRA,
    )
    found = PillowImageReader().read_exif(encoded(exif, form))
    assert (found.location, found.date, found.camera) == (
        "32.7900°N, 16.9200°W",
        "2023-12-06 12:19",
        "Apple iPhone SE",
    )


def test_the_table_of_photos_from_all_over_the_world(snapshot: SnapshotAssertion) -> None:
    camera = {TAG.Make: "Apple", TAG.Model: "iPhone SE"}
    south_east = {
        GPS.GPSLatitude: (33.0, 51.0, 24.42),
        GPS.GPSLatitudeRef: "S",
        GPS.GPSLongitude: (151.0, 12.0, 55.07),
        GPS.GPSLongitudeRef: "E",
    }
    broken = b"Exif\x00\x00II*\x00\xff\xff\xff\xff"
    images = [
        encoded(exif_of(camera, {TAG.DateTimeOriginal: "2023:12:06 12:19:00"}, MADEIRA), "JPEG", "north-west.jpg"),
        encoded(
            exif_of({TAG.Model: "X100|V"}, {TAG.DateTimeOriginal: "2024:01:31 23:59:59"}, south_east),
            "WEBP",
            "south-east.webp",
        ),
        encoded(
            exif_of(
                {TAG.Make: "Canon", TAG.Model: "Canon EOS R5"},
                {TAG.DateTimeOriginal: "2024:07:01 08:00:00", TAG.OffsetTimeOriginal: "-03:30"},
            ),
            "PNG",
            "offset.png",
        ),
        encoded(
            exif_of(camera, {}, {GPS.GPSDateStamp: "2024:02:29", GPS.GPSTimeStamp: (23.0, 5.0, 9.5)}),
            "AVIF",
            "utc.avif",
        ),
        encoded(exif_of(camera), "HEIF", "camera.heic"),
        encoded(broken, "JPEG", "broken|exif.jpg"),
        encoded(exif_of(), "JPEG", "silent.jpg"),
    ]
    shown = [ShownImage(number, each, PillowImageReader().read_exif(each)) for number, each in enumerate(images, 1)]
    table = Chunk(tuple(shown)).table()
    for image in images:  # encoders differ between versions of their libraries, names and facts do not
        table = table.replace(image.digest[:8], "01234567")
    assert table == snapshot


@pytest.mark.parametrize(
    ("text", "offset", "found"),
    [
        ("2024:05:01 12:30:15", None, "2024-05-01T12:30:15"),
        ("2024:05:01 12:30:15", "+02:00", "2024-05-01T12:30:15+02:00"),
        ("2024:05:01 12:30:15", "-0930", "2024-05-01T12:30:15-09:30"),
        ("2024:05:01 12:30:15", "Z", "2024-05-01T12:30:15+00:00"),
        ("2024:05:01 12:30:15", "   :  ", "2024-05-01T12:30:15"),
        ("2024:05:01 12:30:15", "+99:99", "2024-05-01T12:30:15"),
        ("2024:05:01 12:30:15", "+14:00", "2024-05-01T12:30:15+14:00"),
        ("2024:05:01 12:30:15", "+15:00", "2024-05-01T12:30:15"),
        ("2024:05:01 12:30:15", "+02:75", "2024-05-01T12:30:15"),
        ("2024-05-01T12:30", None, "2024-05-01T12:30:00"),
        ("2009: 5: 1  2: 3: 4", None, "2009-05-01T02:03:04"),
        ("2024:05:01 23:59:60", None, "2024-05-01T23:59:59"),
        ("2024:02:31 12:00:00", None, None),
        ("0000:00:00 00:00:00", None, None),
        ("    :  :     :  :  ", None, None),
        ("2024:13:01 12:00:00", None, None),
        ("2024:05:01 25:00:00", None, None),
        ("yesterday", None, None),
        ("2024:05:01 12:30:15\0garbage", None, "2024-05-01T12:30:15"),
        ("", "+02:00", None),
    ],
)
def test_times_that_make_sense_are_read_and_others_are_not(text: str, offset: str | None, found: str | None) -> None:
    taken = when(text, offset)
    assert (taken.isoformat() if taken else None) == found


def test_the_shutter_comes_before_the_scanner_and_the_satellites_and_editors_do_not_count() -> None:
    scanned = {TAG.DateTimeDigitized: "2024:05:02 01:02:03", TAG.OffsetTimeDigitized: "+01:00"}
    placed = {GPS.GPSDateStamp: "2024:05:03", GPS.GPSTimeStamp: (1.0, 2.0, 3.9)}
    both = facts(details={**scanned, TAG.DateTimeOriginal: "2024:05:01 01:02:03"}, place=placed)
    assert both.date == "2024-05-01 01:02"
    assert facts(details=scanned, place=placed).date == "2024-05-02 01:02"
    assert facts(place=placed).date == "2024-05-03 01:02"
    for nonsense in ({GPS.GPSDateStamp: "2024:02:31"}, {GPS.GPSTimeStamp: (25.0, 2.0, 3.9)}, {GPS.GPSTimeStamp: ()}):
        assert facts(place={**placed, **nonsense}).date is None
    assert facts(top={TAG.DateTime: "2024:05:04 01:02:03"}).date is None
    assert facts(place={GPS.GPSDateStamp: "2024:05:03", GPS.GPSTimeStamp: (99.0, 2.0, 3.0)}).date is None
    assert facts(place={GPS.GPSDateStamp: "2024:05:03", GPS.GPSTimeStamp: (12.0, 30.0)}).date == "2024-05-03 12:30"


@pytest.mark.parametrize(
    ("latitude", "north", "found"),
    [
        ((32.0, 47.0, 24.0), "N", "32.7900°N, 1.0000°E"),
        ((32.0, 47.0, 24.0), "S", "32.7900°S, 1.0000°E"),
        ((32.0, 47.4, 0.0), "N", "32.7900°N, 1.0000°E"),
        ((32.79, 0.0, 0.0), "n", "32.7900°N, 1.0000°E"),
        ((32.0, 47.0, 24.0), "", None),
        ((32.0, 47.0, 24.0), "E", None),
        ((32.0, 47.0, 24.0), "?", None),
        ((90.0, 0.0, 0.0), "N", "90.0000°N, 1.0000°E"),
        ((90.0, 0.0, 1.0), "N", None),
        ((1000.0, 0.0, 0.0), "N", None),
    ],
)
def test_places_on_earth_are_read_and_others_are_not(latitude: object, north: str, found: str | None) -> None:
    assert where(latitude, north) == found


@pytest.mark.parametrize("missing", [GPS.GPSLatitudeRef, GPS.GPSLongitudeRef])
def test_a_place_whose_side_of_the_earth_is_unknown_is_none(missing: int) -> None:
    assert facts(place={tag: value for tag, value in MADEIRA.items() if tag != missing}).location is None


@pytest.mark.parametrize(
    ("make", "model", "camera"),
    [
        ("Caméra".encode(), "相机 X1".encode(), "Caméra 相机 X1"),
        ("Caméra".encode("latin-1"), b"X1", "Caméra X1"),
        (b"", "Zoe\u0308".encode(), "Zoë"),
        (b"", "abc\u202egnp \u2066x\u200f".encode(), "abc gnp x"),
        (b"", b"[a](http://b) **c** __d__ ~e~ www.f.org <g>", "a (http //b) c d e www f.org g"),
    ],
)
def test_names_of_cameras_are_utf_8_before_latin_1_and_no_markup(make: bytes, model: bytes, camera: str) -> None:
    exif = exif_of({TAG.Make: make, TAG.Model: model})
    assert PillowImageReader().read_exif(encoded(exif)).camera == camera


@pytest.mark.parametrize("kind", [1, 2, 7], ids=["numbers", "text", "bytes"])
def test_the_name_of_a_camera_is_read_whichever_type_its_bytes_are_of(kind: int) -> None:
    raw = exif_of({TAG.Model: "Caméra".encode() + b"\0X"}).tobytes()
    order = "<" if raw[6:8] == b"II" else ">"
    as_text, other = (struct.pack(f"{order}HHI", TAG.Model, each, 10) for each in (2, kind))
    assert raw.count(as_text) == 1
    assert PillowImageReader().read_exif(encoded(raw.replace(as_text, other))).camera == "Caméra"


def test_a_number_is_no_name_of_a_camera() -> None:
    raw = exif_of({TAG.Make: "Maker", TAG.ImageWidth: 7}).tobytes()
    order = "<" if raw[6:8] == b"II" else ">"
    place, renamed = (struct.pack(f"{order}HH", tag, 4) for tag in (TAG.ImageWidth, TAG.Model))
    assert raw.count(place) == 1
    assert PillowImageReader().read_exif(encoded(raw.replace(place, renamed))).camera == "Maker"


def test_the_name_of_a_camera_is_whole_in_a_turned_avif() -> None:
    name = "Caméra 相机 X1".encode()
    ascii_name = "x" * len(name)
    image = encoded(exif_of({TAG.Model: ascii_name, TAG.Orientation: 6}), "AVIF")
    named = EncodedImage.of(image.data.replace(ascii_name.encode(), name), "test")
    assert PillowImageReader().read_exif(named).camera == "Caméra 相机 X1"


def test_a_fraction_with_nothing_below_is_no_place() -> None:
    assert facts(place={**MADEIRA, GPS.GPSLatitude: (IFDRational(1, 0), 47.0, 24.0)}).location is None


def test_half_a_place_is_none() -> None:
    found = facts(place={GPS.GPSLatitude: (32.0, 47.0, 24.0), GPS.GPSLatitudeRef: "N"})
    assert (found.latitude, found.longitude) == (None, None)


def test_a_broken_directory_leaves_the_others_as_they_are() -> None:
    exif = exif_of({TAG.Make: "Apple", TAG.Model: "iPhone SE"}, {TAG.DateTimeOriginal: "2024:05:01 12:30:15"}, MADEIRA)
    raw = exif.tobytes()
    order = "<" if raw[6:8] == b"II" else ">"
    entry = raw.index(struct.pack(f"{order}HHI", IFD.GPSInfo, 4, 1)) + 8
    damaged = raw[:entry] + struct.pack(f"{order}I", 0x7FFFFFFF) + raw[entry + 4 :]
    found = PillowImageReader().read_exif(encoded(damaged))
    assert (found.camera, found.date, found.location) == ("Apple iPhone SE", "2024-05-01 12:30", None)


def test_five_hundred_damaged_photos_are_read_without_a_fault() -> None:
    exif = exif_of(
        {TAG.Make: "Apple", TAG.Model: "iPhone SE", TAG.Orientation: 6},
        {TAG.DateTimeOriginal: "2024:05:01 12:30:15", TAG.OffsetTimeOriginal: "+02:00"},
        MADEIRA,
    )
    rng, reader = random.Random(7), PillowImageReader()
    raw = exif.tobytes()
    for _ in range(500):
        damaged = bytearray(raw)
        for _ in range(rng.randint(1, 12)):
            damaged[rng.randrange(6, len(damaged))] = rng.randrange(256)
        found = reader.read_exif(encoded(bytes(damaged)))
        assert found.latitude is None or -90 <= found.latitude <= 90
        assert found.line("Image 1")
