"""Workspaces on the local disk: lookup, records, and the check of the target of a new one."""

import contextlib
import datetime
import errno
import fcntl
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager

from mlxk.adapters.filesystem.model_files import UnhashableError
from mlxk.adapters.filesystem.workspace_draft import open_draft
from mlxk.adapters.filesystem.workspace_record import (
    is_clean,
    manifest_of,
    read_sentinel,
    record_content,
    workspace_of,
)
from mlxk.application.ports.model_cache import ManifestEntry
from mlxk.application.ports.model_directories import Provenance, WorkspaceDraft, WorkspaceStore
from mlxk.domain.errors import Advice, Remedy, StorageError, ValidationError
from mlxk.domain.models.model import ModelHandle, Origin, Workspace
from mlxk.domain.models.snapshot import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CONFIG

_PATH_BYTES = 1024
"""Longest path of macOS, with its terminating zero (MAXPATHLEN)."""


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


class FilesystemWorkspaceStore(WorkspaceStore):
    """Workspaces on the local disk.

    Args:
        home: The workspace home, which need not exist; None without one.
        protected: Directories in which no workspace may be created, such as the model cache.
        now: Clock for records, UTC.
    """

    def __init__(
        self,
        home: str | None = None,
        protected: tuple[str, ...] = (),
        now: Callable[[], datetime.datetime] = _now,
    ) -> None:
        self._home = os.path.realpath(os.path.expanduser(home)) if home else None
        self._protected, self._now = protected, now

    def names(self) -> tuple[str, ...]:
        return tuple(handle.label for handle in self._in_home())

    def find(self, name: str) -> ModelHandle | None:
        """Return the workspace of the home whose directory, or else whose link's target, has a name."""
        handles = self._in_home()
        labelled = (handle for handle in handles if handle.label == name)
        return next(labelled, None) or next((handle for handle in handles if handle.short_name == name), None)

    def at(self, path: str) -> ModelHandle | None:
        unresolved = os.path.abspath(os.path.expanduser(path)) if "\0" not in path else ""
        display_name = unresolved if os.path.isabs(path) else os.path.basename(unresolved)
        if _is_dangling(unresolved):
            return _handle(unresolved, display_name)
        directory = _resolved(path)
        if directory is None or not _is_workspace(directory):
            return None
        return _handle(directory, display_name)

    def below(self, pattern: str) -> tuple[ModelHandle, ...]:
        exact = self.at(pattern)
        if exact:
            return (exact,)
        directory = _resolved(pattern)
        if directory is None:
            return ()
        if os.path.isdir(directory):
            return _children(directory, "", os.path.isabs(pattern))
        return _children(os.path.dirname(directory), os.path.basename(directory), os.path.isabs(pattern))

    def read(self, handle: ModelHandle) -> Workspace:
        record = read_sentinel(handle.directory)
        if record is None:
            return Workspace(managed=False)
        return workspace_of(record, is_clean(handle.directory, record))

    def manifest(self, handle: ModelHandle) -> tuple[ManifestEntry, ...] | None:
        record = read_sentinel(handle.directory)
        return None if record is None else manifest_of(record)

    def recalculate(self, handle: ModelHandle, deep: bool = False) -> Workspace:
        """Record the present content; unknown fields of the record are kept."""
        name = handle.display_name or handle.name
        old = read_sentinel(handle.directory)
        if old is None:
            raise ValidationError(f"'{name}' is not a managed workspace", hint=Advice(Remedy.MAKE_MANAGED_BY_CLONING))
        try:
            return workspace_of(record_content(handle.directory, old, self._now(), deep=deep), clean=True)
        except UnhashableError as error:
            raise ValidationError(f"'{name}' has no content hash: {error}") from error
        except OSError as error:
            raise StorageError(f"the state of '{name}' cannot be recorded: {error.strerror}") from error

    def place(self, target: str | None, name: str) -> str:
        typed, path = self._path(target, name)
        place = os.path.join(_real(os.path.dirname(path)), os.path.basename(path))
        parent = os.path.dirname(place)
        for directory in map(_real, self._protected):
            if os.path.commonpath((directory, place)) == directory:
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
        return open_draft(place, provenance, self._now, keep_unfinished=keep_unfinished)

    def _in_home(self) -> tuple[ModelHandle, ...]:
        """Return the workspaces of the home, also those that are links to a disk that is not connected."""
        if self._home is None:
            return ()
        return _children(self._home, "", absolute=False, with_dangling=True)

    def _path(self, target: str | None, name: str) -> tuple[str, str]:
        """Return the target as typed and its absolute path, links unresolved."""
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


def _handle(directory: str, display_name: str) -> ModelHandle:
    return ModelHandle(directory, directory, Origin.WORKSPACE, display_name=display_name)


def _resolved(path: str) -> str | None:
    """Return the absolute directory of a path, links resolved; None when it cannot exist."""
    return None if not path or "\0" in path else _real(os.path.expanduser(path))


def _real(path: str) -> str:
    """Return the real path; on macOS, whose disks ignore case, spelled as on the disk."""
    real = os.path.realpath(path)
    if sys.platform == "darwin":
        with contextlib.suppress(OSError):
            descriptor = os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                return os.fsdecode(fcntl.fcntl(descriptor, fcntl.F_GETPATH, bytes(_PATH_BYTES)).rstrip(b"\0"))
            finally:
                os.close(descriptor)
    return real


def _is_workspace(directory: str) -> bool:
    """Whether a directory holds a model or an adapter."""
    if os.path.isfile(f"{directory}/{CONFIG}"):
        return True
    has_adapter_config = os.path.isfile(f"{directory}/{ADAPTER_CONFIG}")
    return has_adapter_config and any(os.path.isfile(f"{directory}/{name}") for name in ADAPTER_WEIGHTS)


def _children(parent: str, prefix: str, absolute: bool, *, with_dangling: bool = False) -> tuple[ModelHandle, ...]:
    """Return the workspaces in a directory, sorted by name; with ``with_dangling`` also links to missing targets."""
    try:
        with os.scandir(parent) as entries:
            names = sorted(entry.name for entry in entries if _has_prefix(entry.name, prefix))
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise StorageError(f"the directory of workspaces cannot be read: {error.strerror}") from error
    found = []
    for name in names:
        directory = os.path.join(parent, name)
        display_name = directory if absolute else name
        if _is_workspace(directory):
            found.append(_handle(os.path.realpath(directory), display_name))
        elif with_dangling and _is_dangling(directory):
            found.append(_handle(directory, display_name))
    return tuple(found)


def _is_dangling(path: str) -> bool:
    """Whether a path is a link to a missing target; a cycle of links is not."""
    if not os.path.islink(path):
        return False
    try:
        os.stat(path)
    except OSError as error:
        return error.errno != errno.ELOOP
    return False


def _has_prefix(name: str, prefix: str) -> bool:
    """Whether a name has a prefix; the empty prefix excludes hidden directories, such as drafts."""
    return name.startswith(prefix) and not (name.startswith(".") and not prefix)
