"""The record of a managed workspace: the sentinel file, and the comparison of the present content with it.

A workspace is clean when its files have the recorded sizes and times; a file whose time alone differs is hashed again.
Reading never writes. Unknown fields of the sentinel are kept. No absolute path is written.
"""

import datetime
import json
import os
import stat
from collections.abc import Mapping

import attrs

from mlxk.adapters.filesystem.model_files import (
    ALGORITHM,
    EXCLUDED,
    LINK_STAMP,
    MAX_HASHED_BYTES,
    CountedFile,
    Stamp,
    UnhashableError,
    counted_files,
    digest_of,
    digest_of_content,
    digest_over,
)
from mlxk.application.ports.model_cache import ManifestEntry
from mlxk.domain.models.model import SENTINEL_NAME, Workspace

MAX_SENTINEL_BYTES = 64 * 1024 * 1024
"""A record has about 200 bytes per file; larger sentinels are ignored."""


@attrs.frozen
class RecordedFile:
    """One file as it was when the hash was recorded."""

    path: str
    stamp: Stamp
    digest: str
    """By the rules of content hash version 2."""
    deep_digest: str | None = None
    """sha256 of every byte, in deep records."""


@attrs.frozen
class Record:
    """A parsed sentinel."""

    fields: Mapping[str, object]
    """The JSON object, unknown fields included."""
    files: tuple[RecordedFile, ...] | None
    """The files of the content hash; None without a hash of version 2, or with an invalid index."""
    excluded: tuple[str, ...] = EXCLUDED

    def text(self, name: str) -> str | None:
        """Return a text field; None for a missing or other value."""
        value = self.fields.get(name)
        return value if isinstance(value, str) else None

    def time(self, name: str) -> datetime.datetime | None:
        """Return a field with an ISO 8601 time in UTC, the default offset; None for a missing or other value."""
        try:
            when = datetime.datetime.fromisoformat(self.text(name) or "")
        except ValueError:
            return None
        return when.replace(tzinfo=datetime.UTC) if when.tzinfo is None else when.astimezone(datetime.UTC)


def read_sentinel(directory: str) -> Record | None:
    """Return the record of a workspace, or None when it is not managed or the record is invalid."""
    try:
        with open(os.path.join(directory, SENTINEL_NAME), "rb", opener=_open_without_blocking) as file:
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
    """Write a sentinel to a temporary file and rename it.

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


def _index(files: tuple[RecordedFile, ...]) -> list[dict[str, object]]:
    """Return the files as the JSON of ``file_index``."""
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
    """Whether a recorded path stays inside its workspace on every operating system."""
    parts = path.split("/")
    return not ("\\" in path or "\0" in path or ":" in parts[0][1:2] or {"", ".", ".."} & set(parts))


def _open_without_blocking(path: str, flags: int) -> int:
    """Open a regular file; anything else, such as a named pipe, is an error and does not block."""
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError("not a regular file")
    return descriptor


def manifest_of(record: Record) -> tuple[ManifestEntry, ...]:
    """Return the recorded files, sorted by path, each with its sha256 if the record has that of every byte."""
    entries = (
        ManifestEntry(file.path, file.stamp.size, _digest_of_every_byte(file))
        for file in record.files or ()
        if file.stamp != LINK_STAMP  # a link has no content of its own
    )
    return tuple(sorted(entries, key=lambda entry: entry.path))


def record_content(directory: str, record: Record, now: datetime.datetime, *, deep: bool) -> Record:
    """Hash the files of a workspace and write them into its sentinel; other fields stay. Return the new record.

    Raises:
        UnhashableError: A link out of the workspace, or damaged weights.
        OSError: A file cannot be read, or the sentinel cannot be written.
    """
    files = tuple(_recorded(directory, file, deep) for file in counted_files(directory))
    fields = {
        **record.fields,
        "hash_algorithm": ALGORITHM,
        "content_hash": digest_over([(file.path, file.digest) for file in files]),
        "hash_modified": now.isoformat().replace("+00:00", "Z"),
        "exclude_patterns": list(EXCLUDED),
        "file_index": _index(files),
    }
    write_sentinel(directory, fields)
    return Record(fields, files)


def workspace_of(record: Record, clean: bool | None) -> Workspace:
    """Return a record as the domain's value."""
    return Workspace(
        managed=True,
        source_repo=record.text("source_repo"),
        source_revision=record.text("source_revision"),
        operation=record.text("operation"),
        created=record.time("created_at"),
        content_hash=record.text("content_hash"),
        hash_modified=record.time("hash_modified"),
        clean=clean,
    )


def is_clean(directory: str, record: Record) -> bool | None:
    """Whether the files are as recorded; None when the record does not allow a comparison."""
    if record.files is None or record.text("content_hash") != digest_over([(f.path, f.digest) for f in record.files]):
        return None
    recorded = {file.path: file for file in record.files}
    try:
        present = counted_files(directory, record.excluded)
        if len(present) != len(recorded):
            return False
        return all(_is_as_recorded(directory, file, recorded.get(file.path)) for file in present)
    except UnhashableError:
        return False
    except OSError:
        return None


def _is_as_recorded(directory: str, file: CountedFile, recorded: RecordedFile | None) -> bool:
    if recorded is None or file.stamp.size != recorded.stamp.size:
        return False
    if file.stamp == recorded.stamp and not file.link:
        return True
    if recorded.deep_digest and file.stamp.size <= MAX_HASHED_BYTES:
        return digest_of_content(file.location) == recorded.deep_digest
    return digest_of(directory, file) == recorded.digest


def _recorded(directory: str, file: CountedFile, deep: bool) -> RecordedFile:
    digest = digest_of(directory, file)
    partial = file.path.endswith(".safetensors") or file.stamp.size > MAX_HASHED_BYTES
    complete = digest_of_content(file.location) if deep and partial and not file.link else None
    return RecordedFile(file.path, file.stamp, digest, complete)


def _digest_of_every_byte(file: RecordedFile) -> str | None:
    """Return the bare sha256 of a file's content, if recorded."""
    partial = file.path.endswith(".safetensors") or file.stamp.size > MAX_HASHED_BYTES
    digest = file.deep_digest if partial else file.digest
    return digest.removeprefix("sha256:") if digest else None
