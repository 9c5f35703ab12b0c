"""Media files in the folders that the operator allows requests to name."""

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from urllib.parse import unquote_to_bytes, urlsplit

from mlxk.application.ports.media import MediaSource
from mlxk.domain.errors import Advice, Remedy, ValidationError
from mlxk.domain.generation.media import MIB, MediaKind

_LOCAL_HOSTS = ("", "localhost")
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_CHUNK = 1024 * 1024


class FolderMediaSource(MediaSource):
    """Reads files below some folders.

    A symbolic link is followed where it leads to a place below the same folder. The file is opened one directory after
    another from the folder on, and no link is followed then: what changes meanwhile cannot lead elsewhere.

    Args:
        folders: Absolute paths.
    """

    def __init__(self, folders: Sequence[str]) -> None:
        self._folders = tuple(map(os.path.normpath, folders))

    def read(self, reference: str, kind: MediaKind, max_bytes: int, seconds: float) -> bytes:
        folder, parts = self._place(_path(reference))
        try:
            with _opened(folder, parts) as file:
                return _content(file, kind, max_bytes)
        except FileNotFoundError as error:
            raise ValidationError("there is no such file") from error
        except OSError as error:
            raise ValidationError(f"the file cannot be read ({type(error).__name__})") from error

    def _place(self, path: str) -> tuple[str, list[str]]:
        """Return the folder that a path is below, without links, and the names from there on."""
        for folder in self._folders:
            real = os.path.realpath(folder)
            below = _below(path, folder)
            below = _below(path, real) if below is None else below
            if below is None:
                continue
            try:
                found = _below(os.path.realpath(os.path.join(real, below)), real)
            except OSError:  # a link without an end
                continue
            if found is not None:
                return real, [name for name in found.split(os.sep) if name not in ("", os.curdir)]
        raise ValidationError(
            "is not below a folder from which this server reads media", hint=Advice(Remedy.ALLOW_MEDIA_PATHS)
        )


def _path(reference: str) -> str:
    """Return the path of a reference, without dots."""
    path = reference
    if not path.startswith("/"):
        parts = urlsplit(reference)
        if parts.netloc.lower() not in _LOCAL_HOSTS or not parts.path.startswith("/"):
            raise ValidationError("must be file:///, followed by a path of the server's machine")
        path = os.fsdecode(unquote_to_bytes(parts.path))
    if "\0" in path:
        raise ValidationError("is not the path of a file")
    return os.path.normpath(path)


def _below(path: str, folder: str) -> str | None:
    """Return the path from a folder on; None where it is not below it."""
    start = folder if folder.endswith(os.sep) else folder + os.sep
    return path[len(start) :] if path.startswith(start) else None


@contextmanager
def _opened(folder: str, parts: Sequence[str]) -> Iterator[int]:
    """Open a regular file below a folder, following no link, and close it."""
    if not parts:
        raise ValidationError("is a folder, not a file")
    directory = os.open(folder, _FOLDER)
    try:
        for name in parts[:-1]:
            outer, directory = directory, os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=directory)
            os.close(outer)
        # Before it is opened: opening a device can do something.
        _require_file(os.stat(parts[-1], dir_fd=directory, follow_symlinks=False).st_mode)
        file = os.open(parts[-1], _FILE | os.O_NOFOLLOW, dir_fd=directory)
    finally:
        os.close(directory)
    try:
        _require_file(os.fstat(file).st_mode)
        yield file
    finally:
        os.close(file)


def _require_file(mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise ValidationError("is a folder, not a file")
    if not stat.S_ISREG(mode):
        raise ValidationError("is not a regular file")


def _content(file: int, kind: MediaKind, max_bytes: int) -> bytes:
    content = bytearray()
    if os.fstat(file).st_size <= max_bytes:
        while (part := os.read(file, min(_CHUNK, max_bytes + 1 - len(content)))) and len(content) <= max_bytes:
            content += part
        if len(content) <= max_bytes:
            return bytes(content)
    raise ValidationError(f"the {kind.name} has more than {max_bytes / MIB:.4g} MiB")
