"""Read access to the files of a model directory.

Litter of file managers and network drives is left out. Links to files are followed: the hub cache stores weights in
this way, and users keep weights on other disks. Links to directories are not followed, so that a walk ends and stays
inside the model.
"""

import datetime
import errno
import os
import stat

from mlxk.application.ports.model_directories import FileListing, ModelFiles
from mlxk.domain.errors import StorageError
from mlxk.domain.models.model import FileEntry
from mlxk.domain.models.weights import is_litter

_DANGLING = frozenset({errno.ENOENT, errno.ELOOP, errno.ENOTDIR})


class FilesystemModelFiles(ModelFiles):
    """Reads model directories with one scan a directory and one ``stat`` a file."""

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
        when = datetime.datetime.fromtimestamp(modified, datetime.UTC)
        return FileListing(entries, tuple(sorted(dangling)), when)

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
