"""When, where and with what a clip was recorded, as its container says: MP4 and QuickTime, Matroska and WebM, and AVI.

OpenCV does not tell these. They are read here from the bytes alone, along the few paths that lead to them.
"""

import datetime
import re
import struct
from collections.abc import Iterator

from mlxk.domain.generation.media_facts import ImageFacts, camera_name
from mlxk.domain.generation.video import EncodedVideo, VideoContainer

_MOST_BOXES = 4096
"""Boxes, or elements, that are looked at in one list."""

_MOST_TEXT = 256

_EPOCH_1904 = datetime.datetime(1904, 1, 1, tzinfo=datetime.UTC)
_EPOCH_2001 = datetime.datetime(2001, 1, 1, tzinfo=datetime.UTC)
_EARLIEST = datetime.datetime(1970, 1, 2, tzinfo=datetime.UTC)
"""Earlier times are what programs write that know none."""

_PLACE = re.compile(r"([+-]\d{2}(?:\.\d+)?)([+-]\d{3}(?:\.\d+)?)")
"""Degrees of ISO 6709."""

_MOMENT = re.compile(r"(\d{4})-(\d\d)-(\d\d)[T ](\d\d):(\d\d)(?::(\d\d))?(?:\.\d+)?(Z|[+-]\d\d:?\d\d)?")

_SEGMENT, _INFO, _DATE = 0x18538067, 0x1549A966, 0x4461


def read(video: EncodedVideo) -> ImageFacts:
    """Return what the container of a clip says and is plausible; empty for one that cannot be read."""
    data = memoryview(video.data)
    try:
        if video.container in (VideoContainer.MP4, VideoContainer.MOV):
            return _of_boxes(data)
        if video.container in (VideoContainer.MATROSKA, VideoContainer.WEBM):
            return ImageFacts(taken=_of_elements(data))
        if video.container is VideoContainer.AVI:
            return ImageFacts(taken=_of_chunks(data))
    except (struct.error, ValueError, IndexError, OverflowError):
        pass
    return ImageFacts()


def _of_boxes(data: memoryview) -> ImageFacts:
    movie = _inner(data, b"moov")
    tags = _quicktime_tags(movie)
    latitude = longitude = None
    told = (each for found, content in _boxes(movie) if found == b"udta" for each in _boxes(content))
    for name, value in told:
        if name in _SHORT:
            length = struct.unpack_from(">H", value)[0]
            tags.setdefault(_SHORT[name], _text(value[4 : 4 + length]))
        elif name == b"loci":
            latitude, longitude = _place_of_3gpp(bytes(value))
    header = _inner(movie, b"mvhd")
    taken = _moment(tags.get("creationdate", ""))
    if taken is None and len(header) >= 20:
        stated = struct.unpack_from(">Q" if header[0] == 1 else ">I", header, 4)[0]
        taken = _plausible(_EPOCH_1904 + datetime.timedelta(seconds=stated))
    if "location" in tags:
        latitude, longitude = _coordinates(tags["location"])
    return ImageFacts(taken, latitude, longitude, camera_name(tags.get("make"), tags.get("model")))


_SHORT = {b"\xa9xyz": "location", b"\xa9day": "creationdate", b"\xa9mak": "make", b"\xa9mod": "model"}
_LONG = {
    b"com.apple.quicktime.location.ISO6709": "location",
    b"com.apple.quicktime.creationdate": "creationdate",
    b"com.apple.quicktime.make": "make",
    b"com.apple.quicktime.model": "model",
}


def _quicktime_tags(movie: memoryview) -> dict[str, str]:
    """Return the tags that QuickTime has as a list of keys and one of values by the numbers of the keys."""
    tags: dict[str, str] = {}
    meta = _inner(movie, b"meta")
    keys = _inner(meta, b"keys")
    names = [bytes(value[:64]) for _, value in _boxes(keys[8:])]
    for number, value in _boxes(_inner(meta, b"ilst")):
        place = int.from_bytes(number, "big") - 1
        name = _LONG.get(names[place]) if 0 <= place < len(names) else None
        if name is not None:
            tags[name] = _text(_inner(value, b"data")[8:])
    return tags


