"""Decoding of clips in a child process each, which runs ``video_process`` and limits its own resources.

This side kills the child when it takes too long in wall-clock time or writes an unexpected message, and runs a few
children at a time.
"""

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import IO, Any

import attrs

from mlxk.adapters.opencv import container_tags
from mlxk.application.ports.media import VideoDecoder
from mlxk.application.recently_used import RecentlyUsed
from mlxk.domain.errors import BackendNotInstalledError, ValidationError
from mlxk.domain.generation.media import DecodedImage, DecodedVideo, VideoFrame
from mlxk.domain.generation.media_facts import ReadVideo, VideoFacts
from mlxk.domain.generation.video import MAX_FRAME_PIXELS, MAX_VIDEO_SECONDS, EncodedVideo, frame_digest

CPU_SECONDS = 30
"""Processor time for one clip; ordinary clips take one or two seconds."""

WALL_SECONDS = 120.0
"""Wall-clock time for one clip."""

MEMORY_BYTES = 1024**3
"""Memory for one clip, in addition to three times its size."""

CACHE_BYTES = 128 * 1024**2
"""Size of the cache of decoded frames."""

PARALLEL_CLIPS = 2
"""Clips that are decoded at the same time; further ones wait."""

_FORMATS = "mov,mp4,matroska,webm,avi,gif"
_CODECS = (
    "h264,hevc,av1,libdav1d,libaom-av1,vp8,vp9,libvpx,libvpx-vp9,mpeg4,mpeg1video,mpeg2video,msmpeg4v2,msmpeg4,"
    "h263,mjpeg,gif,prores,dnxhd,theora,rawvideo,png,ffv1,huffyuv,qtrle,cinepak"
)
"""The demuxers and decoders that FFmpeg may use, of the hundreds that it has."""

_ENVIRONMENT = {
    "OPENCV_FFMPEG_CAPTURE_OPTIONS": (
        f"protocol_whitelist;none|format_whitelist;{_FORMATS}|codec_whitelist;{_CODECS}|enable_drefs;0"
    ),
    "OPENCV_FFMPEG_THREADS": "1",
    "OPENCV_FFMPEG_LOGLEVEL": "-8",
    "OPENCV_LOG_LEVEL": "SILENT",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}
"""The complete environment of the child."""

_EXIT_MEMORY = 3
"""``video_process.EXIT_MEMORY``; the module is not imported, since it loads OpenCV."""
_MOST_DOCUMENT = 4096
"""Longest JSON document of the child, bytes."""
_EXIT_SECONDS = 1.0
"""How long to wait for the status of a child that has closed its output."""
_NAMES = {"avc1": "h264", "hev1": "hevc", "hvc1": "hevc", "fmp4": "mpeg4", "mp4v": "mpeg4", "xvid": "mpeg4"}
_NAMES |= {"vp80": "vp8", "vp90": "vp9", "vp08": "vp8", "vp09": "vp9", "av01": "av1", "mjpg": "mjpeg", "jpeg": "mjpeg"}
"""Common codec names by the four-character codes of containers, in lower case."""

_SHORTFALL = 0.1
"""Share of a clip that may be missing at its end, since many containers state a little more than they have."""


@attrs.frozen
class Limits:
    """Limits of decoding one clip."""

    cpu_seconds: int = CPU_SECONDS
    wall_seconds: float = WALL_SECONDS
    memory_bytes: int = MEMORY_BYTES


class OpenCvVideoDecoder(VideoDecoder):
    """Decodes clips by OpenCV.

    Decoded frames are cached, since clients send the clips of a conversation again with every turn.

    Args:
        limits: Of each clip.
        max_bytes: Size of the cache.
    """

    def __init__(self, limits: Limits | None = None, max_bytes: int = CACHE_BYTES) -> None:
        self._limits = limits or Limits()
        self._slots = threading.BoundedSemaphore(PARALLEL_CLIPS)
        self._cache = RecentlyUsed[ReadVideo](max_bytes)

    def decode(self, video: EncodedVideo) -> ReadVideo:
        video.sampling.validate()
        if importlib.util.find_spec("cv2") is None:
            raise video.refused(
                BackendNotInstalledError,
                "is a clip, and decoding that needs OpenCV, which is not installed.",
                hint="Install it: pip install opencv-python-headless",
            )
        key = (video.digest, video.sampling)
        cached = self._cache.get(key)
        if cached is not None:
            return cached
        with self._slots, _Decoding(video, self._limits) as decoding:
            decoded = decoding.result()
        self._cache.put(key, decoded, sum(len(frame.image.pixels) for frame in decoded.video.frames))
        return decoded


class _UnexpectedReplyError(Exception):
    """The child has ended, or has written an unexpected message."""


