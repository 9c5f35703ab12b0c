"""Files that flags and chat commands are given: images, recordings, texts; and samples of built-in models."""

import glob
import os
import re
import stat
from collections.abc import Sequence

import attrs

from mlxk.application.ports.model_source import ModelSource
from mlxk.domain.errors import StorageError, ValidationError
from mlxk.domain.generation.media import SIGNATURE_BYTES, EncodedImage, check_size, format_of
from mlxk.entrypoints.cli.named_files import IMAGE_NAME
from mlxk.entrypoints.cli.text_file import read_text

_WILD = re.compile(r"[*?\[]")
_PATTERN = re.compile(r"\S*[*\[]\S*")
"""One word with these characters is a pattern, even where no file matches it, and not a prompt."""

MAX_FILE_BYTES = 64 * 1024 * 1024
"""Largest file of ``--file``: more than any context window holds."""


_MEDIA_HINTS = {
    "--file": "Show images with --image, and give sound with --audio.",
    "/file": "Show images with /image, and give sound with /audio.",
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
        check_size(size, self._place)
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
    files = [ImageFile(path, typed, named_by) for path in _paths(typed, built_in)]
    for file in files:
        file.check()
    return files


def is_prompt(value: str, built_in: ModelSource) -> bool:
    """Whether a value is a prompt: neither an existing file, nor one misspelt, nor a pattern."""
    if IMAGE_NAME.search(value) or _PATTERN.fullmatch(value):
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


def recording_path(typed: str, built_in: ModelSource) -> str:
    """Return the path of a file; ``demo-speech/hello.wav`` is a sample of a built-in model."""
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
