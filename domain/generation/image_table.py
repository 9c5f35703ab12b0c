"""Numbered images and clips: their chunks, and the tables in Markdown that precede the completion of a chunk."""

import re
from collections.abc import Callable, Sequence

import attrs

from mlxk.domain.generation.conversation import Message, MessagePart
from mlxk.domain.generation.media import (
    DEFAULT_IMAGE_PROMPT,
    DEFAULT_MIXED_PROMPT,
    DecodedAudio,
    DecodedImage,
    DecodedVideo,
    EncodedImage,
)
from mlxk.domain.generation.media_facts import LINK, ImageFacts, ReadVideo
from mlxk.domain.generation.video import DEFAULT_VIDEO_PROMPT, Clip
from mlxk.domain.text import CONTROLS, DIRECTIONS

MARKER = "<!-- mlxk:filenames -->"
"""Marks a table of images, for clients, and to find it in later requests."""

UNKNOWN = "-"
"""Cell of an unknown fact."""

_ROW = re.compile(r"^\|\s*(\d{1,6})\s*\|\s*image_([0-9a-f]{8})\.", re.MULTILINE)
_TABLE = re.compile(rf"<details>\n<summary>[📸🎬][^\n]*</summary>\n\n{MARKER}\n(?:\|[^\n]*\n)*\n</details>(?:\n\n)?")
_CONTROLS = re.compile(f"[{CONTROLS}]+")
_DIRECTIONS = re.compile(f"[{DIRECTIONS}]+")
_MARKUP = {"\\": "\\\\", "|": "\\|", "<": "&lt;", ">": "&gt;", "&": "&amp;", "`": "&#96;"}
_MARKUP |= {"*": "\\*", "[": "\\[", "]": "\\]", "~": "\\~"}
_UNDERSCORE = re.compile(r"(?<![^\W_])_|_(?![^\W_])")
"""An underscore at the edge of a word, where Markdown may read it as emphasis."""


@attrs.frozen
class ShownImage:
    """One numbered image."""

    number: int
    """Counted from 1 over the conversation."""
    image: EncodedImage
    facts: ImageFacts | None = None
    """None when facts are not reported."""


@attrs.frozen
class ShownVideo:
    """One numbered clip."""

    number: int
    """Counted from 1 over the conversation."""
    video: Clip
    read: ReadVideo


@attrs.frozen
class Chunk:
    """The images and clips, at least one, that a model gets in one prompt."""

    images: tuple[ShownImage, ...]
    index: int = 1
    """Index of the chunk, from 1."""
    count: int = 1
    """Number of chunks."""
    videos: tuple[ShownVideo, ...] = ()

    @property
    def summary(self) -> str:
        """The visible line of the collapsed table of images."""
        first, last = self.images[0].number, self.images[-1].number
        if self.count > 1:
            consecutive = last - first == len(self.images) - 1
            numbers = f"{first}-{last}" if consecutive else ", ".join(str(image.number) for image in self.images)
            label = f"Image {first}" if len(self.images) == 1 else f"Images {numbers}"
            return f"📸 Chunk {self.index}/{self.count}: {label}"
        size = len(self.images)
        return f"📸 Image Metadata ({size} image{'s' if size > 1 else ''})"

    def table(self) -> str:
        """Return the collapsed tables in Markdown, without a final line break."""
        tables = []
        if self.images:
            columns = self._columns()
            rows = [[_CELLS[name](shown) for name in columns] for shown in self.images]
            tables.append(_table(self.summary, columns, rows))
        if self.videos:
            size = len(self.videos)
            columns = self._video_columns()
            rows = [[_VIDEO_CELLS[name](shown) for name in columns] for shown in self.videos]
            tables.append(_table(f"🎬 Video Metadata ({size} clip{'s' if size > 1 else ''})", columns, rows))
        return "\n\n".join(tables)

    def prompt(self, text: str) -> str:
        """Return the text, preceded by a line of facts for each image and clip."""
        several = len(self.images) + len(self.videos) > 1
        labelled = [(f"Image {image.number}", _facts(image)) for image in self.images]
        labelled += [(f"Video {video.number}", _recorded(video)) for video in self.videos]
        if not any(facts.known for _, facts in labelled):
            return text
        lines = [facts.line(label if several else None) for label, facts in labelled]
        return "\n".join([*filter(None, lines), "", text])

    def message(self, parts: Sequence[MessagePart]) -> Message:
        """Return the user message with the images and clips of this chunk.

        The facts precede the first text, several images or clips are labelled with their numbers, and a default prompt
        is added if there is no text.

        Args:
            parts: Text, audio, and the decoded images and clips of this chunk, in the order of the message.
        """
        images, videos, has_text = iter(self.images), iter(self.videos), False
        several = len(self.images) + len(self.videos) > 1
        arranged: list[MessagePart] = []
        for part in parts:
            if isinstance(part, DecodedImage):
                number = next(images).number
                arranged += [f"Image {number}:", part] if several else [part]
            elif isinstance(part, DecodedVideo):
                number = next(videos).number
                arranged += [f"Video {number}:", part] if several else [part]
            elif isinstance(part, str):
                arranged.append(part if has_text else self.prompt(part))
                has_text = True
            else:
                arranged.append(part)
        if not has_text:
            has_audio = any(isinstance(part, DecodedAudio) for part in parts)
            default = DEFAULT_IMAGE_PROMPT if self.images else DEFAULT_VIDEO_PROMPT
            arranged.append(self.prompt(DEFAULT_MIXED_PROMPT if has_audio else default))
        return Message.of_parts(*arranged)

    def _columns(self) -> list[str]:
        columns = ["Image", "Filename"]
        has_facts = any(shown.facts is not None for shown in self.images)
        if has_facts or any(shown.image.original for shown in self.images):
            columns.append("Original")
        return [*columns, "Location", "Date", "Camera"] if has_facts else columns

    def _video_columns(self) -> list[str]:
        columns = ["Video", "Filename"]
        if any(shown.video.original for shown in self.videos):
            columns.append("Original")
        columns += ["Duration", "Size", "Codec", "Frames"]
        has_facts = any(shown.read.facts.recorded is not None for shown in self.videos)
        return [*columns, "Location", "Date"] if has_facts else columns


