"""What a photo says about itself: when, where and with which camera it was taken.

Owns the value and its wording for people and for models. The words come from files that strangers made, so they are
reduced to what a camera's name needs before anybody reads them.
"""

import datetime
import re

import attrs

MAX_CAMERA_CHARACTERS = 64

_SURPRISING = re.compile(r"[^\w .,+/&()'-]+")
"""What no camera's name needs, and Markdown, HTML or a prompt might mistake for its own."""


@attrs.frozen
class ImageFacts:
    """The facts that are known; each may be missing."""

    taken: datetime.datetime | None = None
    """Local time, with its offset from UTC when the photo states one."""
    latitude: float | None = None
    """Degrees, north positive; only together with the longitude."""
    longitude: float | None = None
    """Degrees, east positive."""
    camera: str | None = None

    @property
    def known(self) -> bool:
        """Whether there is any."""
        return any(each is not None for each in (self.location, self.taken, self.camera))

    @property
    def location(self) -> str | None:
        """The place to four decimals of a degree, about eleven metres."""
        if self.latitude is None or self.longitude is None:
            return None
        return f"{_degrees(self.latitude, 'NS')}, {_degrees(self.longitude, 'EW')}"

    @property
    def date(self) -> str | None:
        """The time to the minute, as ISO 8601 with a blank in place of the T."""
        return None if self.taken is None else self.taken.isoformat(sep=" ", timespec="minutes")

    def line(self, number: int | None) -> str | None:
        """Return the facts as one line for the model, or None when there is nothing to say.

        Args:
            number: By which the model is to know the image; None when it sees no other.
        """
        named = {"GPS": self.location, "Date": self.date, "Camera": self.camera}
        said = [f"{name}: {value}" for name, value in named.items() if value is not None]
        parts = said if number is None else [f"Image {number}", *said]
        return f"[{' | '.join(parts)}]" if parts else None


def camera_name(make: str | None, model: str | None) -> str | None:
    """Join the maker's name and the model's, of which many makers repeat the former in the latter."""
    make, model = _plain(make), _plain(model)
    if not make or not model:
        return model or make or None
    repeated = model.casefold().split()[0] == make.casefold().split()[0]
    return _plain(model if repeated else f"{make} {model}")


def _plain(text: str | None) -> str:
    words = _SURPRISING.sub(" ", text or "").split()
    return " ".join(words)[:MAX_CAMERA_CHARACTERS].strip()


def _degrees(value: float, directions: str) -> str:
    rounded = round(value, 4)
    return f"{abs(rounded):.4f}°{directions[rounded < 0]}"
