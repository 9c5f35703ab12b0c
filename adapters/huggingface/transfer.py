"""Downloading one file from the hub into a blob: resumed, hashed byte by byte, retried."""

import contextlib
import errno
import fcntl
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import attrs

from mlxk.adapters.huggingface.client import TRANSIENT_STATUSES, HubClient, is_transient, reason_of, seconds_asked
from mlxk.adapters.huggingface.layout import ModelFolder
from mlxk.domain.download import RemoteFile
from mlxk.domain.errors import DownloadFailedError, NetworkError, StorageError

if TYPE_CHECKING:
    import httpx2


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


PROGRESS_THAT_COUNTS = 1024 * 1024
"""Bytes after which earlier failures are forgiven."""
WRONG_CONTENTS = 3
"""How often a content may arrive damaged before it is given up."""
LOCK_SECONDS = 0.5
"""How long to wait for another client's lock before looking whether to stop."""


class StoppedError(Exception):
    """Another part of the download failed, or the user interrupted it."""


@attrs.define
class _Failures:
    """Counts failures in a row."""

    count: int = 0
    reached: int = 0
    """Bytes there were at the last failure."""

    def add(self, at: int) -> None:
        """Count one more, after so many bytes."""
        if at - self.reached >= PROGRESS_THAT_COUNTS:
            self.count = 0
        self.reached = at
        self.count += 1


class BlobTransfer:
    """Fetches contents of one model; one object serves many threads.

    Args:
        client: The hub.
        folder: Where the model lives in the cache.
        commit: Whose files they are.
        stop: Set to give up; whoever is fetching then raises ``StoppedError``.
        verify_present: Whether to read and hash what is here already.
    """

    def __init__(
        self, client: HubClient, folder: ModelFolder, commit: str, stop: threading.Event, *, verify_present: bool
    ) -> None:
        self._client, self._folder, self._commit = client, folder, commit
        self._stop, self._verify_present = stop, verify_present
        self._session = client.open()
        self._headers = client.headers()

    def fetch(self, file: RemoteFile, tell: Callable[[int], None]) -> None:
        """Bring one content here.

        Args:
            file: Which.
            tell: Called with the bytes of it that are here.

        Raises:
            MlxkError, httpx2.HTTPError: It cannot be fetched.
            StoppedError: It was told to stop.
        """
        if self._is_present(file):
            tell(file.size_bytes)
            return
        with self._lock(file), self._partial(file) as partial:
            if self._is_present(file):  # somebody else fetched it meanwhile
                partial.discard()
            else:
                self._complete(file, partial, tell)
            tell(file.size_bytes)

    def _complete(self, file: RemoteFile, partial: PartialFile, tell: Callable[[int], None]) -> None:
        for _ in range(WRONG_CONTENTS):
            tell(partial.at)
            self._receive_all(file, partial, tell)
            if partial.hexdigest() == file.digest:
                partial.publish(self._folder.blob(file.digest))
                return
            partial.restart()
        raise DownloadFailedError(
            f"{file.path} arrived damaged {WRONG_CONTENTS} times: its checksum differs from the hub's",
            hint="Try again later. If it stays so, the file is damaged on the hub or on the way.",
        )

    def _receive_all(self, file: RemoteFile, partial: PartialFile, tell: Callable[[int], None]) -> None:
        import httpx2

        failures, patience = _Failures(reached=partial.at), self._client.access.patience
        while partial.at < file.size_bytes:
            asked: float | None = None
            try:
                asked = self._receive(file, partial, tell)
                if partial.at >= file.size_bytes:
                    return
                reason = "the connection was closed early"
            except httpx2.HTTPError as error:
                if not is_transient(error):
                    raise
                reason = reason_of(error)
            failures.add(partial.at)
            if failures.count > patience.retries:
                raise NetworkError(
                    f"{file.path} could not be fetched: {reason}",
                    hint="Run the same command again: it continues where this one stopped.",
                )
            self._pause(patience.wait(failures.count, asked))

    def _receive(self, file: RemoteFile, partial: PartialFile, tell: Callable[[int], None]) -> float | None:
        """Take what one request gives; returns the seconds to wait when the hub asks for that."""
        headers = {**self._headers, "Range": f"bytes={partial.at}-"} if partial.at else self._headers
        url = self._client.file_url(self._folder.name, self._commit, file.path)
        with self._session.stream("GET", url, headers=headers) as response:
            if response.status_code in TRANSIENT_STATUSES:
                return seconds_asked(response.headers.get("Retry-After"))
            self._check(response, partial)
            for piece in response.iter_raw():
                if self._stop.is_set():
                    raise StoppedError
                if partial.at + len(piece) > file.size_bytes:
                    raise DownloadFailedError(f"the hub sent more than the {file.size_bytes} bytes of {file.path}")
                partial.append(piece)
                tell(partial.at)
        return None

    def _check(self, response: "httpx2.Response", partial: PartialFile) -> None:
        """Make sure that what follows is what was asked for; a server may ignore a range and send everything."""
        if response.status_code == 206:
            if not response.headers.get("Content-Range", "").startswith(f"bytes {partial.at}-"):
                partial.restart()
                raise DownloadFailedError("the hub sent another part of the file than was asked for")
            return
        if response.status_code == 200:
            if partial.at:
                partial.restart()
            return
        from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]  # public, though not marked so

        response.read()
        hf_raise_for_status(response)
        raise DownloadFailedError(f"the hub answered with HTTP {response.status_code}")

    def _is_present(self, file: RemoteFile) -> bool:
        blob = self._folder.blob(file.digest)
        try:
            if os.stat(blob).st_size != file.size_bytes:
                return False
            return not self._verify_present or hash_file(blob, file) == file.digest
        except OSError:
            return False

    @contextlib.contextmanager
    def _lock(self, file: RemoteFile) -> Iterator[None]:
        """Hold the lock that every client of the cache takes before it writes this content."""
        from filelock import Timeout
        from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]  # public, though not marked so

        with contextlib.ExitStack() as held:
            while True:
                if self._stop.is_set():
                    raise StoppedError
                try:
                    held.enter_context(WeakFileLock(self._folder.lock(file.digest), timeout=LOCK_SECONDS))
                    break
                except Timeout:
                    continue
                except OSError as error:
                    raise storage_error(error) from error
            yield

    @contextlib.contextmanager
    def _partial(self, file: RemoteFile) -> Iterator[PartialFile]:
        partial = PartialFile(self._folder.partial(file.digest), file)
        try:
            yield partial
        finally:
            partial.close()

    def _pause(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise StoppedError
