"""Clips: containers by their first bytes, the frames that a model gets, tables, and what crosses to another process."""

import datetime
import math
import random

import numpy as np
import pytest

from mlxk.adapters.unix_socket import protocol
from mlxk.domain.errors import ValidationError
from mlxk.domain.generation.conversation import Conversation, Message
from mlxk.domain.generation.image_table import Chunk, ShownVideo, without_tables
from mlxk.domain.generation.media import DecodedImage, DecodedVideo, EncodedImage, ImageFormat, VideoFrame
from mlxk.domain.generation.media_facts import ImageFacts, ReadVideo, VideoFacts
from mlxk.domain.generation.video import (
    MAX_SEQUENCE_PIXELS,
    MAX_VIDEO_BYTES,
    VIDEOS,
    EncodedVideo,
    FrameSequence,
    VideoContainer,
    VideoSampling,
)

BEGINNINGS = {
    b"\0\0\0\x20ftypisom": VideoContainer.MP4,
    b"\0\0\0\x1cftypM4V ": VideoContainer.MP4,
    b"\0\0\0\x14ftypqt  ": VideoContainer.MOV,
    b"\0\0\0\x08wide\0\0": VideoContainer.MOV,
    b"\x1aE\xdf\xa3\x9fB\x86\x81\x01B\x82\x84webm": VideoContainer.WEBM,
    b"\x1aE\xdf\xa3\x9fB\x86\x81\x01B\x82\x88matroska": VideoContainer.MATROSKA,
    b"RIFF\0\0\0\0AVI LIST": VideoContainer.AVI,
    b"GIF89a\x40\x00": VideoContainer.GIF,
    b"\0\0\0\x18ftypheic": None,
    b"\0\0\0\x18ftypavif": None,
    b"RIFF\0\0\0\0WAVEfmt ": None,
    b"#EXTM3U\n#EXTINF:9,": None,
    b"ffconcat version 1.0\n": None,
    b"v=0\no=- 0 0 IN IP4 127.0.0.1": None,
    b"<?xml version='1.0'?><MPD>": None,
    b"\x89PNG\r\n\x1a\n": None,
    b"": None,
}


def clip(*seconds: float, total: int = 40, rate: float = 4.0) -> DecodedVideo:
    """Return a decoded clip with frames of one pixel."""
    frames = (
        VideoFrame(round(each * rate), each, DecodedImage(1, 1, bytes(3), f"{index:064x}"))
        for index, each in enumerate(seconds)
    )
    return DecodedVideo(tuple(frames), total, rate)


@pytest.mark.parametrize(("beginning", "container"), BEGINNINGS.items())
def test_containers_are_known_by_their_first_bytes(beginning: bytes, container: VideoContainer | None) -> None:
    assert VideoContainer.of(beginning) is container


def test_frames_are_those_that_mlx_vlm_takes() -> None:
    def its_own(total: int, rate: float, sampling: VideoSampling) -> list[int]:
        fewest, most = 4, min(sampling.max_frames, total) // 2 * 2
        count = int(min(max(total / rate * sampling.fps, fewest), most, total) // 2 * 2)
        return [int(each) for each in np.linspace(0, total - 1, count).round()]

    rng = random.Random(4)
    for _ in range(2000):
        total, rate = rng.randint(2, 5000), rng.choice([5.0, 23.976, 25.0, 29.97, 30.0, 60.0])
        sampling = VideoSampling(rng.choice([0.2, 1.0, 2.0, 7.5]), rng.randint(2, 128))
        assert list(sampling.indices(total, rate)) == its_own(total, rate, sampling)


def test_a_single_frame_is_all_there_is_or_all_that_is_asked_for() -> None:
    assert VideoSampling().indices(1, 30.0) == (0,)
    assert VideoSampling(max_frames=1).indices(300, 30.0) == (0,)


@pytest.mark.parametrize("size", [0, MAX_VIDEO_BYTES + 1])
def test_sizes_out_of_range_are_refused(size: int) -> None:
    with pytest.raises(ValidationError, match="--video"):
        VIDEOS.check_size(size, "--video")


def sequence(count: int) -> FrameSequence:
    """Return a clip of so many images."""
    images = (EncodedImage(b"", ImageFormat.JPEG, f"{index:064x}", f"video[{index}]") for index in range(count))
    return FrameSequence(tuple(images), 2.0, VideoSampling(fps=2.0), "video")


def test_a_sequence_of_images_has_the_times_of_its_rate_and_a_name_by_its_content() -> None:
    found = sequence(4).decoded(lambda image: DecodedImage(2, 1, bytes(6), image.digest))
    assert [(frame.index, frame.seconds) for frame in found.frames] == [(0, 0.0), (1, 0.5), (2, 1.0), (3, 1.5)]
    assert sequence(4).title == sequence(4).file_name != sequence(5).title


def test_a_sequence_of_images_must_have_one_size_and_not_too_many_pixels() -> None:
    decoded: list[str] = []

    def square(image: EncodedImage) -> DecodedImage:
        decoded.append(image.digest)
        return DecodedImage(side, side, b"", image.digest)

    side = math.isqrt(MAX_SEQUENCE_PIXELS // 4)
    assert len(sequence(4).decoded(square).frames) == 4
    decoded.clear()
    with pytest.raises(ValidationError) as refusal:
        sequence(8).decoded(square)
    most = MAX_SEQUENCE_PIXELS // 1_000_000
    assert (
        refusal.value.message
        == f"video: the frames have too many pixels; at most {most} million are taken of all of them"
    )
    assert (refusal.value.hint, len(decoded)) == ("Make them smaller, or send fewer.", 5)


def test_frames_are_images_with_their_times() -> None:
    shown = clip(0.0, 2.54)
    message = Message.of_parts("Before.", shown, "After.").with_frames_as_images()
    first, second = (frame.image for frame in shown.frames)
    assert message.parts == ("Before.", "Frame at 0.0 s:", first, "Frame at 2.5 s:", second, "After.")
    assert (message.images, message.content) == ((first, second), "Before.\nAfter.")


def test_a_table_says_what_is_known_and_is_left_out_later() -> None:
    facts = ImageFacts(datetime.datetime(2024, 5, 1, 12, 30), 48.25, -11.5)
    video = EncodedVideo.of(b"GIF89a" + bytes(9), "--video", original="walk_1.gif")
    read = ReadVideo(clip(0.0, 9.0, total=260), VideoFacts(640, 480, 65.0, "h264", facts))
    chunk = Chunk((), videos=(ShownVideo(1, video, read),))
    row = chunk.table().splitlines()[-3]
    cells = "walk_1.gif | 1:05 min | 640x480 | h264 | 2 of 260 | 📍 48.2500°N, 11.5000°W | 📅 2024-05-01 12:30 |"
    assert row == f"| 1 | {video.file_name} | {cells}"
    assert without_tables(f"{chunk.table()}\n\nIt moves.") == "It moves."
    assert (
        chunk.message([read.video, "What?"]).content == "[GPS: 48.2500°N, 11.5000°W | Date: 2024-05-01 12:30]\n\nWhat?"
    )


def test_a_clip_crosses_to_another_process() -> None:
    blobs: list[bytes] = []
    asked = Conversation((Message.of_parts(clip(0.0, 1.0), "What happens?"),))
    document = protocol.encoded(asked, blobs)
    assert protocol.decoded(document, tuple(blobs)) == asked
