"""The sentinel: the file that makes a directory a managed workspace, as it is on disk.

It owns the format and its limits: parsing into a ``Record`` that can be trusted, and writing in one step that either
happens or does not. Fields it does not know are kept. No absolute path is ever written.
"""

import datetime
import json
import os
import stat
from collections.abc import Mapping

import attrs

from mlxk.adapters.filesystem.content_hash import ALGORITHM, EXCLUDED, Stamp
from mlxk.domain.models.model import SENTINEL_NAME

MAX_SENTINEL_BYTES = 64 * 1024 * 1024
"""A record takes about 200 bytes a file of the workspace; a larger one than this is not believed."""


@attrs.frozen
class RecordedFile:
    """One file as it was when the hash was recorded."""

    path: str
    stamp: Stamp
    digest: str
    """By the rules of content hash version 2."""
    deep_digest: str | None = None
    """Of every byte, when the record was made deeply."""


@attrs.frozen
class Record:
    """A sentinel, parsed."""

    fields: Mapping[str, object]
    """Everything in the file, as it is."""
    files: tuple[RecordedFile, ...] | None
    """What the content hash covers; None when there is no hash of version 2, or its index cannot be trusted."""
    excluded: tuple[str, ...] = EXCLUDED

    def text(self, name: str) -> str | None:
        """Return a field when it holds text."""
        value = self.fields.get(name)
        return value if isinstance(value, str) else None

    def time(self, name: str) -> datetime.datetime | None:
        """Return a field when it holds an ISO 8601 time, in UTC; without an offset it is taken as UTC."""
        try:
            when = datetime.datetime.fromisoformat(self.text(name) or "")
        except ValueError:
            return None
        return when.replace(tzinfo=datetime.UTC) if when.tzinfo is None else when.astimezone(datetime.UTC)


def read_sentinel(directory: str) -> Record | None:
    """Return the record of a workspace, or None when it has none that says it is managed."""
    try:
        with open(os.path.join(directory, SENTINEL_NAME), "rb", opener=_open_without_waiting) as file:
            content = file.read(MAX_SENTINEL_BYTES + 1)
        fields = json.loads(content) if len(content) <= MAX_SENTINEL_BYTES else None
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(fields, dict) or fields.get("managed") is not True:
        return None
    names = fields.get("exclude_patterns")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        names = EXCLUDED
    return Record(fields, _files(fields), tuple(names))


def write_sentinel(directory: str, fields: Mapping[str, object]) -> None:
    """Write a sentinel under another name and move it into place.

    Raises:
        OSError: It cannot be written; the old sentinel is then intact.
    """
    path = os.path.join(directory, SENTINEL_NAME)
    temporary = f"{path}.{os.getpid()}.tmp"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(json.dumps(fields, indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def index_of(files: tuple[RecordedFile, ...]) -> list[dict[str, object]]:
    """Return the files as they are written into a sentinel."""
    return [
        {
            "path": file.path,
            "size": file.stamp.size,
            "mtime_ns": file.stamp.modified_ns,
            "sha": file.digest,
            **({"deep_sha": file.deep_digest} if file.deep_digest else {}),
        }
        for file in files
    ]


def _files(fields: Mapping[str, object]) -> tuple[RecordedFile, ...] | None:
    index = fields.get("file_index")
    if fields.get("hash_algorithm") != ALGORITHM or not isinstance(index, list):
        return None
    files = [_file(entry) for entry in index]
    trusted = tuple(file for file in files if file)
    return trusted if len(trusted) == len(files) == len({file.path for file in trusted}) else None


def _file(entry: object) -> RecordedFile | None:
    if not isinstance(entry, dict):
        return None
    path, size, modified, digest = (entry.get(name) for name in ("path", "size", "mtime_ns", "sha"))
    deep = entry.get("deep_sha")
    if not (isinstance(path, str) and isinstance(size, int) and isinstance(modified, int) and isinstance(digest, str)):
        return None
    if not _is_relative(path):
        return None
    return RecordedFile(path, Stamp(size, modified), digest, deep if isinstance(deep, str) else None)


def _is_relative(path: str) -> bool:
    """Whether a path of a record stays inside its workspace on every system that may read it."""
    parts = path.split("/")
    return not ("\\" in path or "\0" in path or ":" in parts[0][1:2] or {"", ".", ".."} & set(parts))


def _open_without_waiting(path: str, flags: int) -> int:
    """Opening a named pipe must not wait for a writer; what is no regular file is refused."""
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError("not a regular file")
    return descriptor
