"""Images by the thousand for ``run.py``: every format, kind of pixels and oddity of EXIF, by a seed."""

import io
import random
import struct
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
import pillow_heif
from PIL import Image

pillow_heif.register_heif_opener()

MODES = {
    "JPEG": ("RGB", "L", "CMYK"),
    "PNG": ("RGB", "L", "LA", "RGBA", "P", "1", "I;16"),
    "WEBP": ("RGB", "RGBA"),
    "AVIF": ("RGB", "RGBA"),
    "HEIF": ("RGB", "RGBA"),
    "GIF": ("P", "L"),
}
"""Kinds of pixels by format."""
ENDINGS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "AVIF": "avif", "HEIF": "heic", "GIF": "gif"}
UNSUPPORTED = {"TIFF": "tif", "BMP": "bmp", "ICO": "ico", "PPM": "ppm", "TGA": "tga"}

Fraction = tuple[int, int]
Value = bytes | Sequence[Fraction] | int
"""A text, fractions, or a number."""

NAMES: tuple[bytes, ...] = (
    b"Apple",
    b"Canon",
    b"Canon EOS R5",
    b"NIKON CORPORATION",
    b"iPhone SE",
    b"  Padded  \0\0\0",
    b"Cut\0off",
    "Caméra 相机".encode(),
    "Caméra".encode("latin-1"),
    b"\xff\xfe\x80",
    b"Name|with|pipes",
    b"<b>x</b> **c** `d` [l](http://e)",
    b"Two\nlines\r\x1b[31m",
    "abc\u202egnp \u2066x".encode(),
    "Zoe\u0308 \U0001f4f7".encode(),
    b"long " * 60,
    b"   ",
    b"",
    b"-",
    b"0",
)
TIMES: tuple[bytes, ...] = (
    b"2024:05:01 12:30:15",
    b"2019:12:31 23:59:59",
    b"1999:01:02 00:00:00",
    b"2024-05-01 12:30:15",
    b"2024/05/01 12:30:15",
    b"2024-05-01T12:30:15",
    b"2024:05:01 12:30:15\0garbage",
    b"2024:05:01 12:30:15Z",
    b"2024:05:01 12:30:15.25",
    b"2024:05:01 12:30:15+02:00",
    b"2024:05:01 23:59:60",
    b"2024:05:01 12:30",
    b"2009: 5: 1 12: 3: 4",
    b"2024:05:01",
    b"2024:02:31 12:00:00",
    b"2024:13:01 12:00:00",
    b"2024:05:01 25:00:00",
    b"0000:00:00 00:00:00",
    b"    :  :     :  :  ",
    b"yesterday",
    b"",
)
OFFSETS: tuple[bytes, ...] = (b"+02:00", b"-03:30", b"Z", b"+0900", b"   :  ", b"+99:99", b"")
DAYS: tuple[bytes, ...] = (b"2024:02:29", b"2023:02:29", b"2024-02-29", b"", b"2024:1:2")
CLOCKS: tuple[Sequence[Fraction], ...] = (
    ((23, 1), (5, 1), (19, 2)),
    ((0, 1), (0, 1), (0, 1)),
    ((99, 1), (0, 1), (0, 1)),
    ((1, 0), (5, 1), (9, 1)),
    ((12, 1), (30, 1)),
)
ANGLES: tuple[Sequence[Fraction], ...] = (
    ((32, 1), (47, 1), (24, 1)),
    ((33, 1), (51, 1), (2442, 100)),
    ((32, 1), (474, 10), (0, 1)),
    ((3279, 100), (0, 1), (0, 1)),
    ((3279123456, 100000000),),
    ((51, 1), (30, 1)),
    ((0, 1), (0, 1), (0, 1)),
    ((90, 1), (0, 1), (0, 1)),
    ((90, 1), (0, 1), (1, 1)),
    ((151, 1), (12, 1), (5507, 100)),
    ((180, 1), (0, 1), (1, 1)),
    ((1000, 1), (0, 1), (0, 1)),
    ((1, 0), (47, 1), (24, 1)),
    ((32, 1), (47, 1), (0, 0)),
    ((0, 1), (59, 1), (599999, 10000)),
)
SIDES: tuple[bytes, ...] = (b"N", b"S", b"E", b"W", b"n", b"w", b"North", b"South", b"", b"?", b" ")
CORRECT_SIDES = ((b"N", b"E"), (b"S", b"W"), (b"N", b"W"), (b"S", b"E"))

