"""The program that decodes one clip: a process of its own, run by path, with nothing but OpenCV.

Decoders are large and old, and a clip comes from anybody. Here the system bounds what one can do: before the clip is
looked at, this process gives up to open any file, pipe or socket, to write files and to start processes, and it has
limits of processor time and memory, beyond which the system ends it. FFmpeg gets the clip from memory, without a name,
and has no protocol with which it could follow an address or a path inside.

``decoder`` starts it and talks to it. Through its standard input come the length of the clip (8 bytes, big-endian), the
clip, and later the times of the frames to return; it writes messages: a length (8 bytes) and a JSON document, after
those of frames their pixels. Every failure is a document with a ``fault``, or the end of the process.
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
"""Exit status after too much memory."""

_MEMORY_CHECK_SECONDS = 0.05
"""Processor time between two checks of the memory used."""

_SEEK_SECONDS = 2.0
"""A gap from which on the decoder goes to a frame that needs no earlier one, instead of decoding all between."""

_GAP = 3.0
"""A frame is missing where the next one is later by so many times half the time of a frame."""

_WHOLE = 0.9
"""A clip that has so much of its frames is not cut off: its last one is seen until the end."""

_LARGEST_RATE = 1000.0
"""Frames a second; more is a clock of the container, not a rate."""


class ClipError(Exception):
    """The clip cannot be decoded.

    Args:
        code: Why.
        facts: Numbers for the message.
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
        self._capture = self._opened()
        self._seeks = True
        self._place = -math.inf
        """The time of the frame that was decoded last, seconds."""
        self._total = 0
        """Frames, as the container says."""
        self._count = 0
        """Frames decoded since it was opened."""
        self._ended = False
        self._careful = False
        """Whether the frame before the last one is kept, since frames are not evenly spread."""
        self._before: Any = None

    def facts(self, most_seconds: float) -> dict[str, Any]:
        """Return what the container says, or, where it is not to be believed, what decoding all of it shows."""
        width, height = (round(self._of(name)) for name in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
        self._require_size(width, height)
        code = int(self._of(cv2.CAP_PROP_FOURCC)).to_bytes(4, "little", signed=True)
        rate, total = self._of(cv2.CAP_PROP_FPS), self._of(cv2.CAP_PROP_FRAME_COUNT)
        if not (0 < rate <= _LARGEST_RATE and total >= 1):
            total, rate = self._counted(most_seconds)
        if total / rate > most_seconds:
            raise ClipError("long", seconds=total / rate)
        codec = code.decode("ascii", "replace")
        self._total = round(total)
        return {"width": width, "height": height, "codec": codec, "total": round(total), "rate": rate}

    def frame(self, seconds: float, tolerance: float) -> tuple[float, Any] | None:
        """Return the first frame from a time on, with its own time; None when there is none any more.

        Recordings of screens have no frames while nothing changes: there it is the frame that is still to be seen.

        Args:
            seconds: The time, later than that of the frame returned before.
            tolerance: How much earlier the frame may be.
        """
        if self._seeks and seconds - max(self._place, 0.0) > _SEEK_SECONDS and not self._sought(seconds, tolerance):
            self._again(seeks=False)
        reached = self._reached(seconds - tolerance)
        if self._leaves_gap(reached, seconds, tolerance):
            if not self._careful:
                self._careful = True
                self._again(seeks=False)
                reached = self._reached(seconds - tolerance)
            if self._before is not None and (reached or self._count >= self._total * _WHOLE):
                return seconds, self._before
        if not reached:
            return None
        found, frame = self._capture.retrieve()
        if not found or frame is None:
            return None
        self._require_size(frame.shape[1], frame.shape[0])
        return self._place, frame

    def last_frame(self, after: float, tolerance: float) -> tuple[float, Any] | None:
        """Return the last frame of a clip that has ended, if it is later than a time by more than the tolerance."""
        end = self._place
        if end <= after + tolerance:
            return None
        self._again(seeks=self._seeks)
        return self.frame(end, tolerance)

    def _leaves_gap(self, reached: bool, seconds: float, tolerance: float) -> bool:
        """Whether the frame at a time is far from it, or the last one ended long before."""
        return self._place > seconds + _GAP * tolerance if reached else seconds > self._place + _GAP * tolerance

    def _reached(self, seconds: float) -> bool:
        while self._place < seconds:
            if self._careful and self._count and not self._ended:
                found, frame = self._capture.retrieve()
                self._before = frame if found else self._before
            if self._ended or not self._next():
                return False
        return True

    def _sought(self, seconds: float, tolerance: float) -> bool:
        """Go to a time; return whether the decoder is there, and no later."""
        if not self._capture.set(cv2.CAP_PROP_POS_MSEC, seconds * 1000) or not self._next():
            return False
        return seconds - _SEEK_SECONDS < self._place < seconds + tolerance

    def _next(self) -> bool:
        if not self._capture.grab():
            self._ended = True
            return False
        self._count += 1
        place = self._of(cv2.CAP_PROP_POS_MSEC) / 1000
        self._place = place if math.isfinite(place) else self._place
        return True

    def _counted(self, most_seconds: float) -> tuple[int, float]:
        """Return the number of frames and their rate, by decoding all of them."""
        count, last = 0, 0.0
        while self._next():
            count, last = count + 1, max(self._place, 0.0)
            if last > most_seconds:
                raise ClipError("long", seconds=last)
        if not count:
            raise ClipError("damaged")
        self._again(seeks=False)
        return count, min((count - 1) / last, _LARGEST_RATE) if last > 0 and count > 1 else 1.0

    def _again(self, *, seeks: bool) -> None:
        # Its ``release`` would end this process, which a later end of the object does not.
        self._capture, self._seeks, self._place = self._opened(), seeks, -math.inf
        self._count, self._ended, self._before = 0, False, None

    def _opened(self) -> Any:  # noqa: ANN401
        source: Any = io.BytesIO(self._data)  # OpenCV takes it, whatever its types say
        capture = cv2.VideoCapture(source, cv2.CAP_FFMPEG, [])
        if not capture.isOpened():
            raise ClipError("damaged")
        return capture

    def _of(self, name: int) -> float:
        value = float(self._capture.get(name))
        return value if math.isfinite(value) else -1.0

    def _require_size(self, width: int, height: int) -> None:
        if width < 1 or height < 1:
            raise ClipError("frames")
        if width * height > self._most_pixels:
            raise ClipError("pixels", width=width, height=height)


def smaller(frame: Any, most_pixels: int) -> Any:  # noqa: ANN401 - numpy's arrays, shape [height, width, 3]
    """Return a frame as RGB with at most so many pixels."""
    height, width = frame.shape[:2]
    if width * height > most_pixels:
        scale = math.sqrt(most_pixels / (width * height))
        size = (max(int(width * scale), 1), max(int(height * scale), 1))
        frame = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
    return cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)


