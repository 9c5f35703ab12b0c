"""Files that the command line and chat commands name: images, clips, recordings and texts, and an editor's result.

Media may also be named in the words of a prompt, such as ``What is this? ./photo.jpg``. Only words that
a user typed are searched: a text that was piped or read from a file may hold any path, and what is in it must not
decide which files a model gets.
"""

import glob
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import TextIO

import attrs

from mlxk.application.named_media import is_address
from mlxk.application.ports.model_cache import ModelSource
from mlxk.domain.errors import StorageError, ValidationError
from mlxk.domain.generation import video
from mlxk.domain.generation.media import IMAGES, SIGNATURE_BYTES, EncodedImage, ImageFormat, format_of
from mlxk.domain.generation.video import EncodedVideo, VideoSampling
from mlxk.domain.models.model import Capability, ModelDescription
from mlxk.entrypoints.cli.text_files import read_text

IMAGE_NAME = re.compile(r"\.(jpe?g|png|gif|webp|hei[cf]|avif|bmp|tiff?)$", re.IGNORECASE)
"""Matches the name of an image."""

_RECORDING_NAME = re.compile(r"\.(wav|mp3|flac|m4a|ogg|oga|opus|aac|aiff?|caf|amr|wma)$", re.IGNORECASE)

VIDEO_NAME = re.compile(r"\.(mp4|m4v|mov|webm|mkv|avi)$", re.IGNORECASE)
"""Matches the name of a clip."""

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
    is_video: bool = False

    @property
    def is_media(self) -> bool:
        """Whether it is an image, a clip or a recording."""
        return self.is_image or self.is_recording or self.is_video


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


