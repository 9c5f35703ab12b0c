"""The program that decodes one clip, in a sandboxed process: run by path, and importing only OpenCV and numpy.

Decoders are large and old, and clips are untrusted. Before this process reads the clip, it sets resource limits: it can
open no file, pipe or socket, write no file and start no process, and the system ends it beyond its limits of processor
time and memory. FFmpeg reads the clip from memory, without a file name, and has no protocol by which it could follow a
URL or a path inside the clip.

``video_decoder`` starts it. Standard input carries the clip and then a JSON request for frames, standard output JSON
documents, that of a frame followed by its pixels; each but the pixels is preceded by its length (8 bytes, big-endian).
Every failure is a document with a ``fault``, or the end of the process.
"""

import contextlib
import io
import json
import math
import os
import resource
import signal
import struct
import sys
from collections.abc import Mapping
from typing import Any, BinaryIO

import cv2
import numpy as np

EXIT_MEMORY = 3
"""Exit status when the memory limit is exceeded."""

_MEMORY_CHECK_SECONDS = 0.05
"""Processor time between two checks of the memory in use."""

_SEEK_SECONDS = 2.0
"""Longest distance to the next wanted frame that is decoded; beyond it the decoder seeks."""

_GAP = 3.0
"""A frame is missing where the next one is later by this many tolerances, each half the duration of a frame."""

_COMPLETE = 0.9
"""A clip with this share of its stated frames is not cut off: its last frame is shown until the end."""

_LARGEST_RATE = 1000.0
"""Frames per second; a larger number is the container's time base, not a frame rate."""


class ClipError(Exception):
    """The clip cannot be decoded.

    Args:
        code: The fault.
        facts: Numbers for the error message.
    """

    def __init__(self, code: str, **facts: object) -> None:
        super().__init__(code)
        self.document = {"fault": code, **facts}


class Clip:
    """A clip in memory.

    Args:
        data: The complete file.
        most_pixels: Largest number of pixels of a frame.
    """

    def __init__(self, data: bytes, most_pixels: int) -> None:
        self._data = data
        self._most_pixels = most_pixels
        self._capture = self._new_capture()
        self._may_seek = True
        self._position = -math.inf
        """Time of the last decoded frame, seconds."""
        self._total = 0
        """Number of frames that the container states."""
        self._count = 0
        """Frames decoded since the capture was opened."""
        self._ended = False
        self._keeps_previous = False
        """Whether the frame before the current one is kept, since the frames have varying distances."""
        self._previous: Any = None

    def facts(self, most_seconds: float) -> dict[str, Any]:
        """Return size, codec, number of frames and rate, as the container states or, if implausible, as counted."""
        width, height = (round(self._property(name)) for name in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
        self._require_size(width, height)
        code = int(self._property(cv2.CAP_PROP_FOURCC)).to_bytes(4, "little", signed=True)
        rate, total = self._property(cv2.CAP_PROP_FPS), self._property(cv2.CAP_PROP_FRAME_COUNT)
        if not (0 < rate <= _LARGEST_RATE and total >= 1):
            total, rate = self._count_frames(most_seconds)
        if total / rate > most_seconds:
            raise ClipError("long", seconds=total / rate)
        codec = code.decode("ascii", "replace")
        self._total = round(total)
        return {"width": width, "height": height, "codec": codec, "total": round(total), "rate": rate}

    def frame(self, seconds: float, tolerance: float) -> tuple[float, Any] | None:
        """Return the time and the pixels of the first frame at or after a time; None after the last frame.

        Screen recordings have no frames while nothing changes: in such a gap it is the frame before, still shown.

        Args:
            seconds: The time, later than that of the frame returned before.
            tolerance: How much earlier the frame may be.
        """
        distance = seconds - max(self._position, 0.0)
        if self._may_seek and distance > _SEEK_SECONDS and not self._seek(seconds, tolerance):
            self._reopen(may_seek=False)
        reached = self._advance_to(seconds - tolerance)
        if self._leaves_gap(reached, seconds, tolerance):
            if not self._keeps_previous:
                self._keeps_previous = True
                self._reopen(may_seek=False)
                reached = self._advance_to(seconds - tolerance)
            if self._previous is not None and (reached or self._count >= self._total * _COMPLETE):
                return seconds, self._previous
        if not reached:
            return None
        found, frame = self._capture.retrieve()
        if not found or frame is None:
            return None
        self._require_size(frame.shape[1], frame.shape[0])
        return self._position, frame

    def last_frame(self, after: float, tolerance: float) -> tuple[float, Any] | None:
        """Return the last frame of a clip decoded to its end, if it is later than a time by more than the tolerance."""
        end = self._position
        if end <= after + tolerance:
            return None
        self._reopen(may_seek=self._may_seek)
        return self.frame(end, tolerance)

    def _leaves_gap(self, reached: bool, seconds: float, tolerance: float) -> bool:
        """Whether the reached frame is long after a time, or the last frame long before it."""
        return self._position > seconds + _GAP * tolerance if reached else seconds > self._position + _GAP * tolerance

    def _advance_to(self, seconds: float) -> bool:
        """Decode frames up to the first one at or after a time; return whether there is one."""
        while self._position < seconds:
            if self._keeps_previous and self._count and not self._ended:
                found, frame = self._capture.retrieve()
                self._previous = frame if found else self._previous
            if self._ended or not self._grab():
                return False
        return True

    def _seek(self, seconds: float, tolerance: float) -> bool:
        """Seek to shortly before a time; return whether that succeeded."""
        if not self._capture.set(cv2.CAP_PROP_POS_MSEC, seconds * 1000) or not self._grab():
            return False
        return seconds - _SEEK_SECONDS < self._position < seconds + tolerance

    def _grab(self) -> bool:
        """Decode the next frame; return False at the end."""
        if not self._capture.grab():
            self._ended = True
            return False
        self._count += 1
        self._position = self._property(cv2.CAP_PROP_POS_MSEC) / 1000
        return True

    def _count_frames(self, most_seconds: float) -> tuple[int, float]:
        """Return the number of frames and their rate, by decoding all of them."""
        count, last = 0, 0.0
        while self._grab():
            count, last = count + 1, max(self._position, 0.0)
            if last > most_seconds:
                raise ClipError("long", seconds=last)
        if not count:
            raise ClipError("damaged")
        self._reopen(may_seek=False)
        return count, min((count - 1) / last, _LARGEST_RATE) if last > 0 and count > 1 else 1.0

    def _reopen(self, *, may_seek: bool) -> None:
        # Without ``release`` of the old capture, which would end this process; its destructor does not.
        self._capture, self._may_seek, self._position = self._new_capture(), may_seek, -math.inf
        self._count, self._ended, self._previous = 0, False, None

    def _new_capture(self) -> Any:  # noqa: ANN401
        source: Any = io.BytesIO(self._data)  # OpenCV accepts it, although its type stubs do not
        capture = cv2.VideoCapture(source, cv2.CAP_FFMPEG, [])
        if not capture.isOpened():
            raise ClipError("damaged")
        return capture

    def _property(self, name: int) -> float:
        value = float(self._capture.get(name))
        return value if math.isfinite(value) else -1.0

    def _require_size(self, width: int, height: int) -> None:
        if width < 1 or height < 1:
            raise ClipError("frames")
        if width * height > self._most_pixels:
            raise ClipError("pixels", width=width, height=height)


def smaller(frame: Any, most_pixels: int) -> Any:  # noqa: ANN401 - numpy's arrays, shape [height, width, 3]
    """Return a frame as RGB, scaled down to a number of pixels."""
    height, width = frame.shape[:2]
    if width * height > most_pixels:
        scale = math.sqrt(most_pixels / (width * height))
        size = (max(int(width * scale), 1), max(int(height * scale), 1))
        frame = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
    return cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)


