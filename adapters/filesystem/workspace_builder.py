"""Making workspaces on the local disk: beside their place, under a name that starts with a dot, then renamed.

A draft holds a note of what it is to become, which is locked while somebody works on it. A killed run leaves the draft,
and the next one with the same purpose continues it.
"""

import contextlib
import datetime
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import attrs

from mlxk import __version__
from mlxk.adapters.filesystem.cloning import COPY_SUFFIX, copy_file
from mlxk.adapters.filesystem.sentinel import read_sentinel, write_sentinel
from mlxk.application.ports.workspace_builder import CopyMethod, Provenance, WorkspaceBuilder, WorkspaceDraft
from mlxk.application.ports.workspace_store import WorkspaceStore
from mlxk.domain.errors import LocksPresentError, StorageError, ValidationError
from mlxk.domain.models.model import SENTINEL_NAME, ModelHandle, Origin

NOTE_NAME = ".mlxk_draft.lock"
"""The note in a draft; content hashes leave names like this out, and it is gone before the draft is renamed."""


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


class FilesystemWorkspaceBuilder(WorkspaceBuilder):
    """Makes workspaces on the local disk.

    Args:
        store: Records what is in a workspace.
        home: The workspace home; None when there is none.
        protected: Directories in which no workspace is made, such as the model cache.
        now: Tells the time a workspace is made, UTC.
    """

    def __init__(
        self,
        store: WorkspaceStore,
        home: str | None = None,
        protected: tuple[str, ...] = (),
        now: Callable[[], datetime.datetime] = _now,
    ) -> None:
        self._store, self._home, self._now = store, home, now
        self._protected = protected

    def place(self, target: str | None, name: str) -> str:
        """Return the absolute directory a target means, links resolved, when a workspace can be made there."""
        typed, path = self._path(target, name)
        place = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
        parent = os.path.dirname(place)
        for directory in self._protected:
            if os.path.commonpath((os.path.realpath(directory), place)) == os.path.realpath(directory):
                raise ValidationError(f"target: '{typed}' lies in the model cache, which is not written to this way")
        if not os.path.isdir(parent):
            raise self._without_parent(typed, parent)
        if os.path.lexists(place):
            self._require_empty(typed, place)
        if not os.access(parent, os.W_OK | os.X_OK):
            raise StorageError(f"target: the parent directory of '{typed}' is not writable")
        return place

    def draft(
        self, place: str, provenance: Provenance, *, keep_unfinished: bool
    ) -> AbstractContextManager[WorkspaceDraft]:
        """Open the draft of a workspace for the length of a ``with`` block."""
        return self._open(place, provenance, keep_unfinished)

    def _path(self, target: str | None, name: str) -> tuple[str, str]:
        """Return what the user meant and the path it is, links in it unresolved."""
        if target is not None and not target.strip():
            raise ValidationError("target: the name is empty")
        if target is not None and any(ord(character) < 32 for character in target):
            raise ValidationError("target: the name contains a control character")
        if target is not None and (self._home is None or "/" in target or target in {".", "..", "~"}):
            return target, os.path.abspath(os.path.expanduser(target))
        if self._home is None:
            raise ValidationError(
                "target: no directory was given", hint="Name one, or set MLXK_WORKSPACE_HOME to a folder of workspaces."
            )
        chosen = name if target is None else target
        return chosen, os.path.join(os.path.abspath(self._home), chosen)

    def _without_parent(self, typed: str, parent: str) -> ValidationError:
        if self._home is not None and parent == os.path.realpath(self._home):
            return ValidationError(
                "target: the folder of workspaces that MLXK_WORKSPACE_HOME names does not exist", hint="Make it first."
            )
        return ValidationError(f"target: the parent directory of '{typed}' does not exist")

    @staticmethod
    def _require_empty(typed: str, place: str) -> None:
        if os.path.islink(place) or not os.path.isdir(place):
            raise ValidationError(f"target: '{typed}' exists and is not a directory")
        if place == os.path.realpath(os.curdir):
            raise ValidationError(
                f"target: '{typed}' is the directory you are in, which cannot be replaced", hint="Name a new one."
            )
        if os.listdir(place):
            raise ValidationError(
                f"target: '{typed}' already exists and is not empty", hint="Choose another name, or remove it first."
            )

    @contextlib.contextmanager
    def _open(self, place: str, provenance: Provenance, keep: bool) -> Iterator[WorkspaceDraft]:
        directory = os.path.join(os.path.dirname(place), f".{os.path.basename(place)}.mlxk-draft")
        new = not os.path.lexists(directory)
        try:
            note = _claim(directory, provenance)
        except OSError as error:
            if new:
                shutil.rmtree(directory, ignore_errors=True)
            raise _refused(error) from error
        draft = FilesystemWorkspaceDraft(directory, place, provenance, self, continues=keep)
        try:
            yield draft
        finally:
            if not keep:
                shutil.rmtree(directory, ignore_errors=True)
            os.close(note)

    def record(self, directory: str, provenance: Provenance) -> None:
        """Write the record that makes a directory a managed workspace; damaged weights leave it without a hash.

        Raises:
            StorageError: The disk refuses.
        """
        fields: dict[str, object] = {
            "mlxk_version": __version__,
            "created_at": self._now().isoformat(timespec="seconds").replace("+00:00", "Z"),
            "source_repo": provenance.source_repo,
            "source_revision": provenance.source_revision,
            "managed": True,
            "operation": provenance.operation,
        }
        if provenance.mode:
            fields["mode"] = provenance.mode
        if provenance.bits:
            fields["quantization"] = {"bits": provenance.bits, "group_size": provenance.group_size}
        try:
            write_sentinel(directory, fields)
        except OSError as error:
            raise _refused(error) from error
        with contextlib.suppress(ValidationError):
            self._store.recalculate(ModelHandle(directory, directory, Origin.WORKSPACE))


