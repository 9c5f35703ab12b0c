"""Finds the images and recordings that the words of a prompt name, such as ``What is this? ./photo.jpg``.

Only words that a user typed are searched. A text that was piped or read from a file may hold any path, and what is in
it must not decide which files a model gets.
"""

import os
import re
from collections.abc import Iterator, Sequence

import attrs

from mlxk.domain.generation.media import SIGNATURE_BYTES, ImageFormat

IMAGE_NAME = re.compile(r"\.(jpe?g|png|gif|webp|hei[cf]|avif|bmp|tiff?)$", re.IGNORECASE)
"""Matches the name of an image."""

_RECORDING_NAME = re.compile(r"\.(wav|mp3|flac|m4a|ogg|oga|opus|aac|aiff?|caf|amr|wma)$", re.IGNORECASE)

_PATH = re.compile(
    r"""(?<![^\s(])(?:
        (?P<quote>["'])(?P<quoted>(?:\.{1,2}|~)?/[^"'\n]{1,4096})(?P=quote)
        |(?P<bare>(?:\.{1,2}|~)?/(?:\\.|[^\s\\])+)
    )""",
    re.VERBOSE,
)
"""A path in quotes, or with spaces escaped, as terminals insert a dropped file."""

_BEGINNING = re.compile(r"(?:\.{1,2}|~)?/")
_PUNCTUATION = ".,;:!?)]}'\""


@attrs.frozen
class NamedFile:
    """A file that a prompt names."""

    typed: str
    path: str
    """Absolute."""
    is_image: bool = False
    is_recording: bool = False

    @property
    def is_media(self) -> bool:
        """Whether it is an image or a recording."""
        return self.is_image or self.is_recording


Piece = str | NamedFile
"""A part of a prompt: text, or the name of an existing regular file."""


def find(arguments: Sequence[str]) -> list[Piece]:
    """Split a prompt at the files that it names.

    Args:
        arguments: The prompt as the shell passed it; one argument may be a path with spaces.
    """
    pieces: list[Piece] = []
    for index, argument in enumerate(arguments):
        if index:
            pieces.append(" ")
        whole = _file(argument) if _BEGINNING.match(argument) else None
        pieces += _split(argument) if whole is None else [whole]
    return pieces


def names_file_first(line: str) -> bool:
    """Whether a line begins with the path of an existing regular file, and not with one word behind a slash."""
    found = _PATH.match(line)
    return found is not None and any(file.typed.count("/") > 1 for file, _ in _files_of(found))


def without_media(pieces: Sequence[Piece], attached: Sequence[NamedFile]) -> str:
    """Return the text of a prompt whose files are attached.

    A single file that stands first or last is left out. Elsewhere the name of a file is part of the sentence; its
    directories are not.
    """
    left_out = attached[0] if len(attached) == 1 and attached[0] in (_first(pieces), _first(pieces[::-1])) else None
    shown = (
        each if isinstance(each, str) else os.path.basename(each.path) if each in attached else each.typed
        for each in pieces
        if each is not left_out
    )
    return "".join(shown).strip()


def _first(pieces: Sequence[Piece]) -> Piece | None:
    return next((each for each in pieces if not isinstance(each, str) or each.strip()), None)


def _split(text: str) -> Iterator[Piece]:
    end = 0
    for match in _PATH.finditer(text):
        for file, stop in _files_of(match):
            yield text[end : match.start()]
            yield file
            end = stop
    yield text[end:]


def _files_of(match: re.Match[str]) -> Iterator[tuple[NamedFile, int]]:
    """Yield the file that a match names, with the end of its name in the text; nothing when there is none."""
    if match["quoted"]:
        if file := _file(match["quoted"]):
            yield file, match.end()
        return
    for written in dict.fromkeys((match["bare"], match["bare"].rstrip(_PUNCTUATION))):
        for spelling in dict.fromkeys((written, re.sub(r"\\(.)", r"\1", written))):
            if file := _file(spelling):
                yield file, match.start() + len(written)
                return


def _file(typed: str) -> NamedFile | None:
    """Return an existing regular file; None when there is none of this name."""
    path = os.path.abspath(os.path.expanduser(typed))
    if "\0" in typed or not os.path.isfile(path):
        return None
    if _RECORDING_NAME.search(path):
        return NamedFile(typed, path, is_recording=True)
    return NamedFile(typed, path, is_image=bool(IMAGE_NAME.search(path)) or _has_image_signature(path))


def _has_image_signature(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return ImageFormat.of(file.read(SIGNATURE_BYTES)) is not None
    except OSError:
        return False