def answer(clip: Clip, request: Mapping[str, Any], replies: BinaryIO) -> None:
    """Write the frames at the requested times, and then their number."""
    count, position = 0, -1.0
    for seconds in request["seconds"]:
        found = clip.frame(seconds, request["tolerance"])
        ended = found is None
        # Many clips state a few more frames than they have.
        found = found or clip.last_frame(position, request["tolerance"])
        if found is None:
            break
        position, frame = found
        pixels = smaller(frame, request["pixels"])
        write(replies, {"seconds": max(position, 0.0), "width": pixels.shape[1], "height": pixels.shape[0]})
        replies.write(np.ascontiguousarray(pixels).data)
        count += 1
        if ended:
            break
    write(replies, {"frames": count})


def write(replies: BinaryIO, document: Mapping[str, Any]) -> None:
    """Write a document with its length."""
    text = json.dumps(document).encode()
    replies.write(len(text).to_bytes(8, "big") + text)
    replies.flush()


def read(requests: BinaryIO) -> bytes:
    """Read a length and return that many bytes."""
    return requests.read(struct.unpack(">Q", requests.read(8))[0])


def give_up(seconds: int, most_bytes: int) -> None:
    """Set the limits of this process, before it reads a clip."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # SIGPROF ends the process by default, whatever it is doing.
    signal.setitimer(signal.ITIMER_PROF, seconds)
    limits = {
        resource.RLIMIT_CPU: seconds + 2,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_AS: _address_space() + most_bytes,
        # The three standard descriptors stay open; opening another file or socket fails.
        resource.RLIMIT_NOFILE: 3,
    }
    for kind, most in limits.items():
        # macOS does not enforce the limit of the address space; there ``_watch_memory`` checks the memory in use.
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(kind, (most, most))
    if sys.platform == "darwin":
        _watch_memory(most_bytes)


def _watch_memory(most_bytes: int) -> None:
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def check(*_: object) -> None:
        if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start > most_bytes:
            os._exit(EXIT_MEMORY)

    signal.signal(signal.SIGVTALRM, check)
    signal.setitimer(signal.ITIMER_VIRTUAL, _MEMORY_CHECK_SECONDS, _MEMORY_CHECK_SECONDS)


def _address_space() -> int:
    """Return the size of the address space in use, bytes; where the system does not report it, a large number."""
    with contextlib.suppress(OSError, ValueError, IndexError), open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[0]) * resource.getpagesize()
    return 2**36


def serve(requests: BinaryIO, replies: BinaryIO, limits: Mapping[str, int]) -> None:
    """Decode one clip."""
    cv2.setNumThreads(1)
    give_up(limits["seconds"], limits["memory_bytes"])
    try:
        clip = Clip(read(requests), limits["pixels"])
        write(replies, clip.facts(limits["clip_seconds"]))
        answer(clip, json.loads(read(requests)), replies)
    except ClipError as error:
        write(replies, error.document)
    except MemoryError:
        os._exit(EXIT_MEMORY)
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            os._exit(EXIT_MEMORY)
        write(replies, {"fault": "damaged"})


if __name__ == "__main__":
    serve(sys.stdin.buffer, sys.stdout.buffer, json.loads(sys.argv[1]))
