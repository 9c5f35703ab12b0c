"""Clips that somebody might send to harm: cut, changed, lying, endless, of another type, and naming other files.

Each is made of a number, always the same one of the same number.
"""

import functools
import os
import random
import socket
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
from models.clips import CODECS, box, greys, written

from mlxk.adapters.opencv.video_decoder import Limits, OpenCvVideoDecoder
from mlxk.domain.errors import ValidationError
from mlxk.domain.generation.video import EncodedVideo, VideoSampling

LIMITS = Limits(cpu_seconds=3, wall_seconds=30.0)

_EXTREMES = (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)

Make = Callable[[random.Random, "Traps"], bytes]


@attrs.frozen
class Traps:
    """What hostile clips name: whether it was touched shows at the end."""

    file: str = "/etc/hostname"
    address: str = "http://127.0.0.1:9/clip"


@functools.cache
def good(container: str) -> bytes:
    """Return a small clip without faults."""
    return written(greys(24, 64, 48), container)


def _any_good(rng: random.Random) -> bytes:
    return good(rng.choice([*CODECS, "gif"]))


def truncated(rng: random.Random, _: Traps) -> bytes:
    data = _any_good(rng)
    return data[: rng.randrange(1, len(data))]


def changed(rng: random.Random, _: Traps) -> bytes:
    data = bytearray(_any_good(rng))
    for _each in range(rng.choice([1, 4, 30, 200])):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data)


def lying(rng: random.Random, _: Traps) -> bytes:
    """Return a clip with an extreme number in one of its headers."""
    container = rng.choice(["mp4", "mov", "avi", "mkv"])
    data = bytearray(good(container))
    value = rng.choice(_EXTREMES)
    if container == "avi":
        # Time of a frame, number of frames, width and height; then scale, rate and length of the stream.
        header, stream = data.index(b"avih") + 8, data.index(b"strh") + 8
        place = rng.choice([header, header + 16, header + 32, header + 36, stream + 20, stream + 24, stream + 32])
        struct.pack_into("<I", data, place, value)
    elif container == "mkv":
        place = rng.randrange(40, 400)
        struct.pack_into(">I", data, place, value)
    else:
        name = rng.choice([b"mvhd", b"mdhd", b"tkhd", b"stts", b"stsz", b"stco", b"stsc", b"stsd", b"moov", b"trak"])
        place = data.index(name)
        place += rng.choice([-4, *range(4, 40, 4)])
        struct.pack_into(">I", data, place, value)
    return bytes(data)


def large(rng: random.Random, _: Traps) -> bytes:
    """Return a clip whose frames say that they are as large as those of 8K, or larger."""
    sides = rng.choice([(7680, 4320), (16384, 16384), (65535, 65535), (65535, 1000)])
    container = rng.choice(["mp4", "avi", "gif", "written"])
    if container == "written":
        return _written_8k()
    data = bytearray(good(container))
    if container == "gif":
        struct.pack_into("<HH", data, 6, *sides)
    elif container == "avi":
        header = data.index(b"strf") + 8
        struct.pack_into("<II", data, header + 4, *sides)
    else:
        entry = data.index(b"stsd") + 16
        struct.pack_into(">HH", data, entry + 28, *sides)
    return bytes(data)


@functools.cache
def _written_8k() -> bytes:
    return written(greys(2, 7680, 4320), "avi")


def endless(rng: random.Random, _: Traps) -> bytes:
    """Return a clip that goes on for very long, in its own time or in that of a decoder."""
    data = good("gif")
    first = data.index(b"\x21\xf9")  # the control block of a frame
    opening, frames = bytearray(data[:first]), bytearray(data[first:-1])
    if rng.random() < 0.5:  # each frame stands for eleven minutes
        place = -1
        while (place := frames.find(b"\x21\xf9\x04", place + 1)) >= 0:
            struct.pack_into("<H", frames, place + 4, 65535)
        return bytes(opening + frames * rng.choice([1, 30]) + b";")
    return heavy()


def heavy() -> bytes:
    """Return a small clip with thousands of large frames."""
    data = bytearray(good("gif"))
    struct.pack_into("<HH", data, 6, 4000, 3900)
    first = data.index(b"\x21\xf9")
    return bytes(data[:first] + data[first:-1] * 400 + b";")


_OTHERS = (b"", b"\x89PNG\r\n\x1a\n", b"PK\x03\x04", b"\x7fELF", b"RIFF$\0\0\0WAVE", b"OggS", b"%PDF-1.7", b"<html>")
_BEGINNINGS = (b"\0\0\0\x18ftypisom", b"\0\0\0\x14ftypqt  ", b"\x1aE\xdf\xa3", b"RIFF\xff\xff\xff\xffAVI ", b"GIF89a")