def missed(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """Return what a prompt names like an image, a clip or sound and ``find`` does not find, each with the reason."""
    found = {}
    for argument in arguments:
        if _BEGINNING.match(argument) and _file(argument):
            continue
        for match in _PATH.finditer(argument):
            typed = (match["quoted"] or match["bare"]).rstrip(_PUNCTUATION)
            if _is_media_name(typed) and not any(_files_of(match)):
                found[typed] = "there is no such file"
        for word in _PATH.sub(" ", argument).split():
            typed = word.strip(_PUNCTUATION + "([{")
            if _is_media_name(typed) and not _BEGINNING.match(typed) and os.path.isfile(typed):
                found[typed] = f"a path begins with ./, as in ./{typed}"
    return list(found.items())


def _is_media_name(typed: str) -> bool:
    return any(kind.search(typed) for kind in (IMAGE_NAME, VIDEO_NAME, _RECORDING_NAME))


def takes_media(description: ModelDescription) -> bool:
    """Whether a model takes images, clips or sound."""
    return description.can(Capability.VISION) or description.can(Capability.AUDIO)


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
    if VIDEO_NAME.search(path):
        return NamedFile(typed, path, is_video=True)
    return NamedFile(typed, path, is_image=bool(IMAGE_NAME.search(path)) or _has_image_signature(path))


def _has_image_signature(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return ImageFormat.of(file.read(SIGNATURE_BYTES)) is not None
    except OSError:
        return False


_WILD = re.compile(r"[*?\[]")
_PATTERN = re.compile(r"\S*[*\[]\S*")
"""One word with these characters is a pattern, even where no file matches it, and not a prompt."""

MAX_FILE_BYTES = 64 * 1024 * 1024
"""Largest file of ``--file``: more than any context window holds."""


_MEDIA_HINTS = {
    "--file": "Save a text as UTF-8. Show images with --image and clips with --video, and give sound with --audio.",
    "/file": "Save a text as UTF-8. Show images with /image and clips with /video, and give sound with /audio.",
}


@attrs.frozen
class ImageFile:
    """An image file, read when it is called."""

    path: str
    typed: str
    named_by: str
    """The flag or the command that it was given to."""

    def __call__(self) -> EncodedImage:
        """Read the file.

        Raises:
            StorageError, ValidationError: It cannot be read, or is not an image any more.
        """
        try:
            with open(self.path, "rb") as file:
                data = file.read()
        except OSError as error:
            raise self._unreadable(error) from error
        return EncodedImage.of(data, self._place, os.path.basename(self.path))

    def check(self) -> None:
        """Check signature and size, before a model is loaded.

        Raises:
            StorageError, ValidationError: The file is missing, not an image, or too large.
        """
        try:
            if not stat.S_ISREG(os.stat(self.path).st_mode):
                raise ValidationError(f"{self._place} is no regular file")
            with open(self.path, "rb") as opened:
                beginning = opened.read(SIGNATURE_BYTES)
                size = os.fstat(opened.fileno()).st_size
        except OSError as error:
            raise self._unreadable(error) from error
        IMAGES.check_size(size, self._place)
        format_of(beginning, self._place)

    @property
    def _place(self) -> str:
        return f"{self.named_by}: '{self.typed}'"

    def _unreadable(self, error: OSError) -> StorageError | ValidationError:
        if isinstance(error, FileNotFoundError):
            return ValidationError(f"Image not found: {self.typed}")
        return StorageError(f"{self._place} cannot be read: {error.strerror}")


def find_images(typed: str, built_in: ModelSource, named_by: str = "--image") -> list[ImageFile]:
    """Return the files that a value names, at least one, with signature and size checked.

    Args:
        typed: A path, a pattern, or ``MODEL/FILE`` for a sample of a built-in model.
        built_in: Where samples are.
        named_by: The flag or the command that the value was given to.

    Raises:
        StorageError, ValidationError: A file is missing, not an image, or too large.
    """
    _require_file(typed, named_by)
    files = [ImageFile(path, typed, named_by) for path in _paths(typed, built_in)]
    for file in files:
        file.check()
    return files


def find_videos(
    typed: str, built_in: ModelSource, sampling: VideoSampling, named_by: str = "--video"
) -> list[EncodedVideo]:
    """Return the clips that a value names, at least one; see ``find_images``.

    Raises:
        StorageError, ValidationError: A file is missing, not a clip, or too large.
    """
    _require_file(typed, named_by)
    return [_clip(path, typed, sampling, named_by) for path in _paths(typed, built_in)]


def _require_file(typed: str, named_by: str) -> None:
    """Refuse what is no path, whose message would otherwise be that there is no such file, with all of its base64."""
    if is_address(typed) or typed[:5].lower() == "data:":
        what = "an address" if is_address(typed) else "a data URL"
        hint = "Save it first, or pipe it: curl -L ADDRESS | mlxk run MODEL --image -" if is_address(typed) else None
        raise ValidationError(f"{named_by}: '{typed[:80]}' is {what}; name a file", hint=hint)


def _clip(path: str, typed: str, sampling: VideoSampling, named_by: str) -> EncodedVideo:
    place = f"{named_by}: '{typed}'"
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ValidationError(f"{place} is no regular file")
        with open(path, "rb") as file:
            video.VIDEOS.check_size(os.fstat(file.fileno()).st_size, place)
            video.container_of(file.read(video.SIGNATURE_BYTES), place)
            file.seek(0)
            return EncodedVideo.of(file.read(video.MAX_VIDEO_BYTES + 1), place, sampling, os.path.basename(path))
    except FileNotFoundError:
        raise ValidationError(f"Clip not found: {typed}") from None
    except OSError as error:
        raise StorageError(f"{place} cannot be read: {error.strerror}") from error


def is_prompt(value: str, built_in: ModelSource) -> bool:
    """Whether a value is a prompt: neither an existing file, nor one misspelt, nor a pattern."""
    if IMAGE_NAME.search(value) or VIDEO_NAME.search(value) or _PATTERN.fullmatch(value):
        return False
    return not any(map(os.path.exists, _paths(value, built_in)))


def _paths(value: str, built_in: ModelSource) -> list[str]:
    """Return the paths that a value names: itself, those that a pattern matches, or a sample of a built-in model."""
    path = os.path.abspath(os.path.expanduser(value))
    if os.path.exists(path):
        return [path]
    if _WILD.search(value) and (found := sorted(glob.glob(path))):
        return found
    model, _, name = value.partition("/")
    handle = built_in.find(model)
    if handle is not None and name and "/" not in name:
        return [os.path.join(handle.directory, name)]
    return [path]


def recording_path(typed: str, built_in: ModelSource, named_by: str = "--audio") -> str:
    """Return the path of a file; ``demo-speech/hello.wav`` is a sample of a built-in model.

    Raises:
        ValidationError: It is an address or a data URL.
    """
    _require_file(typed, named_by)
    path = os.path.abspath(os.path.expanduser(typed))
    model, _, name = typed.partition("/")
    handle = None if os.path.exists(path) else built_in.find(model)
    if handle is not None and name and "/" not in name:
        return os.path.join(handle.directory, name)
    return path


def read_files(paths: Sequence[str], named_by: str) -> list[tuple[str, str]]:
    """Return the paths of text files as typed, and their texts.

    Args:
        paths: As typed.
        named_by: The flag or the command that they were given to.

    Raises:
        StorageError, ValidationError: A file cannot be read, is no UTF-8 text, or is empty.
    """
    named = [(path, read_text(path, named_by, MAX_FILE_BYTES, _MEDIA_HINTS[named_by])) for path in paths]
    for path, text in named:
        if not text.strip():
            raise ValidationError(f"{named_by}: '{path}' is empty")
    return named


def labelled(files: Sequence[tuple[str, str]]) -> list[str]:
    """Return the texts of files; each of several begins with a line that names it."""
    return [text if len(files) == 1 else f"{path}:\n{text}" for path, text in files]


EDITORS = ("nano", "vi")
"""Editors to try where the user's variable names none."""


def edited(path: str, editor: str | None, otherwise: str, stdout: TextIO | None = None) -> bytes:
    """Run the user's editor on a file, and return what it holds afterwards.

    Args:
        path: The file.
        editor: The command, as a shell would read it; None tries ``EDITORS``.
        otherwise: What holds when the editor fails, for the error message.
        stdout: Where the editor writes; standard output when None.

    Raises:
        ValidationError: There is no editor, its command cannot be read, or it reports a failure.
        StorageError: It cannot be started, or the file cannot be read.
    """
    command = editor or next(filter(None, map(shutil.which, EDITORS)), None)
    if command is None:
        raise ValidationError("there is no editor", hint="Name one in the variable EDITOR.")
    if editor is None and not (sys.stdin.isatty() and os.isatty(1 if stdout is None else stdout.fileno())):
        raise ValidationError(
            f"{os.path.basename(command)} needs a terminal, and there is none",
            hint="Name an editor that needs none in the variable EDITOR.",
        )
    try:
        done = subprocess.run([*shlex.split(command), path], check=False, stdout=stdout)
    except ValueError as error:
        raise ValidationError(f"VISUAL or EDITOR is no command: {error}") from error
    except OSError as error:
        raise StorageError(
            f"the editor '{command}' cannot be used: {error.strerror}", hint="Name another in the variable EDITOR."
        ) from error
    if done.returncode != 0:
        how = f"with status {done.returncode}" if done.returncode > 0 else f"by signal {-done.returncode}"
        raise ValidationError(f"the editor ended {how}; {otherwise}")
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        raise ValidationError(f"the editor has left no file; {otherwise}") from None
    except OSError as error:
        raise StorageError(f"what the editor wrote cannot be read: {error.strerror}") from error
