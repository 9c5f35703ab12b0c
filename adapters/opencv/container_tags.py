"""Time, place and camera of a recording, from the container's metadata: MP4, QuickTime, Matroska, WebM and AVI.

OpenCV does not report them. The parser here reads only the boxes and elements on the way to these fields.
"""

import datetime
import re
import struct
from collections.abc import Iterator

from mlxk.domain.generation.media_facts import ImageFacts, camera_name
from mlxk.domain.generation.video import EncodedVideo, VideoContainer

_MOST_BOXES = 4096
"""Boxes or elements that are read of one list."""

_MOST_TEXT = 256
"""Bytes that are read of one text."""

_EPOCH_1904 = datetime.datetime(1904, 1, 1, tzinfo=datetime.UTC)
_EPOCH_2001 = datetime.datetime(2001, 1, 1, tzinfo=datetime.UTC)
_EARLIEST = datetime.datetime(1970, 1, 2, tzinfo=datetime.UTC)
"""Earlier times are placeholders of programs without a clock."""

_ISO_6709 = re.compile(r"([+-]\d{2}(?:\.\d+)?)([+-]\d{3}(?:\.\d+)?)")
"""Latitude and longitude in degrees."""

_TIME = re.compile(r"(\d{4})-(\d\d)-(\d\d)[T ](\d\d):(\d\d)(?::(\d\d))?(?:\.\d+)?(Z|[+-]\d\d:?\d\d)?")

_SEGMENT, _INFO, _DATE = 0x18538067, 0x1549A966, 0x4461


def read(video: EncodedVideo) -> ImageFacts:
    """Return the plausible facts of a clip's container; none of a container that cannot be parsed."""
    data = memoryview(video.data)
    try:
        if video.container in (VideoContainer.MP4, VideoContainer.MOV):
            return _mp4_facts(data)
        if video.container in (VideoContainer.MATROSKA, VideoContainer.WEBM):
            return ImageFacts(taken=_matroska_date(data))
        if video.container is VideoContainer.AVI:
            return ImageFacts(taken=_avi_date(data))
    except (struct.error, ValueError, IndexError, OverflowError):
        pass
    return ImageFacts()


def _mp4_facts(data: memoryview) -> ImageFacts:
    movie = _inner(data, b"moov")
    tags = _quicktime_tags(movie)
    latitude = longitude = None
    user_data = (box for name, content in _boxes(movie) if name == b"udta" for box in _boxes(content))
    for name, value in user_data:
        if name in _USER_DATA_TAGS:
            length = struct.unpack_from(">H", value)[0]
            tags.setdefault(_USER_DATA_TAGS[name], _text(value[4 : 4 + length]))
        elif name == b"loci":
            latitude, longitude = _3gpp_coordinates(bytes(value))
    header = _inner(movie, b"mvhd")
    taken = _datetime(tags.get("creationdate", ""))
    if taken is None and len(header) >= 20:
        seconds = struct.unpack_from(">Q" if header[0] == 1 else ">I", header, 4)[0]
        taken = _plausible(_EPOCH_1904 + datetime.timedelta(seconds=seconds))
    if "location" in tags:
        latitude, longitude = _coordinates(tags["location"])
    return ImageFacts(taken, latitude, longitude, camera_name(tags.get("make"), tags.get("model")))


_USER_DATA_TAGS = {b"\xa9xyz": "location", b"\xa9day": "creationdate", b"\xa9mak": "make", b"\xa9mod": "model"}
_QUICKTIME_KEYS = {
    b"com.apple.quicktime.location.ISO6709": "location",
    b"com.apple.quicktime.creationdate": "creationdate",
    b"com.apple.quicktime.make": "make",
    b"com.apple.quicktime.model": "model",
}


def _quicktime_tags(movie: memoryview) -> dict[str, str]:
    """Return the QuickTime metadata: ``keys`` lists names, and ``ilst`` has values by the 1-based index of a name."""
    tags: dict[str, str] = {}
    meta = _inner(movie, b"meta")
    keys = _inner(meta, b"keys")
    names = [bytes(value[:64]) for _, value in _boxes(keys[8:])]
    for number, value in _boxes(_inner(meta, b"ilst")):
        index = int.from_bytes(number, "big") - 1
        name = _QUICKTIME_KEYS.get(names[index]) if 0 <= index < len(names) else None
        if name is not None:
            tags[name] = _text(_inner(value, b"data")[8:])
    return tags