def of_another_type(rng: random.Random, _: Traps) -> bytes:
    magic = rng.choice([*_OTHERS, *_BEGINNINGS])
    return magic + rng.randbytes(rng.choice([0, 8, 100, 5000])) or b"\0"


def naming(rng: random.Random, traps: Traps) -> bytes:
    """Return a playlist, or a clip with a playlist or a reference in it, that names a file or an address."""
    target = rng.choice(
        [traps.file, f"file://{traps.file}", traps.address, f"concat:{traps.file}", f"subfile,,:{traps.file}"]
    )
    playlist = rng.choice(
        [
            f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{target}\n#EXT-X-ENDLIST\n",
            f"ffconcat version 1.0\nfile '{target}'\n",
            f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\na=control:{target}\n",
            f'<?xml version="1.0"?><MPD><Period><BaseURL>{target}</BaseURL></Period></MPD>',
            f"[playlist]\nFile1={target}\nNumberOfEntries=1\n",
            f'<asx version="3.0"><entry><ref href="{target}"/></entry></asx>',
        ]
    ).encode()
    kind = rng.randrange(5)
    if kind == 0:
        return playlist
    if kind == 1:  # behind the beginning of a container
        return rng.choice([b"\0\0\0\x14ftypisom\0\0\0\0isom", b"GIF89a", b"\x1aE\xdf\xa3"]) + playlist
    data = good("mov" if kind == 2 else "mp4")
    if kind in (2, 3):  # the data of the track is elsewhere
        alias = rng.choice([b"url ", b"alis", b"rsrc"])
        reference = box(b"dref", struct.pack(">II", 0, 1) + box(alias, struct.pack(">I", 0) + target.encode() + b"\0"))
        place = data.index(b"dref") - 4
        size = struct.unpack_from(">I", data, place)[0]
        return data[:place] + reference + data[place + size :]
    links = box(b"rmda", box(b"rdrf", struct.pack(">I4sI", 0, b"url ", len(target) + 1) + target.encode() + b"\0"))
    return box(b"ftyp", b"qt  \0\0\0\0qt  ") + box(b"moov", box(b"rmra", links))


def nested(rng: random.Random, _: Traps) -> bytes:
    """Return boxes in boxes, of sizes that do not fit."""
    content = rng.randbytes(16)
    for _each in range(rng.choice([10, 1000, 20000])):
        content = box(rng.choice([b"moov", b"trak", b"udta", b"meta"]), content)
    sizes = (struct.pack(">I", each) for each in (0, 1, 7, 0xFFFFFFFF))
    return box(b"ftyp", b"isom\0\0\0\0isom") + content + rng.choice(list(sizes)) + b"moov" + rng.randbytes(40)


KINDS: tuple[Make, ...] = (truncated, changed, lying, large, endless, of_another_type, naming, nested)


def hostile(number: int, traps: Traps) -> tuple[str, bytes]:
    """Return the name of a kind and a clip of it."""
    make = KINDS[number % len(KINDS)]
    return make.__name__, make(random.Random(number), traps)


def outcome(data: bytes, decoder: OpenCvVideoDecoder) -> str:
    """Return what came of a clip: how many frames, or the error without its numbers."""
    try:
        read = decoder.decode(EncodedVideo.of(data, "--video", VideoSampling(), "clip"))
    except ValidationError as error:
        return " ".join(error.message.split(": ")[-1].split(" (")[0].split()[:6])
    assert read.video.frames
    return "decoded"


@contextmanager
def traps() -> Iterator[tuple[Traps, list[str]]]:
    """Yield a file and an address, and a list of those that were touched in the block."""
    touched: list[str] = []
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as server:
        pipe = Path(folder) / "named.mp4"
        os.mkfifo(pipe)
        yield Traps(str(pipe), f"http://127.0.0.1:{server.getsockname()[1]}/clip.mp4"), touched
        server.setblocking(False)
        try:
            server.accept()
            touched.append("the address")
        except BlockingIOError:
            pass
        try:  # which has no reader
            os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
            touched.append("the file")
        except OSError:
            pass


def left_behind() -> list[int]:
    """Return the ids of processes that decode clips for this one."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes()
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, ValueError):
                continue
            if b"video_process" in words and parent == os.getpid():
                found.append(int(entry.name))
    return found