def answer(clip: Clip, asked: Mapping[str, Any], replies: BinaryIO) -> None:
    """Write the frames at some times, and then how many there are."""
    count, place = 0, -1.0
    for seconds in asked["seconds"]:
        found = clip.frame(seconds, asked["tolerance"])
        ended = found is None
        # Many clips state a little more than they have.
        found = found or clip.last_frame(place, asked["tolerance"])
        if found is None:
            break
        place, frame = found
        pixels = smaller(frame, asked["pixels"])
        write(replies, {"seconds": max(place, 0.0), "width": pixels.shape[1], "height": pixels.shape[0]})
        replies.write(np.ascontiguousarray(pixels).data)
        count += 1
        if ended:
            break
    write(replies, {"frames": count})


def write(replies: BinaryIO, document: Mapping[str, Any]) -> None:
    """Write a document."""
    text = json.dumps(document).encode()
    replies.write(len(text).to_bytes(8, "big") + text)
    replies.flush()


def read(requests: BinaryIO) -> bytes:
    """Return what follows its length."""
    return requests.read(struct.unpack(">Q", requests.read(8))[0])


def give_up(seconds: int, most_bytes: int) -> None:
    """Limit this process, before it looks at a clip."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The default action of this signal ends the process, whatever it is doing.
    signal.setitimer(signal.ITIMER_PROF, seconds)
    limits = {
        resource.RLIMIT_CPU: seconds + 2,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_AS: _address_space() + most_bytes,
        # The three that are open stay; whatever would be opened, a file or a socket, is refused.
        resource.RLIMIT_NOFILE: 3,
    }
    for kind, most in limits.items():
        # Some systems do not enforce the one of the address space (macOS); there the check of what is in use applies.
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(kind, (most, most))
    if sys.platform == "darwin":
        _watch_memory(most_bytes)


def _watch_memory(most_bytes: int) -> None:
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def look(*_: object) -> None:
        if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start > most_bytes:
            os._exit(EXIT_MEMORY)

    signal.signal(signal.SIGVTALRM, look)
    signal.setitimer(signal.ITIMER_VIRTUAL, _MEMORY_CHECK_SECONDS, _MEMORY_CHECK_SECONDS)


def _address_space() -> int:
    """Return the size of the address space in use, bytes; where the system does not tell it, what is always enough."""
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
    except ClipError as fault:
        write(replies, fault.document)
    except MemoryError:
        os._exit(EXIT_MEMORY)
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            os._exit(EXIT_MEMORY)
        write(replies, {"fault": "damaged"})


if __name__ == "__main__":
    serve(sys.stdin.buffer, sys.stdout.buffer, json.loads(sys.argv[1]))
