"""Images as people name them: files, patterns, and the samples that come with a built-in model."""

import glob
import os
import re
import stat
from typing import TYPE_CHECKING

import attrs

from mlxk.domain.errors import StorageError, ValidationError
from mlxk.domain.generation.media import SIGNATURE_BYTES, EncodedImage, check_size, format_of

if TYPE_CHECKING:
    from mlxk.application.ports.model_source import ModelSource

_LOOKS_LIKE_A_FILE = re.compile(r"\.(jpe?g|png|gif|webp|hei[cf]|avif|bmp|tiff?)$", re.IGNORECASE)
_WILD = re.compile(r"[*?\[]")
_PATTERN = re.compile(r"\S*[*\[]\S*")
"""A prompt that is one word has no such signs in it; a pattern that nothing fits may."""


@attrs.frozen
class ImageFile:
    """A file to be read when it is its turn."""

    path: str
    typed: str
    named_by: str
    """The flag or the command that it was given to."""

    def __call__(self) -> EncodedImage:
        """Read it.

        Raises:
            StorageError, ValidationError: It cannot be read, or is no image any more.
        """
        try:
            with open(self.path, "rb") as file:
                data = file.read()
        except OSError as error:
            raise self._unreadable(error) from error
        return EncodedImage.of(data, self._place, os.path.basename(self.path))

    def check(self) -> None:
        """Refuse what is no image, before any model is loaded for it.

        Raises:
            StorageError, ValidationError: It is missing, no image, or too large.
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


def find_images(typed: str, built_in: "ModelSource", named_by: str = "--image") -> list[ImageFile]:
    """Return the files that a value means, at least one, each looked at from outside.

    Args:
        typed: A path, a pattern, or ``MODEL/FILE`` for a sample of a built-in model.
        built_in: Where samples are.
        named_by: The flag or the command that the value was given to.

    Raises:
        StorageError, ValidationError: A file is missing, no image, or too large.
    """
    files = [ImageFile(path, typed, named_by) for path in _paths(typed, built_in)]
    for file in files:
        file.check()
    return files


def is_prompt(value: str, built_in: "ModelSource") -> bool:
    """Whether a value is no file: none that exists, and none that somebody misspelt."""
    if _LOOKS_LIKE_A_FILE.search(value) or _PATTERN.fullmatch(value):
        return False
    return not any(map(os.path.exists, _paths(value, built_in)))


def _paths(value: str, built_in: "ModelSource") -> list[str]:
    """Return the files a value means: a path, those a pattern fits, or one that comes with a built-in model."""
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
