"""A content that is arriving: its file in the cache, the bytes that are there, and the hash over them.

Bytes are written as they arrive, so that a killed process loses none that the kernel had.
"""

import contextlib
import errno
import fcntl
import hashlib
import os

from mlxk.domain.errors import StorageError
from mlxk.domain.remote_model import RemoteFile

READ_BYTES = 1024 * 1024

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class PartialFile:
    """The file of one arriving content, locked against everybody else.

    Args:
        path: Where it is; made when it is not there.
        file: What is to arrive.

    Raises:
        StorageError: It cannot be opened.
    """

    def __init__(self, path: str, file: RemoteFile) -> None:
        self._path, self._file = path, file
        self.at = 0
        self._digest = _new_hash(file)
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
            with contextlib.suppress(OSError):
                # The lock file may have been removed under those who wait for it; this one cannot be.
                fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            self._read_existing()
        except OSError as error:
            raise storage_error(error) from error

    def append(self, piece: bytes) -> None:
        """Add bytes that arrived."""
        view = memoryview(piece)
        try:
            while view:
                written = os.write(self._descriptor, view)
                self._digest.update(view[:written])
                self.at += written
                view = view[written:]
        except OSError as error:
            raise storage_error(error) from error

    def hexdigest(self) -> str:
        """Return the digest of all bytes."""
        return self._digest.hexdigest()

    def restart(self) -> None:
        """Throw the bytes away."""
        os.ftruncate(self._descriptor, 0)
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        self.at, self._digest = 0, _new_hash(self._file)

    def publish(self, blob: str) -> None:
        """Give the whole content its name; it is on the disk before it has one."""
        try:
            os.fsync(self._descriptor)
            os.replace(self._path, blob)
        except OSError as error:
            raise storage_error(error) from error

    def discard(self) -> None:
        """Remove the file."""
        with contextlib.suppress(OSError):
            os.unlink(self._path)

    def close(self) -> None:
        """Keep what there is."""
        os.close(self._descriptor)

    def _read_existing(self) -> None:
        if os.fstat(self._descriptor).st_size > self._file.size_bytes:
            self.restart()
            return
        buffer = memoryview(bytearray(READ_BYTES))
        while count := os.readv(self._descriptor, [buffer]):
            self._digest.update(buffer[:count])
            self.at += count


def storage_error(error: OSError) -> StorageError:
    """Say what the disk refused."""
    if error.errno in _FULL:
        return StorageError(
            "the disk of the model cache is full",
            hint="Make space and run the same command again: what arrived is kept.",
        )
    return StorageError(
        f"the model cache cannot be written to: {error.strerror}", hint="HF_HOME or HF_HUB_CACHE says where it is."
    )


def _new_hash(file: RemoteFile) -> "hashlib._Hash":
    if file.sha256:
        return hashlib.sha256()
    return hashlib.sha1(b"blob %d\0" % file.size_bytes, usedforsecurity=False)


def hash_file(path: str, file: RemoteFile) -> str:
    """Return the digest of a file, in the way of the content it should hold.

    Raises:
        OSError: It cannot be read.
    """
    digest, buffer = _new_hash(file), memoryview(bytearray(READ_BYTES))
    with open(path, "rb", buffering=0) as content:
        while count := content.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()
