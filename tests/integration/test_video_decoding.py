"""Clips are decoded by OpenCV in a process of its own, which holds its limits and leaves nothing behind."""

import datetime
import struct
import threading

import numpy as np
import pytest
from models import hostile_clips
from models.clips import CODECS, box, encoded, greys, plain, with_tags, written

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