def _inner(data: memoryview, name: bytes) -> memoryview:
    """Return the content of the first box with a name; empty without one."""
    return next((content for found, content in _boxes(data) if found == name), memoryview(b""))


def _boxes(data: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """Yield the names and contents of the boxes in a list."""
    offset = 0
    for _ in range(_MOST_BOXES):
        if offset + 8 > len(data):
            return
        size, name = struct.unpack_from(">I4s", data, offset)
        begin = offset + 8
        if size == 1 and begin + 8 <= len(data):
            size, begin = struct.unpack_from(">Q", data, begin)[0], begin + 8
        end = len(data) if size == 0 else offset + size
        if end < begin or end > len(data):
            return
        yield name, data[begin:end]
        offset = end


def _matroska_date(data: memoryview) -> datetime.datetime | None:
    for segment_id, segment in _elements(data):
        if segment_id == _SEGMENT:
            for info_id, info in _elements(segment):
                if info_id == _INFO:
                    date = next((value for found, value in _elements(info) if found == _DATE), None)
                    if date is None or len(date) != 8:
                        return None
                    nanoseconds = struct.unpack(">q", date)[0]
                    return _plausible(_EPOCH_2001 + datetime.timedelta(microseconds=nanoseconds / 1000))
    return None


def _elements(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield the ids and contents of the EBML elements in a list; one of unknown size extends to the end."""
    offset = 0
    for _ in range(_MOST_BOXES):
        if offset >= len(data):
            return
        element, offset = _variable_int(data, offset, keep_marker=True)
        size, begin = _variable_int(data, offset, keep_marker=False)
        unknown = size == (1 << (7 * (begin - offset))) - 1
        end = len(data) if unknown else min(begin + size, len(data))
        yield element, data[begin:end]
        offset = end


def _variable_int(data: memoryview, offset: int, *, keep_marker: bool) -> tuple[int, int]:
    """Return an integer of variable length and its end; ids keep the marker bit of the length, sizes do not."""
    first = data[offset]
    length = 9 - first.bit_length()
    if length > 8 or offset + length > len(data):
        raise ValueError("no number")
    value = int.from_bytes(data[offset : offset + length], "big")
    return (value if keep_marker else value & ((1 << (7 * length)) - 1)), offset + length


def _avi_date(data: memoryview) -> datetime.datetime | None:
    """Return the time of the ``IDIT`` chunk of an AVI, such as ``Fri Dec 29 11:48:11 2023``, or in ISO 8601."""
    offset = bytes(data[: 64 * 1024]).find(b"IDIT")
    if offset < 0:
        return None
    size = struct.unpack_from("<I", data, offset + 4)[0]
    text = _text(data[offset + 8 : offset + 8 + min(size, _MOST_TEXT)]).strip("\0\n ")
    try:
        return datetime.datetime.strptime(text.title(), "%a %b %d %H:%M:%S %Y")
    except ValueError:
        return _datetime(text)


def _datetime(text: str) -> datetime.datetime | None:
    match = _TIME.match(text)
    if match is None:
        return None
    try:
        when = datetime.datetime.fromisoformat(match[0].replace(" ", "T"))
    except ValueError:
        return None
    return when if when.tzinfo is None else _plausible(when)


def _plausible(when: datetime.datetime) -> datetime.datetime | None:
    tomorrow = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=1)
    return when if _EARLIEST < when < tomorrow else None


def _coordinates(text: str) -> tuple[float | None, float | None]:
    match = _ISO_6709.match(text)
    if match is None:
        return None, None
    return _valid(float(match[1]), float(match[2]))


def _3gpp_coordinates(value: bytes) -> tuple[float | None, float | None]:
    """Return latitude and longitude, which follow a name and are in units of 1/65536 degree."""
    name_end = value.index(b"\0", 6)
    longitude, latitude = (part / 65536 for part in struct.unpack_from(">ii", value, name_end + 2))
    return _valid(latitude, longitude)


def _valid(latitude: float, longitude: float) -> tuple[float | None, float | None]:
    return (latitude, longitude) if abs(latitude) <= 90 and abs(longitude) <= 180 else (None, None)


def _text(data: memoryview) -> str:
    return bytes(data[:_MOST_TEXT]).decode("utf-8", "replace").split("\0", 1)[0].strip()
