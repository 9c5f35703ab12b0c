"""Metadata of images and clips: time, place and camera of the recording, and technical data of clips."""

import datetime
import re
import unicodedata

import attrs

from mlxk.domain.generation.media import DecodedVideo

MAX_CAMERA_CHARACTERS = 64

_UNSAFE = re.compile(r"[^\w .,+/&()'-]+|(?<![^\W_])_+|_+(?![^\W_])|__+")
"""Characters that could be markup in Markdown, HTML or a prompt; camera names do not need them."""
LINK = re.compile(r"(?<![^\W_])(www)\.", re.IGNORECASE)
"""The prefix of text that Markdown viewers turn into a link by themselves."""


@attrs.frozen
class ImageFacts:
    """EXIF facts of an image; each may be missing."""

    taken: datetime.datetime | None = None
    """Local time, with its offset from UTC when the photo states one."""
    latitude: float | None = None
    """Degrees, north positive; only together with the longitude."""
    longitude: float | None = None
    """Degrees, east positive."""
    camera: str | None = None

    @property
    def known(self) -> bool:
        """Whether any fact is known."""
        return any(fact is not None for fact in (self.location, self.taken, self.camera))

    @property
    def location(self) -> str | None:
        """The coordinates to four decimals of a degree, about eleven metres."""
        if self.latitude is None or self.longitude is None:
            return None
        return f"{_degrees(self.latitude, 'NS')}, {_degrees(self.longitude, 'EW')}"

    @property
    def date(self) -> str | None:
        """Local time of the photo to the minute, such as ``2023-12-06 12:19``."""
        return None if self.taken is None else self.taken.replace(tzinfo=None).isoformat(sep=" ", timespec="minutes")

    def line(self, label: str | None) -> str | None:
        """Return the facts as one line for the prompt, or None when there are none.

        Args:
            label: Name of the image, such as ``Image 1``; None leaves it out.
        """
        named = {"GPS": self.location, "Date": self.date, "Camera": self.camera}
        facts = [f"{name}: {value}" for name, value in named.items() if value is not None]
        parts = facts if label is None else [label, *facts]
        return f"[{' | '.join(parts)}]" if parts else None


@attrs.frozen
class VideoFacts:
    """Metadata of a clip."""

    width: int
    """Width of its stored frames, upright, pixels."""
    height: int
    """Height of its stored frames, upright, pixels."""
    seconds: float
    """Its duration."""
    codec: str
    """Common name of its video codec, such as ``h264``."""
    recorded: ImageFacts | None = None
    """Time, place and camera of the recording; None when these are not reported."""


@attrs.frozen
class ReadVideo:
    """The frames that a model gets of a clip, and the clip's metadata."""

    video: DecodedVideo
    facts: VideoFacts


def camera_name(make: str | None, model: str | None) -> str | None:
    """Return the camera's name: maker and model, or the model alone if its name begins with the maker."""
    make, model = _plain(make), _plain(model)
    if not make or not model:
        return model or make or None
    repeated = model.casefold().split()[0] == make.casefold().split()[0]
    return _plain(model if repeated else f"{make} {model}")


def _plain(text: str | None) -> str:
    composed = unicodedata.normalize("NFC", text or "")
    words = LINK.sub(r"\1 ", _UNSAFE.sub(" ", composed)).split()
    return " ".join(words)[:MAX_CAMERA_CHARACTERS].strip()


def _degrees(value: float, directions: str) -> str:
    rounded = round(value, 4)
    return f"{abs(rounded):.4f}°{directions[rounded < 0]}"
