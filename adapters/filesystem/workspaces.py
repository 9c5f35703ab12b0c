"""Workspaces in plain directories: finding them, judging whether they changed, and recording their state.

A workspace is clean when the files that count still have the recorded size and time; a file of which only the time
differs is hashed again. Reading never writes: a drifted time is recorded anew only when someone asks for it.
"""

import datetime
import os
from collections.abc import Callable

from mlxk.adapters.filesystem.content_hash import (
    ALGORITHM,
    EXCLUDED,
    LINK_STAMP,
    MAX_HASHED_BYTES,
    CountedFile,
    UnhashableError,
    counted_files,
    digest_of,
    digest_of_content,
    digest_over,
)
from mlxk.adapters.filesystem.sentinel import Record, RecordedFile, index_of, read_sentinel, write_sentinel
from mlxk.application.ports.model_cache import ManifestEntry
from mlxk.application.ports.workspace_store import WorkspaceStore
from mlxk.domain.errors import Advice, Remedy, StorageError, ValidationError
from mlxk.domain.models.model import ModelHandle, Origin, Workspace


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


class FilesystemWorkspaceStore(WorkspaceStore):
    """Workspaces on the local disk.

    Args:
        home: The workspace home; None when there is none. It need not exist.
        now: Tells the time a hash is recorded, UTC.
    """

    def __init__(self, home: str | None, now: Callable[[], datetime.datetime] = _now) -> None:
        self._home = os.path.realpath(os.path.expanduser(home)) if home else None
        self._now = now

    def find(self, path: str) -> ModelHandle | None:
        """Return the handle of the workspace at a path, links resolved, or None when it holds no ``config.json``."""
        directory = _resolved(path)
        if directory is None or not _is_workspace(directory):
            return None
        shown = os.path.abspath(os.path.expanduser(path))
        return _handle(directory, shown if os.path.isabs(path) else os.path.basename(shown))

    def home(self) -> tuple[ModelHandle, ...]:
        """Return the workspaces of the home, sorted by directory name.

        Raises:
            StorageError: The home exists but cannot be read.
        """
        return () if self._home is None else _children(self._home, "", absolute=False)

    def below(self, pattern: str) -> tuple[ModelHandle, ...]:
        """Return the workspaces an explicit path selects, sorted by path.

        Raises:
            StorageError: The directory exists but cannot be read.
        """
        itself = self.find(pattern)
        if itself:
            return (itself,)
        directory = _resolved(pattern)
        if directory is None:
            return ()
        if os.path.isdir(directory):
            return _children(directory, "", os.path.isabs(pattern))
        return _children(os.path.dirname(directory), os.path.basename(directory), os.path.isabs(pattern))

    def read(self, handle: ModelHandle) -> Workspace:
        """Return provenance and state; an unmanaged workspace when it has no sentinel or an unreadable one."""
        record = read_sentinel(handle.directory)
        if record is None:
            return Workspace(managed=False)
        return _workspace(record, _is_clean(handle.directory, record))

    def manifest(self, handle: ModelHandle) -> tuple[ManifestEntry, ...] | None:
        """Return the files recorded for a managed workspace, with a digest where it covers every byte."""
        record = read_sentinel(handle.directory)
        if record is None:
            return None
        entries = (
            ManifestEntry(file.path, file.stamp.size, _digest_of_every_byte(file))
            for file in record.files or ()
            if file.stamp != LINK_STAMP  # a link has no content of its own
        )
        return tuple(sorted(entries, key=lambda entry: entry.path))

    def recalculate(self, handle: ModelHandle, deep: bool = False) -> Workspace:
        """Record the present content as the clean state, keeping what else the sentinel says.

        Raises:
            ValidationError: The workspace is not managed, or has no content hash.
            StorageError: A file cannot be read, or the sentinel cannot be written.
        """
        name = handle.display_name or handle.name
        old = read_sentinel(handle.directory)
        if old is None:
            raise ValidationError(f"'{name}' is not a managed workspace", hint=Advice(Remedy.MAKE_MANAGED_BY_CLONING))
        try:
            files = tuple(_recorded(handle.directory, file, deep) for file in counted_files(handle.directory))
            fields = {
                **old.fields,
                "hash_algorithm": ALGORITHM,
                "content_hash": digest_over([(file.path, file.digest) for file in files]),
                "hash_modified": self._now().isoformat().replace("+00:00", "Z"),
                "exclude_patterns": list(EXCLUDED),
                "file_index": index_of(files),
            }
            write_sentinel(handle.directory, fields)
        except UnhashableError as error:
            raise ValidationError(f"'{name}' has no content hash: {error}") from error
        except OSError as error:
            raise StorageError(f"the state of '{name}' cannot be recorded: {error.strerror}") from error
        return _workspace(Record(fields, files), clean=True)


def _handle(directory: str, display_name: str) -> ModelHandle:
    return ModelHandle(directory, directory, Origin.WORKSPACE, display_name=display_name)


def _resolved(path: str) -> str | None:
    """The absolute directory a path means, links resolved; None when no directory can have that name."""
    return None if not path or "\0" in path else os.path.realpath(os.path.expanduser(path))


def _is_workspace(directory: str) -> bool:
    return os.path.isfile(f"{directory}/config.json")


def _children(parent: str, prefix: str, absolute: bool) -> tuple[ModelHandle, ...]:
    try:
        with os.scandir(parent) as entries:
            names = sorted(entry.name for entry in entries if _fits(entry.name, prefix))
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise StorageError(f"the directory of workspaces cannot be read: {error.strerror}") from error
    found = ((os.path.join(parent, name), name) for name in names)
    return tuple(
        _handle(os.path.realpath(directory), directory if absolute else name)
        for directory, name in found
        if _is_workspace(directory)
    )


def _fits(name: str, prefix: str) -> bool:
    """Whether a directory is meant; hidden ones, such as workspaces in the making, only when they are named."""
    return name.startswith(prefix) and not (name.startswith(".") and not prefix)


def _workspace(record: Record, clean: bool | None) -> Workspace:
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


def _is_clean(directory: str, record: Record) -> bool | None:
    """Whether the files are as recorded; None when the record cannot tell."""
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
    whole = digest_of_content(file.location) if deep and partial and not file.link else None
    return RecordedFile(file.path, file.stamp, digest, whole)


def _digest_of_every_byte(file: RecordedFile) -> str | None:
    """The bare sha256 of a file's content, when its record has one."""
    partial = file.path.endswith(".safetensors") or file.stamp.size > MAX_HASHED_BYTES
    digest = file.deep_digest if partial else file.digest
    return digest.removeprefix("sha256:") if digest else None
