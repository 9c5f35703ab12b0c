"""Clips are decoded by OpenCV in a process of its own, which holds its limits and leaves nothing behind."""

import datetime
import struct
import threading

import numpy as np
import pytest
from models import hostile_clips
from models.clips import CODECS, box, encoded, greys, plain, with_tags, written

from mlxk.adapters.opencv import container_tags
from mlxk.adapters.opencv.video_decoder import Limits, OpenCvVideoDecoder
from mlxk.domain.errors import ValidationError
from mlxk.domain.generation.media_facts import ImageFacts, ReadVideo
from mlxk.domain.generation.video import MAX_FRAME_PIXELS, VideoSampling

KNOWN = {"mp4": "mpeg4", "mov": "mpeg4", "avi": "mjpeg", "mkv": "mpeg4", "webm": "vp8", "gif": "gif"}


def decoded(data: bytes, sampling: VideoSampling | None = None, limits: Limits | None = None) -> ReadVideo:
    return OpenCvVideoDecoder(limits).decode(encoded(data, sampling))


def test_a_clip_of_each_container_is_decoded() -> None:
    assert set(KNOWN) == {*CODECS, "gif"}
    for container, codec in KNOWN.items():
        found = decoded(written(greys(30), container), VideoSampling(fps=2))
        assert (found.facts.width, found.facts.height, found.facts.codec) == (64, 48, codec)
        assert found.facts.seconds == pytest.approx(3.0, abs=0.1)
        brightness = [np.frombuffer(frame.image.pixels, np.uint8).mean() for frame in found.video.frames]
        wanted = [8 * frame.index + 8 for frame in found.video.frames]
        assert brightness == pytest.approx(wanted, abs=4), container


def test_pixels_are_rgb_and_rows_go_down() -> None:
    frame = np.zeros((48, 64, 3), np.uint8)
    frame[:24] = (250, 20, 20)
    frame[24:] = (20, 20, 250)
    image = decoded(written([frame] * 4, "avi")).video.frames[0].image
    pixels = np.frombuffer(image.pixels, np.uint8).reshape(image.height, image.width, 3)
    assert pixels[4, 4] == pytest.approx([250, 20, 20], abs=12)
    assert pixels[44, 60] == pytest.approx([20, 20, 250], abs=12)


def test_frames_are_made_as_small_as_asked_for() -> None:
    clip = written(plain([(9, 9, 9)] * 4, 320, 160))
    images = [frame.image for frame in decoded(clip, VideoSampling(max_pixels=64 * 32)).video.frames]
    assert {(image.width, image.height, len(image.pixels)) for image in images} == {(64, 32, 64 * 32 * 3)}


