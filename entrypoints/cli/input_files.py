"""Files named on the command line and in chats: images, clips, recordings and texts; and the user's editor.

A prompt may also name media, as in ``What is this? ./photo.jpg``. Only words that the user typed are searched: piped
text and text files may contain any path, and must not decide which files a model gets.
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
"""Matches the name of an image file."""

_RECORDING_NAME = re.compile(r"\.(wav|mp3|flac|m4a|ogg|oga|opus|aac|aiff?|caf|amr|wma)$", re.IGNORECASE)

VIDEO_NAME = re.compile(r"\.(mp4|m4v|mov|webm|mkv|avi)$", re.IGNORECASE)
"""Matches the name of a video file."""

_PATH = re.compile(
    r"""(?<![^\s(])(?:
        (?P<quote>["'])(?P<quoted>(?:\.{1,2}|~)?/[^"'\n]{1,4096})(?P=quote)
        |(?P<bare>(?:\.{1,2}|~)?/(?:\\.|[^\s\\])+)
    )""",
    re.VERBOSE,
)
"""Matches a path in quotes or with spaces escaped, the two forms in which terminals insert a dropped file."""

_PATH_START = re.compile(r"(?:\.{1,2}|~)?/")
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
        file = _file(argument) if _PATH_START.match(argument) else None
        pieces += _split(argument) if file is None else [file]
    return pieces


def unrecognized_media(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """Return words of a prompt that look like media files and that ``find`` does not return, each with the reason."""
    reasons = {}
    for argument in arguments:
        if _PATH_START.match(argument) and _file(argument):
            continue
        for match in _PATH.finditer(argument):
            typed = (match["quoted"] or match["bare"]).rstrip(_PUNCTUATION)
            if _is_media_name(typed) and not any(_files_of(match)):
                reasons[typed] = "there is no such file"
        for word in _PATH.sub(" ", argument).split():
            typed = word.strip(_PUNCTUATION + "([{")
            if _is_media_name(typed) and not _PATH_START.match(typed) and os.path.isfile(typed):
                reasons[typed] = f"a path begins with ./, as in ./{typed}"
    return list(reasons.items())


def _is_media_name(typed: str) -> bool:
    return any(kind.search(typed) for kind in (IMAGE_NAME, VIDEO_NAME, _RECORDING_NAME))


def takes_media(description: ModelDescription) -> bool:
    """Whether a model takes images, clips or sound."""
    return description.can(Capability.VISION) or description.can(Capability.AUDIO)


def names_file_first(line: str) -> bool:
    """Whether a line begins with the path of an existing file, and not with a slash command, which has one slash."""
    match = _PATH.match(line)
    return match is not None and any(file.typed.count("/") > 1 for file, _ in _files_of(match))


def without_media(pieces: Sequence[Piece], attached: Sequence[NamedFile]) -> str:
    """Return the text of a prompt without the paths of its attached files.

    A single file at the start or end is left out. Elsewhere a path is part of the sentence, and becomes the base name.
    """
    left_out = attached[0] if len(attached) == 1 and attached[0] in (_first(pieces), _first(pieces[::-1])) else None
    texts = (
        piece if isinstance(piece, str) else os.path.basename(piece.path) if piece in attached else piece.typed
        for piece in pieces
        if piece is not left_out
    )
    return "".join(texts).strip()


def _first(pieces: Sequence[Piece]) -> Piece | None:
    """Return the first piece that is not blank."""
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
    """Yield the file that a match names, if it exists, without punctuation after it, and its end in the text."""
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
    """Return the regular file at a path; None when there is none."""
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
"""Matches a single word that is a glob pattern, even where no file matches it, and not a prompt."""

MAX_FILE_BYTES = 64 * 1024 * 1024
"""Largest file of ``--file``; no context window holds more."""


_MEDIA_HINTS = {
    "--file": "Save a text as UTF-8. Show images with --image and clips with --video, and give sound with --audio.",
    "/file": "Save a text as UTF-8. Show images with /image and clips with /video, and give sound with /audio.",
}


@attrs.frozen
class ImageFile:
    """An image source that reads a file."""

    path: str
    typed: str
    named_by: str
    """The flag or slash command that it was given to."""

    def __call__(self) -> EncodedImage:
        """Read the file.

        Raises:
            StorageError, ValidationError: It cannot be read, or is no longer an image.
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
    """Return the files that a value names, at least one, after a check of signature and size.

    Args:
        typed: A path, a glob pattern, or ``MODEL/FILE`` for a sample of a built-in model.
        built_in: Has the samples.
        named_by: The flag or slash command that the value was given to.

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
    """Refuse what cannot be a path. For a data URL, "no such file" would print all of its base64."""
    if is_address(typed) or typed[:5].lower() == "data:":
        kind = "an address" if is_address(typed) else "a data URL"
        hint = "Save it first, or pipe it: curl -L ADDRESS | mlxk run MODEL --image -" if is_address(typed) else None
        raise ValidationError(f"{named_by}: '{typed[:80]}' is {kind}; name a file", hint=hint)
    if "\0" in typed:
        raise ValidationError(f"{named_by}: '{typed}' cannot be the name of a file")


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
    """Whether a value of ``--image`` or ``--video`` is a prompt: no existing file, name of a media file, or pattern."""
    if IMAGE_NAME.search(value) or VIDEO_NAME.search(value) or _PATTERN.fullmatch(value):
        return False
    return not any(map(os.path.exists, _paths(value, built_in)))


def _paths(value: str, built_in: ModelSource) -> list[str]:
    """Return the paths that a value names: its own, those that a pattern matches, or that of a built-in sample."""
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
    """Return the absolute path of a recording, or of the sample of a built-in model, as ``demo-speech/hello.wav``.

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
    """Return path and text of each text file.

    Args:
        paths: As typed.
        named_by: ``--file`` or ``/file``, to which they were given.

    Raises:
        StorageError, ValidationError: A file cannot be read, is not UTF-8 text, or is empty.
    """
    files = [(path, read_text(path, named_by, MAX_FILE_BYTES, _MEDIA_HINTS[named_by])) for path in paths]
    for path, text in files:
        if not text.strip():
            raise ValidationError(f"{named_by}: '{path}' is empty")
    return files


def labelled(files: Sequence[tuple[str, str]]) -> list[str]:
    """Return the texts of files; where there are several, each begins with a line that names its file."""
    return [text if len(files) == 1 else f"{path}:\n{text}" for path, text in files]


EDITORS = ("nano", "vi")
"""Editors to try where VISUAL and EDITOR name none."""


def edited(path: str, editor: str | None, otherwise: str, stdout: TextIO | None = None) -> bytes:
    """Run the user's editor on a file, and return the content of the file afterwards.

    Args:
        path: The file.
        editor: The editor's command line, in the syntax of a shell; None tries ``EDITORS``.
        otherwise: The consequence of a failure, for the error message.
        stdout: The editor's standard output; that of this process when None.

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
