"""The files of a model's directory: listing and reading them, and the content hash of a workspace, version 2.

A digest is ``sha256:`` and 64 hexadecimal digits. The digest of a file covers

    *.safetensors         the JSON header only, so that hashing a large model is fast
    larger than 1 GiB     file name, NUL, size in decimal
    any other file        the content
    link inside the tree  ``SYMLINK``, NUL, target relative to the root

and the digest over all covers, sorted by path: path, NUL, digest. Paths are in Unicode normal form C with ``/`` between
parts. A link out of the tree, a cycle of links, or weights without a valid header leave a workspace without a hash.

Because of the first rule, changed tensors do not change the hash; deep records use ``digest_of_content`` instead.
"""

import datetime
import errno
import hashlib
import os
import stat
import unicodedata
from collections.abc import Sequence
from fnmatch import fnmatchcase

import attrs

from mlxk.application.ports.model_directories import FileListing, ModelFiles
from mlxk.domain.errors import StorageError
from mlxk.domain.models.model import FileEntry
from mlxk.domain.models.snapshot import is_litter

_DANGLING = frozenset({errno.ENOENT, errno.ELOOP, errno.ENOTDIR})


class FilesystemModelFiles(ModelFiles):
    """Reads model directories with one scan per directory and one ``stat`` per file."""

    def list(self, directory: str) -> FileListing:
        try:
            modified = os.stat(directory).st_mtime
            os.scandir(directory).close()
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            if os.path.islink(directory) and not os.path.exists(directory):
                reason = f"it is a link to {os.readlink(directory)}, which is not there; its disk may not be connected"
            raise StorageError(f"the model's directory cannot be read: {reason}") from error
        files: list[tuple[str, int]] = []
        dangling: list[str] = []
        pending = [("", directory)]
        while pending:
            base, folder = pending.pop()
            pending += _scan(base, folder, files, dangling)
        files.sort()
        entries = tuple([FileEntry(path, size) for path, size in files])
        return FileListing(entries, tuple(sorted(dangling)), datetime.datetime.fromtimestamp(modified, datetime.UTC))

    def outward_links(self, directory: str) -> tuple[str, ...]:
        found: list[str] = []
        inside, pending = os.path.realpath(directory) + os.sep, [("", directory)]
        try:
            while pending:
                base, folder = pending.pop()
                with os.scandir(folder) as entries:
                    for entry in entries:
                        if entry.is_dir(follow_symlinks=False):
                            pending.append((f"{base}{entry.name}/", entry.path))
                        elif entry.is_symlink() and not is_litter(entry.name):
                            target = os.path.realpath(entry.path)
                            if not (target.startswith(inside) and os.path.isfile(target)):
                                found.append(base + entry.name)
        except OSError as error:
            raise StorageError(f"the model's directory cannot be read: {error.strerror}") from error
        return tuple(sorted(found))

    def read(self, directory: str, path: str, limit: int) -> bytes | None:
        return _read(directory, path, limit, at_end=False)

    def read_end(self, directory: str, path: str, limit: int) -> bytes | None:
        return _read(directory, path, limit, at_end=True)

    def content_hash(self, directory: str) -> str | None:
        try:
            return digest_over([(file.path, digest_of(directory, file)) for file in counted_files(directory)])
        except (OSError, UnhashableError):
            return None