MAKE, MODEL, ORIENTATION = 0x10F, 0x110, 0x112
TAKEN, DIGITIZED, TAKEN_OFFSET, DIGITIZED_OFFSET = 0x9003, 0x9004, 0x9011, 0x9012
DETAILS, PLACE = 0x8769, 0x8825
NORTH, LATITUDE, EAST, LONGITUDE, CLOCK, DAY = 1, 2, 3, 4, 7, 29

Tags = dict[int, Value]


@attrs.frozen
class Photo:
    """One image file, and what is known of it without reading it."""

    name: str
    form: str
    damaged: bool
    """Whether bytes of it were changed at random: then it need not be taken, nor tell anything."""

    @property
    def supported(self) -> bool:
        """Whether its format is one that mlxk takes."""
        return self.form in MODES


def exif(order: str, top: Tags, details: Tags, place: Tags, shuffled: Callable[[list[int]], None]) -> bytes:
    """Return EXIF in one of the two orders of bytes, ``<`` or ``>``; entries of a directory in any order."""

    def size(tags: Tags) -> int:
        return 6 + 12 * len(tags)

    first = {**top, DETAILS: 0, PLACE: 0}
    starts = (8, 8 + size(first), 8 + size(first) + size(details))
    first[DETAILS], first[PLACE] = starts[1:]
    data_start, data = starts[2] + size(place), b""
    written = b""
    for tags in (first, details, place):
        written += struct.pack(f"{order}H", len(tags))
        keys = sorted(tags)
        shuffled(keys)
        for key in keys:
            kind, count, raw = _raw(order, key, tags[key])
            if len(raw) > 4:
                raw, data = struct.pack(f"{order}I", data_start + len(data)), data + raw + b"\0" * (len(raw) % 2)
            written += struct.pack(f"{order}HHI", key, kind, count) + raw.ljust(4, b"\0")
        written += bytes(4)
    head = b"II*\0" if order == "<" else b"MM\0*"
    return b"Exif\0\0" + head + struct.pack(f"{order}I", 8) + written + data


def _raw(order: str, key: int, value: Value) -> tuple[int, int, bytes]:
    """Return the type of a value, the number of its items, and its bytes."""
    if isinstance(value, bytes):
        return 2, len(value) + 1, value + b"\0"
    if isinstance(value, int):
        return (
            (3, 1, struct.pack(f"{order}H", value)) if key == ORIENTATION else (4, 1, struct.pack(f"{order}I", value))
        )
    return 5, len(value), b"".join(struct.pack(f"{order}II", *each) for each in value)


def tags_of(chance: random.Random) -> tuple[Tags, Tags, Tags]:
    """Return tags for the three directories; each one is missing at times, ordinary at times, and odd at times."""

    def some(likely: float, **values: Any) -> dict[str, Any]:
        return {name: value for name, value in values.items() if chance.random() < likely}

    def pick(values: Sequence[Any], ordinary: int) -> Any:
        return chance.choice(values[:ordinary]) if chance.random() < 0.5 else chance.choice(values)

    top = some(
        0.8, make=pick(NAMES, 5), model=pick(NAMES, 5), orientation=chance.choice((1, 1, 3, 6, 8, 2, 5, 7, 0, 9))
    )
    details = some(0.6, taken=pick(TIMES, 3), digitized=pick(TIMES, 3)) | some(
        0.3, taken_offset=chance.choice(OFFSETS), digitized_offset=chance.choice(OFFSETS)
    )
    north, east = chance.choice(CORRECT_SIDES) if chance.random() < 0.7 else chance.choices(SIDES, k=2)
    place = some(0.85, north=north, latitude=pick(ANGLES, 8), east=east, longitude=pick(ANGLES, 8))
    place |= some(0.5, day=pick(DAYS, 1), clock=pick(CLOCKS, 2))
    numbers = {"make": MAKE, "model": MODEL, "orientation": ORIENTATION, "taken": TAKEN, "digitized": DIGITIZED}
    numbers |= {"taken_offset": TAKEN_OFFSET, "digitized_offset": DIGITIZED_OFFSET, "north": NORTH, "east": EAST}
    numbers |= {"latitude": LATITUDE, "longitude": LONGITUDE, "day": DAY, "clock": CLOCK}
    found = [{numbers[name]: value for name, value in each.items()} for each in (top, details, place)]
    return found[0], found[1], found[2]