class ImageNumbers:
    """Assigns numbers to the images and clips of a conversation, oldest first. The same image keeps its number."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._next = 1
        self._videos = 0

    def read(self, answer: str) -> None:
        """Reserve the numbers in the tables of an earlier completion."""
        self._numbers.update(_read_tables(answer))

    def of(self, image: EncodedImage) -> int:
        """Return the number of an image; a new image gets the lowest free number."""
        short = image.digest[:8]
        if short not in self._numbers:
            taken = set(self._numbers.values())
            while self._next in taken:
                self._next += 1
            self._numbers[short] = self._next
        return self._numbers[short]

    def of_video(self) -> int:
        """Return the number of the next clip."""
        self._videos += 1
        return self._videos


def without_tables(text: str) -> str:
    """Return an earlier completion without its tables."""
    return _TABLE.sub("", text) if MARKER in text else text


def _read_tables(text: str) -> dict[str, int]:
    """Return the tables of a completion as the first 8 digits of each image's digest to its number."""
    if MARKER not in text:
        return {}
    return {short: int(number) for number, short in _ROW.findall(text)}


def _table(summary: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [
        "<details>",
        f"<summary>{summary}</summary>",
        "",
        MARKER,
        _row(columns),
        "|" + "|".join("-" * (len(name) + 2) for name in columns) + "|",
        *map(_row, rows),
        "",
        "</details>",
    ]
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(icon: str, text: str | None) -> str:
    return f"{icon} {text}" if text else UNKNOWN


def _original(name: str | None) -> str:
    """Return a file name that cannot act as markup, a link or a line break."""
    name = _CONTROLS.sub(" ", name or "").strip()
    name = "".join(_MARKUP.get(character, character) for character in _DIRECTIONS.sub("", name))
    return LINK.sub(r"\1&#46;", _UNDERSCORE.sub(r"\\_", name)) or UNKNOWN


def _facts(shown: ShownImage) -> ImageFacts:
    return shown.facts or ImageFacts()


def _recorded(shown: ShownVideo) -> ImageFacts:
    return shown.read.facts.recorded or ImageFacts()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{seconds:.1f} s" if seconds < 60 else f"{minutes}:{rest:02} min"


_CELLS: dict[str, Callable[[ShownImage], str]] = {
    "Image": lambda shown: str(shown.number),
    "Filename": lambda shown: shown.image.file_name,
    "Original": lambda shown: _original(shown.image.original),
    "Location": lambda shown: _cell("📍", _facts(shown).location),
    "Date": lambda shown: _cell("📅", _facts(shown).date),
    "Camera": lambda shown: _cell("📷", _facts(shown).camera),
}

_VIDEO_CELLS: dict[str, Callable[[ShownVideo], str]] = {
    "Video": lambda shown: str(shown.number),
    "Filename": lambda shown: shown.video.file_name,
    "Original": lambda shown: _original(shown.video.original),
    "Duration": lambda shown: _duration(shown.read.facts.seconds),
    "Size": lambda shown: f"{shown.read.facts.width}x{shown.read.facts.height}",
    "Codec": lambda shown: shown.read.facts.codec,
    "Frames": lambda shown: f"{len(shown.read.video.frames)} of {shown.read.video.total_frames}",
    "Location": lambda shown: _cell("📍", _recorded(shown).location),
    "Date": lambda shown: _cell("📅", _recorded(shown).date),
}
