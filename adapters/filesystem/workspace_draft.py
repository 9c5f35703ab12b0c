"""Creation of workspaces: a draft in a hidden directory beside the target is filled, recorded and renamed to it.

The draft has a note file with its provenance, which the working process locks. After a crash the draft remains, and the
next run with the same provenance continues it.
"""

import contextlib
import datetime
import errno
import fcntl
import json
import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterator

import attrs

from mlxk import __version__
from mlxk.adapters.filesystem.model_files import UnhashableError
from mlxk.adapters.filesystem.workspace_record import Record, read_sentinel, record_content, write_sentinel
from mlxk.application.ports.model_directories import CopyMethod, Provenance, WorkspaceDraft
from mlxk.domain.errors import LocksPresentError, StorageError, ValidationError
from mlxk.domain.models.model import SENTINEL_NAME, ModelHandle, Origin

NOTE_NAME = ".mlxk_draft.lock"
"""Name of the note file. Content hashes exclude it, and it is deleted before the draft is renamed."""


@contextlib.contextmanager
def open_draft(
    target: str, provenance: Provenance, now: Callable[[], datetime.datetime], *, keep_unfinished: bool
) -> Iterator[WorkspaceDraft]:
    """Open the draft of a workspace; arguments and errors as of ``WorkspaceStore.draft``."""
    directory = os.path.join(os.path.dirname(target), f".{os.path.basename(target)}.mlxk-draft")
    new = not os.path.lexists(directory)
    try:
        note = _claim(directory, provenance)
    except OSError as error:
        if new:
            shutil.rmtree(directory, ignore_errors=True)
        raise _refused(error) from error
    draft = FilesystemWorkspaceDraft(directory, target, provenance, now, continues=keep_unfinished)
    try:
        yield draft
    finally:
        # After the renaming, a draft at this place is that of another process.
        if not draft.published and (not keep_unfinished or _is_empty(directory)):
            shutil.rmtree(directory, ignore_errors=True)
        os.close(note)


@attrs.define
class FilesystemWorkspaceDraft(WorkspaceDraft):
    """A hidden directory beside the target."""

    _directory: str
    _target: str
    _provenance: Provenance
    _now: Callable[[], datetime.datetime]
    _continues: bool
    """Whether it may have files of an earlier run; ``publish`` deletes those that this run did not add."""
    published: bool = attrs.field(default=False, init=False)
    """Whether the draft was renamed to the target."""
    _added: set[str] = attrs.field(factory=set, init=False)

    @property
    def directory(self) -> str:
        return self._directory

    def copy(self, source: str, path: str, report: Callable[[int], None]) -> CopyMethod:
        self._added.add(path)
        target = os.path.join(self._directory, path)
        try:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            return copy_file(os.path.join(source, path), target, report)
        except OSError as error:
            raise _refused(error) from error

    def write(self, path: str, content: bytes) -> None:
        self._added.add(path)
        try:
            with open(os.path.join(self._directory, path), "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise _refused(error) from error

    def keep(self, path: str) -> None:
        self._added.add(path)

    def publish(self) -> ModelHandle:
        _remove_leftovers(self._directory, self._added if self._continues else None)
        try:
            self._record()
            _sync(self._directory)
            os.unlink(os.path.join(self._directory, NOTE_NAME))
            os.rename(self._directory, self._target)
            self.published = True
            _sync(os.path.dirname(self._target))
        except OSError as error:
            raise _refused(error) from error
        return ModelHandle(self._target, self._target, Origin.WORKSPACE, display_name=os.path.basename(self._target))

    def _record(self) -> None:
        """Write the sentinel; with damaged weights the workspace has no content hash."""
        provenance = self._provenance
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
        write_sentinel(self._directory, fields)
        with contextlib.suppress(UnhashableError):
            record_content(self._directory, Record(fields, None), self._now(), deep=False)


def _claim(directory: str, provenance: Provenance) -> int:
    """Create a draft or take over an existing one, and return the file descriptor of the locked note.

    Raises:
        OSError: The disk refuses.
        LocksPresentError: Another process holds it.
        ValidationError: The directory is not a draft.
    """
    os.makedirs(directory, exist_ok=True)
    path = os.path.join(directory, NOTE_NAME)
    has_note, has_files = os.path.exists(path), bool(os.listdir(directory))
    if has_files and not has_note and read_sentinel(directory) is None:
        raise ValidationError(f"target: '{os.path.basename(directory)}' beside it is in the way", hint="Remove it.")
    note = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        _lock(note)
        if not has_note or os.fstat(note).st_nlink == 0 or _read_note(note) not in {"", provenance.identity}:
            _empty(directory, keep=NOTE_NAME)
        os.ftruncate(note, 0)
        os.pwrite(note, json.dumps({"draft_of": provenance.identity}).encode(), 0)
    except BaseException:
        os.close(note)
        raise
    return note


def _is_empty(directory: str) -> bool:
    """Whether a draft has no file besides its note."""
    try:
        return set(os.listdir(directory)) <= {NOTE_NAME}
    except OSError:
        return False


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
    except (ValueError, KeyError, TypeError, RecursionError):
        return "unreadable"


def _empty(directory: str, keep: str) -> None:
    with os.scandir(directory) as entries:
        for entry in list(entries):
            if entry.name == keep:
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, onerror=_unless_gone)
            else:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(entry.path)