def _read(directory: str, path: str, limit: int, at_end: bool) -> bytes | None:
    if path.startswith("/") or ".." in path.split("/"):
        return None
    try:
        descriptor = os.open(f"{directory}/{path}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError):
        return None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return None
        if at_end and status.st_size > limit:
            os.lseek(descriptor, -limit, os.SEEK_END)
        return _first_bytes(descriptor, min(limit, status.st_size))
    except OSError:
        return None
    finally:
        os.close(descriptor)


def _scan(base: str, folder: str, files: list[tuple[str, int]], dangling: list[str]) -> list[tuple[str, str]]:
    """Collect the files of one folder and return its subfolders. Inaccessible entries are omitted."""
    folders = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    if not is_litter(f"{entry.name}/"):
                        folders.append((f"{base}{entry.name}/", entry.path))
                    continue
                if is_litter(entry.name):
                    continue
                try:
                    status = entry.stat()
                except OSError as error:
                    if error.errno in _DANGLING and entry.is_symlink():
                        dangling.append(base + entry.name)
                    continue
                if stat.S_ISREG(status.st_mode):
                    files.append((base + entry.name, status.st_size))
    except OSError:
        return folders
    return folders


def _first_bytes(descriptor: int, count: int) -> bytes:
    chunks = []
    while count > 0 and (chunk := os.read(descriptor, count)):
        chunks.append(chunk)
        count -= len(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


ALGORITHM = "v2"

MAX_HEADER_BYTES = 100 * 1024 * 1024
"""Limit of the safetensors format."""

MAX_HASHED_BYTES = 1024 * 1024 * 1024
"""Larger files are distinguished by name and size only."""

EXCLUDED = (
    ".hf_cache/", ".mlxk_workspace.json", ".git/", ".github/", "__pycache__/", ".vscode/", ".idea/",
    ".ipynb_checkpoints/", ".mypy_cache/", ".pytest_cache/", ".ruff_cache/", ".tox/", "node_modules/", ".venv/",
    "venv/", "*.lock", "*.tmp", "*.log", "*.bak", ".DS_Store", "._*", ".Spotlight-V100/", ".Trashes/", ".fseventsd/",
    ".TemporaryItems/", ".apdisk", "Icon\r", "Thumbs.db", "desktop.ini", "$RECYCLE.BIN/", "System Volume Information/",
    "*~", ".*.swp", ".*.swo",
)  # fmt: skip
"""Excluded names: a directory ends with ``/``, anything else is a pattern for regular files. Links always count."""


@attrs.frozen
class Stamp:
    """Size and time of a file, as a directory listing reports them."""

    size: int
    """Bytes."""
    modified_ns: int
    """Nanoseconds since the epoch."""


LINK_STAMP = Stamp(0, 0)
"""Stamp of every link: its own size and time do not count."""


@attrs.frozen
class CountedFile:
    """A file or link that the hash covers, before hashing."""

    path: str
    """Relative to the root, normal form C, ``/`` between parts."""
    location: str
    """Absolute path on the disk."""
    stamp: Stamp
    link: bool


class UnhashableError(Exception):
    """A file prevents the content hash; the message has its path and the reason."""


def counted_files(root: str, excluded: Sequence[str] = EXCLUDED) -> list[CountedFile]:
    """List the files that the hash covers, sorted by path; links are not followed.

    Raises:
        OSError: A directory or a file cannot be read.
    """
    folders = frozenset(name[:-1] for name in excluded if name.endswith("/"))
    patterns = tuple(name for name in excluded if not name.endswith("/"))
    found, pending = [], [("", root)]
    while pending:
        base, folder = pending.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                name = unicodedata.normalize("NFC", entry.name)
                if entry.is_dir(follow_symlinks=False):
                    if name not in folders:
                        pending.append((f"{base}{name}/", entry.path))
                elif entry.is_symlink():
                    found.append(CountedFile(base + name, entry.path, LINK_STAMP, link=True))
                elif not any(fnmatchcase(name, pattern) for pattern in patterns):
                    found += _counted(base + name, entry)
    return sorted(found, key=lambda file: file.path)


def digest_of(root: str, file: CountedFile) -> str:
    """Return the digest of one file by the rules of version 2.

    Raises:
        UnhashableError: A link out of the tree, a cycle of links, or weights without a valid header.
        OSError: The file cannot be read.
    """
    if file.link:
        return _digest(b"SYMLINK\0" + _target(root, file))
    if file.path.endswith(".safetensors"):
        return _digest(_header(file))
    if file.stamp.size > MAX_HASHED_BYTES:
        return _digest(f"{file.path.rpartition('/')[2]}\0{file.stamp.size}".encode("utf-8", "surrogateescape"))
    return digest_of_content(file.location)


def digest_of_content(location: str) -> str:
    """Return the digest of every byte of a file.

    Raises:
        OSError: The file cannot be read.
    """
    with open(location, "rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def digest_over(digests: Sequence[tuple[str, str]]) -> str:
    """Return the digest over all files.

    Args:
        digests: Path and digest of each file, in any order.
    """
    digest_of_all = hashlib.sha256()
    for path, digest in sorted(digests):
        digest_of_all.update(f"{path}\0{digest}".encode("utf-8", "surrogateescape"))
    return f"sha256:{digest_of_all.hexdigest()}"


def _counted(path: str, entry: "os.DirEntry[str]") -> list[CountedFile]:
    status = entry.stat(follow_symlinks=False)
    if not stat.S_ISREG(status.st_mode):
        return []
    return [CountedFile(path, entry.path, Stamp(status.st_size, status.st_mtime_ns), link=False)]


def _target(root: str, link: CountedFile) -> bytes:
    inside, target = os.path.realpath(root), os.path.realpath(link.location)
    if os.path.commonpath((inside, target)) != inside or os.path.islink(target):
        raise UnhashableError(f"{link.path} is a link out of it, or around in a circle")
    return os.fsencode(os.path.relpath(target, inside))


def _header(file: CountedFile) -> bytes:
    with open(file.location, "rb") as content:
        length = int.from_bytes(content.read(8), "little")
        header = content.read(length) if 0 < length <= MAX_HEADER_BYTES else b""
    if not header or len(header) < length:
        raise UnhashableError(f"{file.path} has no sound safetensors header")
    return header


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
