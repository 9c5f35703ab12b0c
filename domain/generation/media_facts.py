"""What is known of images and clips beside their pixels: when, where and by which camera they were taken."""

import datetime
import re
import unicodedata

import attrs

from mlxk.domain.generation.media import DecodedVideo

MAX_CAMERA_CHARACTERS = 64

_UNSAFE = re.compile(r"[^\w .,+/&()'-]+|(?<![^\W_])_+|_+(?![^\W_])|__+")
"""Characters that camera names do not need, and that could be markup in Markdown, HTML or a prompt."""
LINK = re.compile(r"(?<![^\W_])(www)\.", re.IGNORECASE)
"""The beginning of what is a link in Markdown viewers without any markup."""


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
        return any(each is not None for each in (self.location, self.taken, self.camera))

    @property
    def location(self) -> str | None:
        """The coordinates to four decimals of a degree, about eleven metres."""
        if self.latitude is None or self.longitude is None:
            return None
        return f"{_degrees(self.latitude, 'NS')}, {_degrees(self.longitude, 'EW')}"

    @property
    def date(self) -> str | None:
        """The time to the minute where the photo was taken, as ``2023-12-06 12:19``."""
        return None if self.taken is None else self.taken.replace(tzinfo=None).isoformat(sep=" ", timespec="minutes")

    def line(self, label: str | None) -> str | None:
        """Return the facts as one line for the prompt, or None when there are none.

        Args:
            label: What they are about, such as ``Image 1``; None leaves it out.
        """
        named = {"GPS": self.location, "Date": self.date, "Camera": self.camera}
        facts = [f"{name}: {value}" for name, value in named.items() if value is not None]
        parts = facts if label is None else [label, *facts]
        return f"[{' | '.join(parts)}]" if parts else None


@attrs.frozen
class VideoFacts:
    """What is known of a clip."""

    width: int
    """Of its frames as they are stored, upright, pixels."""
    height: int
    seconds: float
    """Its duration."""
    codec: str
    """The common name of the encoding of its frames, such as ``h264``."""
    recorded: ImageFacts | None = None
    """When, where and with what it was recorded; None when that is not reported."""


@attrs.frozen
class ReadVideo:
    """The frames of a clip, and what is known of it."""

    video: DecodedVideo
    facts: VideoFacts


def camera_name(make: str | None, model: str | None) -> str | None:
    """Join the names of maker and model, without the maker if the model's name begins with it."""
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