def _unless_gone(_: object, path: str, failure: tuple[type[BaseException], BaseException, object]) -> None:
    """Ignore missing files: on some macOS disks, deleting a file also deletes its companion ``._NAME``."""
    if not isinstance(failure[1], FileNotFoundError):
        raise failure[1]


def _remove_leftovers(directory: str, added: set[str] | None) -> None:
    """Delete unfinished copies, and files of earlier runs that this run did not add."""
    for parent, _, names in os.walk(directory):
        for name in names:
            path = os.path.relpath(os.path.join(parent, name), directory)
            temporary = path.startswith(f"{SENTINEL_NAME}.") and path.endswith(".tmp")
            foreign = added is not None and path not in added and path != NOTE_NAME
            if temporary or foreign or name.endswith(COPY_SUFFIX):
                with contextlib.suppress(OSError):
                    os.unlink(os.path.join(parent, name))


def _sync(directory: str) -> None:
    """Flush a directory's entries to the disk, where the file system supports it."""
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


READ_BYTES = 8 * 1024 * 1024

COPY_SUFFIX = ".mlxk-copy"
"""Suffix of an unfinished copy."""

_FICLONE = 0x40049409
_CANNOT_CLONE = frozenset(
    {
        errno.EOPNOTSUPP,
        errno.ENOTSUP,
        errno.EXDEV,
        errno.EINVAL,
        errno.ENOSYS,
        errno.ENOTTY,
        errno.EPERM,
        errno.ETXTBSY,
    }
)
"""Errors when cloning between two paths is not supported; a full disk is not among them."""


def copy_file(source: str, target: str, report: Callable[[int], None]) -> CopyMethod:
    """Copy a file, following links, unless the target has its size and time; copy-on-write where supported.

    Copy-on-write is clonefile(2) on macOS, and on Linux FICLONE of btrfs, XFS and others. The target appears complete.

    Args:
        source: An existing file.
        target: Path of the copy; its directory exists.
        report: Called with the bytes copied so far.

    Raises:
        OSError: It cannot be copied; the target is then unchanged.
    """
    origin = os.path.realpath(source)
    status = os.stat(origin)
    if _is_same(target, status):
        report(status.st_size)
        return CopyMethod.KEPT
    temporary = target + COPY_SUFFIX
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    method = CopyMethod.CLONED
    try:
        _clone(origin, temporary)
    except OSError as error:
        if error.errno not in _CANNOT_CLONE:
            raise
        method = CopyMethod.COPIED
        _copy(origin, temporary, report)
    # Files of the cache's shared store are read-only, but those of a workspace are edited.
    with contextlib.suppress(OSError):  # some network drives support neither modes nor times
        os.chmod(temporary, stat.S_IMODE(status.st_mode) | stat.S_IRUSR | stat.S_IWUSR)
        os.utime(temporary, ns=(status.st_atime_ns, status.st_mtime_ns))
    os.replace(temporary, target)
    report(status.st_size)
    return method


def _is_same(target: str, status: os.stat_result) -> bool:
    try:
        present = os.lstat(target)
    except OSError:
        return False
    equal = (present.st_size, present.st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    return stat.S_ISREG(present.st_mode) and equal


def _clone(source: str, target: str) -> None:
    if sys.platform == "darwin":
        import ctypes

        library = ctypes.CDLL(None, use_errno=True)
        if library.clonefile(os.fsencode(source), os.fsencode(target), 0):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), target)
        os.chflags(target, 0)  # the clone of a file locked in Finder is locked as well
    elif sys.platform == "linux":
        with open(source, "rb") as origin, open(target, "wb") as clone:
            fcntl.ioctl(clone.fileno(), _FICLONE, origin.fileno())
    else:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))


def _copy(source: str, target: str, report: Callable[[int], None]) -> None:
    buffer, done = memoryview(bytearray(READ_BYTES)), 0
    with open(source, "rb", buffering=0) as origin, open(target, "wb", buffering=0) as copy:
        while count := origin.readinto(buffer):
            view = buffer[:count]
            while view:
                view = view[copy.write(view) :]
            done += count
            report(done)
        os.fsync(copy.fileno())
