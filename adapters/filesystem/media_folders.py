"""Media files in the folders that the operator allows requests to name."""

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from urllib.parse import SplitResult, unquote_to_bytes, urlsplit

from mlxk.application.ports.media import MediaSource
from mlxk.domain.errors import Advice, Remedy, ValidationError
from mlxk.domain.generation.media import MIB, MediaKind

_LOCAL_HOSTS = ("", "localhost")
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_CHUNK = 1024 * 1024


class FolderMediaSource(MediaSource):
    """Reads files below the allowed folders.

    A symbolic link is followed if its target is below the same folder. The resolved path is then opened directory by
    directory without following links, so that a concurrent change cannot lead elsewhere.

    Args:
        folders: Absolute paths.
    """

    def __init__(self, folders: Sequence[str]) -> None:
        self._folders = tuple(map(os.path.normpath, folders))

    def read(self, reference: str, kind: MediaKind, max_bytes: int, seconds: float) -> bytes:
        folder, parts = self._resolve(_path(reference))
        try:
            with _opened(folder, parts) as file:
                return _content(file, kind, max_bytes)
        except FileNotFoundError as error:
            raise ValidationError("there is no such file") from error
        except OSError as error:
            raise ValidationError(f"the file cannot be read ({type(error).__name__})") from error

    def _resolve(self, path: str) -> tuple[str, list[str]]:
        """Return the real path of the allowed folder that contains a path, and the names below it, links resolved."""
        for folder in self._folders:
            real = os.path.realpath(folder)
            relative = _relative(path, folder)
            relative = _relative(path, real) if relative is None else relative
            if relative is None:
                continue
            try:
                target = _relative(os.path.realpath(os.path.join(real, relative)), real)
            except OSError:  # a cycle of links
                continue
            if target is not None:
                return real, [name for name in target.split(os.sep) if name not in ("", os.curdir)]
        raise ValidationError(
            "is not below a folder from which this server reads media", hint=Advice(Remedy.ALLOW_MEDIA_PATHS)
        )


def _path(reference: str) -> str:
    """Return the normalized path of a reference, which is an absolute path or a ``file`` URL."""
    path = reference
    if not path.startswith("/"):
        parts: SplitResult | None = None
        with suppress(ValueError):
            parts = urlsplit(reference)
        if parts is None or parts.netloc.lower() not in _LOCAL_HOSTS or not parts.path.startswith("/"):
            raise ValidationError("must be file:///, followed by a path of the server's machine")
        path = os.fsdecode(unquote_to_bytes(parts.path))
    if "\0" in path:
        raise ValidationError("is not the path of a file")
    return os.path.normpath(path)


def _relative(path: str, folder: str) -> str | None:
    """Return a path relative to a folder; None if it is not below the folder."""
    start = folder if folder.endswith(os.sep) else folder + os.sep
    return path[len(start) :] if path.startswith(start) else None


@contextmanager
def _opened(folder: str, parts: Sequence[str]) -> Iterator[int]:
    """Open a regular file below a folder without following links, and close it at the end of the block."""
    if not parts:
        raise ValidationError("is a folder, not a file")
    directory = os.open(folder, _FOLDER)
    try:
        for name in parts[:-1]:
            parent, directory = directory, os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=directory)
            os.close(parent)
        # Checked before opening, since opening a device may have an effect.
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