def _inner(data: memoryview, name: bytes) -> memoryview:
    return next((content for found, content in _boxes(data) if found == name), memoryview(b""))


def _boxes(data: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """Yield the names and contents of the boxes in a list."""
    place = 0
    for _ in range(_MOST_BOXES):
        if place + 8 > len(data):
            return
        size, name = struct.unpack_from(">I4s", data, place)
        begin = place + 8
        if size == 1 and begin + 8 <= len(data):
            size, begin = struct.unpack_from(">Q", data, begin)[0], begin + 8
        end = len(data) if size == 0 else place + size
        if end < begin or end > len(data):
            return
        yield name, data[begin:end]
        place = end


def _of_elements(data: memoryview) -> datetime.datetime | None:
    for name, segment in _elements(data):
        if name == _SEGMENT:
            for inner, info in _elements(segment):
                if inner == _INFO:
                    date = next((value for found, value in _elements(info) if found == _DATE), None)
                    if date is None or len(date) != 8:
                        return None
                    nanoseconds = struct.unpack(">q", date)[0]
                    return _plausible(_EPOCH_2001 + datetime.timedelta(microseconds=nanoseconds / 1000))
    return None


def _elements(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield the ids and contents of the EBML elements in a list; one of unknown size goes on to the end."""
    place = 0
    for _ in range(_MOST_BOXES):
        if place >= len(data):
            return
        name, place = _number(data, place, keep_mark=True)
        size, begin = _number(data, place, keep_mark=False)
        unknown = size == (1 << (7 * (begin - place))) - 1
        end = len(data) if unknown else min(begin + size, len(data))
        yield name, data[begin:end]
        place = end


def _number(data: memoryview, place: int, *, keep_mark: bool) -> tuple[int, int]:
    """Return a number of variable length, and where it ends."""
    first = data[place]
    length = 9 - first.bit_length()
    if length > 8 or place + length > len(data):
        raise ValueError("no number")
    found = int.from_bytes(data[place : place + length], "big")
    return (found if keep_mark else found & ((1 << (7 * length)) - 1)), place + length


def _of_chunks(data: memoryview) -> datetime.datetime | None:
    """Return the time in the first list of an AVI, as ``Fri Dec 29 11:48:11 2023`` or by its digits."""
    place = bytes(data[: 64 * 1024]).find(b"IDIT")
    if place < 0:
        return None
    size = struct.unpack_from("<I", data, place + 4)[0]
    text = _text(data[place + 8 : place + 8 + min(size, _MOST_TEXT)]).strip("\0\n ")
    try:
        return datetime.datetime.strptime(text.title(), "%a %b %d %H:%M:%S %Y")
    except ValueError:
        return _moment(text)


def _moment(text: str) -> datetime.datetime | None:
    found = _MOMENT.match(text)
    if found is None:
        return None
    try:
        when = datetime.datetime.fromisoformat(found[0].replace(" ", "T"))
    except ValueError:
        return None
    return when if when.tzinfo is None else _plausible(when)


def _plausible(when: datetime.datetime) -> datetime.datetime | None:
    tomorrow = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=1)
    return when if _EARLIEST < when < tomorrow else None


def _coordinates(text: str) -> tuple[float | None, float | None]:
    found = _PLACE.match(text)
    if found is None:
        return None, None
    return _on_earth(float(found[1]), float(found[2]))


def _place_of_3gpp(value: bytes) -> tuple[float | None, float | None]:
    """Return latitude and longitude, which stand behind a name, in units of 1/65536 degree."""
    name_end = value.index(b"\0", 6)
    longitude, latitude = (part / 65536 for part in struct.unpack_from(">ii", value, name_end + 2))
    return _on_earth(latitude, longitude)


def _on_earth(latitude: float, longitude: float) -> tuple[float | None, float | None]:
    return (latitude, longitude) if abs(latitude) <= 90 and abs(longitude) <= 180 else (None, None)


def _text(data: memoryview) -> str:
    return bytes(data[:_MOST_TEXT]).decode("utf-8", "replace").split("\0", 1)[0].strip()