def picture(chance: random.Random, mode: str) -> Image.Image:
    """Return a small picture; noise, so that no encoder makes it trivial."""
    size = (chance.randint(1, 48), chance.randint(1, 48))
    bands = {"RGB": 3, "RGBA": 4, "CMYK": 4, "LA": 2, "I;16": 2}.get(mode, 1)
    if mode == "1":
        return Image.frombytes("L", size, chance.randbytes(size[0] * size[1])).convert("1")
    if mode == "P":
        return Image.frombytes("RGB", size, chance.randbytes(3 * size[0] * size[1])).quantize(16)
    return Image.frombytes(mode, size, chance.randbytes(bands * size[0] * size[1]))


def saved(image: Image.Image, form: str, raw: bytes | None) -> bytes:
    """Return the file of a picture."""
    buffer = io.BytesIO()
    image.save(buffer, form, **({"exif": raw} if raw else {}))
    return buffer.getvalue()


def harmed(chance: random.Random, data: bytes) -> bytes:
    """Return a file cut off, or with bytes changed; its first bytes, which tell the format, are left."""
    if chance.random() < 0.4:
        return data[: chance.randint(min(24, len(data)), len(data))]
    changed = bytearray(data)
    for _ in range(chance.choice((1, 3, 20))):
        changed[chance.randrange(min(16, len(data) - 1), len(data))] = chance.randrange(256)
    return bytes(changed)


def by_exiftool(chance: random.Random, tags: tuple[Tags, Tags, Tags], path: str) -> list[str]:
    """Return the arguments with which exiftool writes such tags, an orientation in XMP among them at times."""
    top, details, place = tags
    arguments = [f"-IFD0:{'Make' if key == MAKE else 'Model'}={_line(top[key])}" for key in top if key != ORIENTATION]
    arguments += ["-IFD0:Orientation#=" + str(top[ORIENTATION])] if ORIENTATION in top else []
    names = {TAKEN: "DateTimeOriginal", DIGITIZED: "CreateDate", TAKEN_OFFSET: "OffsetTimeOriginal"}
    arguments += [f"-ExifIFD:{names[key]}#={_line(details[key])}" for key in details if key in names]
    if {LATITUDE, LONGITUDE, NORTH, EAST} <= set(place):
        latitude, longitude = chance.uniform(0, 90), chance.uniform(0, 180)
        arguments += [f"-GPS:GPSLatitude#={latitude}", f"-GPS:GPSLatitudeRef#={chance.choice('NS')}"]
        arguments += [f"-GPS:GPSLongitude#={longitude}", f"-GPS:GPSLongitudeRef#={chance.choice('EW')}"]
    if chance.random() < 0.3:
        arguments += ["-XMP-tiff:Orientation#=6", "-XMP-exif:DateTimeOriginal=2001:01:01 01:01:01"]
    return ["-q", "-q", "-m", "-overwrite_original", *arguments, path, "-execute"]


def _line(value: Value) -> str:
    """Return a text as one line of an argument file."""
    text = value.decode("utf-8", "ignore") if isinstance(value, bytes) else ""
    return "".join(each for each in text if each.isprintable())


def make(folder: Path, count: int, seed: int, exiftool: str) -> list[Photo]:
    """Write so many images and return what they are."""
    chance, photos, arguments = random.Random(seed), [], list[str]()
    for index in range(count):
        tags, form = tags_of(chance), chance.choice([*MODES] * 4 + [*UNSUPPORTED])
        ending = ENDINGS.get(form) or UNSUPPORTED[form]
        name, damaged = f"{index:04}.{ending}", False
        image = picture(chance, chance.choice(MODES.get(form, ("RGB",))))
        if form in ("GIF", *UNSUPPORTED):
            data = saved(image, form, None)
        elif chance.random() < 0.35:
            data = saved(image, form, None)
            arguments += by_exiftool(chance, tags, name)
        else:
            shuffle = chance.shuffle if chance.random() < 0.1 else lambda keys: None
            data = saved(image, form, exif(chance.choice("<>"), *tags, shuffle))
            if chance.random() < 0.2:
                data, damaged = harmed(chance, data), True
        (folder / name).write_bytes(data)
        photos.append(Photo(name, form, damaged))
    done = subprocess.run([exiftool, "-@", "-"], input="\n".join(arguments).encode(), cwd=folder, capture_output=True)
    # It says of some what it could not write; those stay without.
    if done.returncode not in (0, 1):
        raise RuntimeError(done.stderr.decode())
    return photos
