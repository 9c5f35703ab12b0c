"""Clips for tests, written by OpenCV or byte by byte."""

import io
import struct
import tempfile
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from mlxk.domain.generation.video import EncodedVideo, VideoSampling

CODECS = {"mp4": "mp4v", "mov": "mp4v", "avi": "MJPG", "mkv": "XVID", "webm": "VP80"}
"""A code of four letters for each container that OpenCV writes."""

Colour = tuple[int, int, int]


def written(
    frames: Sequence[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]], container: str = "mp4", rate: float = 10.0
) -> bytes:
    """Return a clip of frames in RGB."""
    if container == "gif":
        return with_durations(frames, [round(1000 / rate)] * len(frames))
    height, width = frames[0].shape[:2]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"clip.{container}"
        code = cv2.VideoWriter.fourcc(*CODECS[container])
        writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, code, rate, (width, height))
        assert writer.isOpened()
        for frame in frames:
            writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        writer.release()
        return path.read_bytes()


def with_durations(
    frames: Sequence[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]], durations: Sequence[int]
) -> bytes:
    """Return a GIF of frames in RGB, each seen for so many milliseconds."""
    buffer = io.BytesIO()
    first, *others = map(Image.fromarray, frames)
    first.save(buffer, "GIF", save_all=True, append_images=others, duration=list(durations), loop=0)
    return buffer.getvalue()


def plain(
    colours: Sequence[Colour], width: int = 64, height: int = 48
) -> list[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]:
    """Return a frame of each colour."""
    return [np.full((height, width, 3), colour, np.uint8) for colour in colours]


def greys(count: int = 30, width: int = 64, height: int = 48) -> list[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]:
    """Return frames, each brighter than the one before."""
    return plain([(8 * index + 8,) * 3 for index in range(count)], width, height)


def encoded(data: bytes, sampling: VideoSampling | None = None, original: str | None = "clip.mp4") -> EncodedVideo:
    """Return a clip as it arrives in a prompt."""
    return EncodedVideo.of(data, "--video", sampling, original)


def box(name: bytes, content: bytes) -> bytes:
    """Return a box of an MP4."""
    return struct.pack(">I4s", 8 + len(content), name) + content


def with_tags(clip: bytes, tags: bytes) -> bytes:
    """Return an MP4 whose last box, the movie, has further boxes."""
    place = clip.rindex(b"moov") - 4
    return clip[:place] + box(b"moov", clip[place + 8 :] + tags)