@attrs.define
class FilesystemWorkspaceDraft(WorkspaceDraft):
    """A directory beside the place of a workspace."""

    _directory: str
    _place: str
    _provenance: Provenance
    _builder: FilesystemWorkspaceBuilder
    _continues: bool
    """Whether an earlier run may have left files here; those that this run did not bring are none of it."""
    _brought: set[str] = attrs.field(factory=set, init=False)

    @property
    def directory(self) -> str:
        """Return where it is."""
        return self._directory

    def take(self, source: str, path: str, tell: Callable[[int], None]) -> CopyMethod:
        """Bring one file here, links followed."""
        self._brought.add(path)
        target = os.path.join(self._directory, path)
        try:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            return copy_file(os.path.join(source, path), target, tell)
        except OSError as error:
            raise _refused(error) from error

    def write(self, path: str, content: bytes) -> None:
        """Write one file."""
        self._brought.add(path)
        try:
            with open(os.path.join(self._directory, path), "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise _refused(error) from error

    def publish(self) -> ModelHandle:
        """Record what is in it and move it to its place in one step."""
        _remove_leftovers(self._directory, self._brought if self._continues else None)
        self._builder.record(self._directory, self._provenance)
        try:
            _sync(self._directory)
            os.unlink(os.path.join(self._directory, NOTE_NAME))
            os.rename(self._directory, self._place)
            _sync(os.path.dirname(self._place))
        except OSError as error:
            raise _refused(error) from error
        return ModelHandle(self._place, self._place, Origin.WORKSPACE, display_name=os.path.basename(self._place))


def _claim(directory: str, provenance: Provenance) -> int:
    """Make or take over a draft and return the descriptor that holds its lock.

    Raises:
        OSError: The disk refuses.
        LocksPresentError: Another process holds it.
        ValidationError: It is not a draft.
    """
    os.makedirs(directory, exist_ok=True)
    path = os.path.join(directory, NOTE_NAME)
    noted, filled = os.path.exists(path), bool(os.listdir(directory))
    if filled and not noted and read_sentinel(directory) is None:
        raise ValidationError(f"target: '{os.path.basename(directory)}' beside it is in the way", hint="Remove it.")
    note = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        _lock(note)
        if not noted or os.fstat(note).st_nlink == 0 or _read_note(note) not in {"", provenance.identity}:
            _empty(directory, keep=NOTE_NAME)
        os.ftruncate(note, 0)
        os.pwrite(note, json.dumps({"draft_of": provenance.identity}).encode(), 0)
    except BaseException:
        os.close(note)
        raise
    return note


def _lock(note: int) -> None:
    try:
        fcntl.flock(note, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise LocksPresentError("another process is making a workspace at the same place") from error
    except OSError:
        pass  # a file system without locks


def _read_note(note: int) -> str:
    try:
        return str(json.loads(os.pread(note, 65536, 0) or b'{"draft_of": ""}')["draft_of"])
    except (ValueError, KeyError, TypeError):
        return "unreadable"


def _empty(directory: str, keep: str) -> None:
    with os.scandir(directory) as entries:
        for entry in list(entries):
            if entry.name == keep:
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            else:
                os.unlink(entry.path)


def _remove_leftovers(directory: str, brought: set[str] | None) -> None:
    """Remove what earlier runs left: half-written files, whose names are ours, and what this run did not bring."""
    for parent, _, names in os.walk(directory):
        for name in names:
            path = os.path.relpath(os.path.join(parent, name), directory)
            record = path.startswith(f"{SENTINEL_NAME}.") and path.endswith(".tmp")
            foreign = brought is not None and path not in brought and path != NOTE_NAME
            if record or foreign or name.endswith(COPY_SUFFIX):
                with contextlib.suppress(OSError):
                    os.unlink(os.path.join(parent, name))


def _sync(directory: str) -> None:
    """Bring a directory's names to the disk; some systems cannot, and lose nothing but speed at recovery."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refused(error: OSError) -> StorageError:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return StorageError("the disk of the workspace is full", hint="Make space and run the same command again.")
    if error.errno in {errno.ENOTEMPTY, errno.EEXIST}:
        return StorageError("something else has taken the place of the workspace meanwhile")
    where = os.path.basename(str(error.filename or ""))
    return StorageError(f"the workspace cannot be made: {error.strerror}{f' ({where})' if where else ''}")