class _Decoding:
    """The decoding of one clip in a child process, which leaving the block kills."""

    def __init__(self, video: EncodedVideo, limits: Limits) -> None:
        self._video = video
        self._limits = limits
        child_limits = {
            "seconds": limits.cpu_seconds,
            "memory_bytes": limits.memory_bytes + 3 * len(video.data),
            "pixels": MAX_FRAME_PIXELS,
            "clip_seconds": MAX_VIDEO_SECONDS,
        }
        program = os.path.join(os.path.dirname(__file__), "video_process.py")
        # Without this program's environment and current directory. In a process group of its own, so that Ctrl-C does
        # not reach it.
        self._child = subprocess.Popen(
            [sys.executable, "-I", program, json.dumps(child_limits)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_ENVIRONMENT,
            cwd="/",
            process_group=0,
        )
        self._timed_out = False
        self._timer = threading.Timer(limits.wall_seconds, self._time_out)
        self._timer.daemon = True
        self._timer.start()
        self._sender = threading.Thread(target=self._send, args=(video.data,), name="mlxk-clip", daemon=True)
        self._sender.start()

    def __enter__(self) -> "_Decoding":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._timer.cancel()
        self._child.kill()
        self._child.wait()
        self._sender.join()
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def result(self) -> ReadVideo:
        """Return the frames and facts. Raises as ``VideoDecoder.decode``."""
        try:
            facts = self._document()
            self._require_no_fault(facts)
            total, rate = max(int(facts["total"]), 1), float(facts["rate"])
            indices = self._video.sampling.indices(total, rate)
            self._sender.join()
            request = {
                "seconds": [index / rate for index in indices],
                "tolerance": 0.5 / rate,
                "pixels": self._video.sampling.frame_pixels,
            }
            self._send(json.dumps(request).encode())
            frames = self._frames(indices)
        except (_UnexpectedReplyError, LookupError, TypeError, ValueError, ArithmeticError) as error:
            raise self._failure() from error
        return self._read(facts, frames, indices, total, rate)

    def _read(
        self,
        facts: Mapping[str, Any],
        frames: tuple[VideoFrame, ...],
        indices: tuple[int, ...],
        total: int,
        rate: float,
    ) -> ReadVideo:
        seconds = total / rate
        codec = str(facts["codec"]).strip("\0 ").lower()
        codec = _NAMES.get(codec, codec if codec.isalnum() and codec.isascii() else "unknown")
        if not frames:
            raise self._refused(
                f"has frames in the codec {codec}, of which none can be decoded",
                hint="It is damaged, or OpenCV has no decoder for this codec here; convert it to H.264.",
            )
        last = frames[-1].seconds
        if len(frames) < len(indices) and last < seconds * (1 - _SHORTFALL) - 1:
            raise self._refused(f"is damaged or cut off: it should have {seconds:.1f} s, and ends after {last:.1f} s")
        return ReadVideo(
            DecodedVideo(frames, total, rate),
            VideoFacts(
                width=int(facts["width"]),
                height=int(facts["height"]),
                seconds=seconds,
                codec=codec,
                recorded=container_tags.read(self._video),
            ),
        )

    def _frames(self, indices: tuple[int, ...]) -> tuple[VideoFrame, ...]:
        most = self._video.sampling.frame_pixels
        frames: list[VideoFrame] = []
        for index in (*indices, None):
            document = self._document()
            if "frames" in document:
                return tuple(frames)
            self._require_no_fault(document)
            width, height = int(document["width"]), int(document["height"])
            if index is None or width < 1 or height < 1 or width * height > most:
                raise _UnexpectedReplyError
            pixels = self._bytes(width * height * 3)
            image = DecodedImage(width, height, pixels, frame_digest(self._video, index, width, height))
            frames.append(VideoFrame(index, float(document["seconds"]), image))
        raise _UnexpectedReplyError

    def _document(self) -> dict[str, Any]:
        length = int.from_bytes(self._bytes(8), "big")
        if length > _MOST_DOCUMENT:
            raise _UnexpectedReplyError
        document = json.loads(self._bytes(length))
        if not isinstance(document, dict):
            raise _UnexpectedReplyError
        return document

    def _bytes(self, count: int) -> bytes:
        content = _open(self._child.stdout).read(count)
        if len(content) < count:
            raise _UnexpectedReplyError
        return content

    def _send(self, data: bytes) -> None:
        with contextlib.suppress(OSError, ValueError):
            requests = _open(self._child.stdin)
            requests.write(len(data).to_bytes(8, "big"))
            requests.write(data)
            requests.flush()

    def _time_out(self) -> None:
        self._timed_out = True
        self._child.kill()

    def _require_no_fault(self, document: Mapping[str, Any]) -> None:
        fault = document.get("fault")
        if fault is None:
            return
        if fault == "long":
            most = MAX_VIDEO_SECONDS // 60
            raise self._refused(f"is too long ({document['seconds'] / 60:.0f} minutes); at most {most} are taken")
        if fault == "pixels":
            size = f"{document['width']} by {document['height']}"
            most = MAX_FRAME_PIXELS // 1_000_000
            raise self._refused(f"has frames with too many pixels ({size}); at most {most} million are taken")
        if fault == "frames":
            raise self._refused("has no frames")
        raise self._damaged()

    def _failure(self) -> ValidationError:
        """Return the error for a child that has ended, or has written an unexpected message."""
        try:
            status = self._child.wait(_EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            return self._damaged()
        if self._timed_out:
            return self._refused(f"takes more than {self._limits.wall_seconds:g} s to decode")
        if status in (-signal.SIGPROF, -signal.SIGXCPU):
            return self._refused(f"takes more than {self._limits.cpu_seconds} s of processor time to decode")
        if status == _EXIT_MEMORY:
            return self._refused(f"takes more than {self._limits.memory_bytes // 1024**2} MiB of memory to decode")
        return self._damaged()

    def _damaged(self) -> ValidationError:
        return self._refused(f"is damaged, or no {self._video.container.name} with frames that can be decoded")

    def _refused(self, message: str, hint: str | None = None) -> ValidationError:
        return self._video.refused(ValidationError, message, hint=hint)


def _open(pipe: IO[bytes] | None) -> IO[bytes]:
    if pipe is None:
        raise _UnexpectedReplyError
    return pipe