def test_a_long_clip_is_sought_through() -> None:
    clip = written([frame for frame in greys(30) for _ in range(40)], "mp4", 20.0)  # a minute
    found = decoded(clip, VideoSampling(fps=1, max_frames=6))
    assert [frame.index for frame in found.video.frames] == [0, 240, 480, 719, 959, 1199]
    assert [frame.seconds for frame in found.video.frames] == pytest.approx(
        [frame.index / 20 for frame in found.video.frames], abs=0.03
    )
    levels = [np.frombuffer(frame.image.pixels, np.uint8).mean() for frame in found.video.frames]
    assert levels == pytest.approx([8 * (frame.index // 40) + 8 for frame in found.video.frames], abs=4)


def test_one_frame_is_a_clip() -> None:
    assert [frame.index for frame in decoded(written(greys(1))).video.frames] == [0]


def test_what_quicktime_says_of_the_recording_is_read() -> None:
    def item(number: int, text: bytes) -> bytes:
        return box(struct.pack(">I", number), box(b"data", struct.pack(">II", 1, 0) + text))

    names = [b"location.ISO6709", b"creationdate", b"make", b"model"]
    keys = b"".join(box(b"mdta", b"com.apple.quicktime." + name) for name in names)
    values = [b"+48.2500-011.5000+010/", b"2024-05-01T12:30:15+0200", b"Apple", b"iPhone SE"]
    listed = b"".join(item(number, value) for number, value in enumerate(values, 1))
    meta = box(b"meta", box(b"keys", struct.pack(">II", 0, len(names)) + keys) + box(b"ilst", listed))
    zone = datetime.timezone(datetime.timedelta(hours=2))
    taken = datetime.datetime(2024, 5, 1, 12, 30, 15, tzinfo=zone)
    recorded = decoded(with_tags(written(greys(4), "mov"), meta)).facts.recorded
    assert recorded == ImageFacts(taken, 48.25, -11.5, "Apple iPhone SE")


def test_what_phones_write_into_an_mp4_is_read() -> None:
    text = b"+48.2500-011.5000/"
    tags = box(b"udta", box(b"\xa9xyz", struct.pack(">HH", len(text), 0) + text))
    clip = bytearray(with_tags(written(greys(4)), tags))
    seconds = int(
        (
            datetime.datetime(2024, 5, 1, tzinfo=datetime.UTC) - datetime.datetime(1904, 1, 1, tzinfo=datetime.UTC)
        ).total_seconds()
    )
    struct.pack_into(">I", clip, clip.index(b"mvhd") + 8, seconds)
    recorded = decoded(bytes(clip)).facts.recorded
    assert recorded == ImageFacts(datetime.datetime(2024, 5, 1, tzinfo=datetime.UTC), 48.25, -11.5)


UTC = datetime.UTC
CHRISTMAS = datetime.datetime(2023, 12, 25, 11, 48, 11)
SINCE_1904 = int((CHRISTMAS.replace(tzinfo=UTC) - datetime.datetime(1904, 1, 1, tzinfo=UTC)).total_seconds())
SINCE_2001 = int((CHRISTMAS.replace(tzinfo=UTC) - datetime.datetime(2001, 1, 1, tzinfo=UTC)).total_seconds()) * 10**9


def mp4_of(*boxes: bytes, size: int | None = None) -> bytes:
    """Return an MP4 that has nothing but these boxes of its movie; a size of 1 or 0 stands for a longer form of it."""
    movie, start = b"".join(boxes), box(b"ftyp", b"isom\0\0\2\0isommp41")
    if size == 1:
        return start + struct.pack(">I4sQ", 1, b"moov", len(movie) + 16) + movie
    return start + (box(b"moov", movie) if size is None else struct.pack(">I4s", size, b"moov") + movie)


def header_of(seconds: int, version: int = 0) -> bytes:
    """Return the header of a movie."""
    times = struct.pack(">QQ" if version else ">II", seconds, seconds)
    return box(b"mvhd", bytes([version, 0, 0, 0]) + times + bytes(32))


def place_of(longitude: float, latitude: float) -> bytes:
    """Return a place as 3GPP has it."""
    name = b"\0\0\0\0\x15\xc7Home\0\0"
    return box(b"udta", box(b"loci", name + struct.pack(">iii", int(longitude * 65536), int(latitude * 65536), 0)))


def avi_of(date: bytes) -> bytes:
    """Return an AVI that has nothing but a date."""
    return b"RIFF" + struct.pack("<I", 12 + len(date)) + b"AVI IDIT" + struct.pack("<I", len(date)) + date


def matroska_of(date: bytes, size: bytes | None = None) -> bytes:
    """Return a Matroska file that has nothing but a date; its segment has the stated size, or its own."""

    def element(name: str, content: bytes, size: bytes | None = None) -> bytes:
        return bytes.fromhex(name) + (size or (1 << 56 | len(content)).to_bytes(8, "big")) + content

    info = element("1549A966", element("EC", b"void") + element("4461", date))
    return element("1A45DFA3", b"\x42\x82\x88matroska") + element("18538067", element("EC", bytes(200)) + info, size)


IN_UTC = ImageFacts(CHRISTMAS.replace(tzinfo=UTC))
CONTAINERS: dict[str, tuple[bytes, ImageFacts]] = {
    "a short header": (mp4_of(header_of(SINCE_1904)), IN_UTC),
    "a long header": (mp4_of(header_of(SINCE_1904, 1)), IN_UTC),
    "a movie with a long size": (mp4_of(header_of(SINCE_1904), size=1), IN_UTC),
    "a movie to the end": (mp4_of(header_of(SINCE_1904), size=0), IN_UTC),
    "a movie beyond the end": (mp4_of(header_of(SINCE_1904), size=10**6), ImageFacts()),
    "a movie that ends before it begins": (mp4_of(header_of(SINCE_1904), size=7), ImageFacts()),
    "no clock": (mp4_of(header_of(0)), ImageFacts()),
    "the future": (mp4_of(header_of(10 * SINCE_1904, 1)), ImageFacts()),
    "no time at all": (mp4_of(header_of(2**63, 1)), ImageFacts()),
    "a place of 3GPP": (mp4_of(place_of(-11.5, 48.25)), ImageFacts(None, 48.25, -11.5)),
    "a place beyond the pole": (mp4_of(place_of(-11.5, 91)), ImageFacts()),
    "a place without an end": (mp4_of(box(b"udta", box(b"loci", b"\0\0\0\0\x15\xc7Home"))), ImageFacts()),
    "a date of a camera": (avi_of(b"MON DEC 25 11:48:11 2023\n\0"), ImageFacts(CHRISTMAS)),
    "a date of ISO": (avi_of(b"2023-12-25 11:48:11"), ImageFacts(CHRISTMAS)),
    "a date with a zone": (avi_of(b"2023-12-25T11:48:11Z"), IN_UTC),
    "a day that is none": (avi_of(b"2023-02-31 11:48:11"), ImageFacts()),
    "a date that is none": (avi_of(b"at Christmas"), ImageFacts()),
    "no date": (avi_of(b"")[:12], ImageFacts()),
    "a date of Matroska": (matroska_of(struct.pack(">q", SINCE_2001)), IN_UTC),
    "a segment without an end": (matroska_of(struct.pack(">q", SINCE_2001), b"\xff"), IN_UTC),
    "a segment beyond the end": (matroska_of(struct.pack(">q", SINCE_2001), b"\x50\x00"), IN_UTC),
    "a segment of no size": (matroska_of(struct.pack(">q", SINCE_2001), b"\0"), ImageFacts()),
    "a short date": (matroska_of(b"\0" * 4), ImageFacts()),
    "a date of the future": (matroska_of(struct.pack(">q", 2**63 - 1)), ImageFacts()),
}


@pytest.mark.parametrize("kind", CONTAINERS)
def test_times_and_places_of_every_container_are_read_and_those_that_make_no_sense_are_not(kind: str) -> None:
    data, found = CONTAINERS[kind]
    assert container_tags.read(encoded(data)) == found


@pytest.mark.parametrize("container", KNOWN)
def test_a_clip_without_tags_has_no_facts(container: str) -> None:
    assert decoded(written(greys(4), container)).facts.recorded == ImageFacts()


def test_a_clip_that_comes_again_is_not_decoded_again() -> None:
    clip, other = (encoded(written(greys(count))) for count in (6, 8))
    small = OpenCvVideoDecoder(max_bytes=50_000)
    first, second = small.decode(clip), small.decode(other)
    assert small.decode(other) is second
    assert small.decode(clip) == first
    assert small.decode(clip) is not first
    assert OpenCvVideoDecoder().decode(clip) == first


def test_frames_of_8k_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"frames with too many pixels \(7680 by 4320\); at most 16 million"):
        decoded(written(greys(1, 7680, 4320), "avi"))
    assert MAX_FRAME_PIXELS > 4096 * 2304


def test_a_clip_that_takes_too_long_is_refused() -> None:
    clip = hostile_clips.heavy()
    with pytest.raises(ValidationError, match=r"takes more than 1 s of processor time to decode"):
        decoded(clip, VideoSampling(fps=60, max_frames=128, max_pixels=1000), Limits(cpu_seconds=1))
    with pytest.raises(ValidationError, match=r"takes more than 0\.05 s to decode"):
        decoded(clip, limits=Limits(wall_seconds=0.05))
    assert hostile_clips.left_behind() == []


def test_a_clip_that_takes_too_much_memory_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"none can be decoded|takes more than 1 MiB"):
        decoded(written(greys(2, 4000, 3000), "avi"), limits=Limits(memory_bytes=2**20))


def test_a_clip_that_is_cut_off_says_where_it_ends() -> None:
    clip = written(greys(30), "avi")
    with pytest.raises(ValidationError, match=r"damaged or cut off: it should have 3\.0 s, and ends after \d\.\d s"):
        decoded(clip[: len(clip) // 2])


def test_hostile_clips_get_typed_errors_and_touch_nothing() -> None:
    decoder, faults = OpenCvVideoDecoder(hostile_clips.LIMITS), list[BaseException]()
    numbers, lock = iter(range(16)), threading.Lock()

    def work() -> None:
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            _, data = hostile_clips.hostile(number, named)
            try:
                hostile_clips.outcome(data, decoder)
            except BaseException as fault:  # noqa: BLE001 - told below
                faults.append(fault)

    with hostile_clips.traps() as (named, touched):
        workers = [threading.Thread(target=work) for _ in range(2)]
        for each in workers:
            each.start()
        for each in workers:
            each.join()
    assert (faults, touched, hostile_clips.left_behind()) == ([], [], [])


@pytest.mark.parametrize("number", range(6, 6 + 8 * 12, 8))
def test_a_clip_that_names_others_is_not_followed(number: int) -> None:
    with hostile_clips.traps() as (named, touched):
        kind, data = hostile_clips.hostile(number, named)
        assert kind == "naming"
        assert hostile_clips.outcome(data, OpenCvVideoDecoder()) != "decoded"
    assert touched == []
