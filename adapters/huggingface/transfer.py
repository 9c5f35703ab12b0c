"""Download of one file into a blob, with resumption, retries and a hash of every byte."""

import contextlib
import errno
import fcntl
import hashlib
import os
import threading
from collections.abc import Callable, Iterator

import attrs
import httpx2
from filelock import Timeout
from huggingface_hub.utils import WeakFileLock, hf_raise_for_status  # type: ignore[attr-defined]  # public, though not marked so

from mlxk.adapters.huggingface.client import (
    IS_FILE,
    TRANSIENT_STATUSES,
    HubClient,
    is_transient,
    parse_retry_after,
    reason_of,
)
from mlxk.adapters.huggingface.layout import ModelFolder
from mlxk.adapters.huggingface.locks import UNSUPPORTED
from mlxk.domain.errors import DownloadFailedError, NetworkError, StorageError
from mlxk.domain.hub import RemoteFile

READ_BYTES = 1024 * 1024

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class PartialFile:
    """A partially downloaded file with its running hash, locked against other processes.

    Args:
        path: Path of the partial file; created if missing.
        file: The file as the hub lists it.

    Raises:
        StorageError: It cannot be opened or read.
    """

    def __init__(self, path: str, file: RemoteFile) -> None:
        self._path, self._file = path, file
        self.position = 0
        self._digest = _new_hash(file)
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
            try:
                with contextlib.suppress(OSError):
                    # Other clients may delete the lock file while it is held; this file itself is locked as well.
                    fcntl.flock(self._descriptor, fcntl.LOCK_EX)
                self._read_existing()
            except BaseException:
                self.close()
                raise
        except OSError as error:
            raise storage_error(error) from error

    def append(self, chunk: bytes) -> None:
        """Write received bytes and hash them."""
        view = memoryview(chunk)
        try:
            while view:
                written = os.write(self._descriptor, view)
                self._digest.update(view[:written])
                self.position += written
                view = view[written:]
        except OSError as error:
            raise storage_error(error) from error

    def hexdigest(self) -> str:
        """Return the digest of all bytes."""
        return self._digest.hexdigest()

    def restart(self) -> None:
        """Truncate it to zero bytes."""
        os.ftruncate(self._descriptor, 0)
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        self.position, self._digest = 0, _new_hash(self._file)

    def publish(self, blob: str) -> None:
        """Flush the complete content to the disk, then rename it to the blob."""
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
        """Close it; its content stays for a later run."""
        os.close(self._descriptor)

    def _read_existing(self) -> None:
        if os.fstat(self._descriptor).st_size > self._file.size_bytes:
            self.restart()
            return
        buffer = memoryview(bytearray(READ_BYTES))
        while count := os.readv(self._descriptor, [buffer]):
            self._digest.update(buffer[:count])
            self.position += count


def storage_error(error: OSError) -> StorageError:
    """Return the error for a refusal of the cache's disk."""
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
    """Return the digest of a file by the algorithm of its listed digest.

    Raises:
        OSError: It cannot be read.
    """
    with open(path, "rb", buffering=0) as content:
        return hashlib.file_digest(content, lambda: _new_hash(file)).hexdigest()


FAILURES_RESET_BYTES = 1024 * 1024
"""Progress after which the count of consecutive failures starts again."""
CHECKSUM_ATTEMPTS = 3
"""Downloads with a wrong checksum before an error."""
LOCK_SECONDS = 0.5
"""Timeout of one attempt to take the lock of a blob, after which ``stop`` is checked."""


class StoppedError(Exception):
    """The download was stopped: another file failed, or the user interrupted."""


@attrs.define
class _Failures:
    """Count of consecutive failures."""

    count: int = 0
    position: int = 0
    """Position of the last failure, bytes."""

    def add(self, position: int) -> None:
        """Count a failure at a position."""
        if position - self.position >= FAILURES_RESET_BYTES:
            self.count = 0
        self.position = position
        self.count += 1


class BlobTransfer:
    """Downloads files of one revision. Thread-safe.

    Args:
        client: Access to the hub.
        folder: The model's paths in the cache.
        commit: The revision.
        stop: Event that makes running downloads raise ``StoppedError``.
        verify_present: Whether to hash files that are present already.
    """

    def __init__(
        self, client: HubClient, folder: ModelFolder, commit: str, stop: threading.Event, *, verify_present: bool
    ) -> None:
        self._client, self._folder, self._commit = client, folder, commit
        self._stop, self._verify_present = stop, verify_present
        self._session = client.open()
        self._headers = client.headers()

    def fetch(self, file: RemoteFile, report: Callable[[int], None]) -> None:
        """Download one file into its blob.

        Args:
            file: The file.
            report: Called with the bytes present so far.

        Raises:
            MlxkError, httpx2.HTTPError: The download failed.
            StoppedError: The download was stopped.
        """
        if self._is_present(file):
            report(file.size_bytes)
            return
        with self._lock(file), self._partial(file) as partial:
            if self._is_present(file):  # another client has downloaded it meanwhile
                partial.discard()
            else:
                self._complete(file, partial, report)
            report(file.size_bytes)

    def _complete(self, file: RemoteFile, partial: PartialFile, report: Callable[[int], None]) -> None:
        for _ in range(CHECKSUM_ATTEMPTS):
            report(partial.position)
            self._receive_all(file, partial, report)
            if partial.hexdigest() == file.digest:
                partial.publish(self._folder.blob(file.digest))
                return
            partial.restart()
        raise DownloadFailedError(
            f"{file.path} arrived damaged {CHECKSUM_ATTEMPTS} times: its checksum differs from the hub's",
            hint="Try again later. If it stays so, the file is damaged on the hub or on the way.",
        )

    def _receive_all(self, file: RemoteFile, partial: PartialFile, report: Callable[[int], None]) -> None:
        failures, policy = _Failures(position=partial.position), self._client.access.retry_policy
        while partial.position < file.size_bytes:
            delay: float | None = None
            try:
                delay = self._receive(file, partial, report)
                if partial.position >= file.size_bytes:
                    return
                reason = "the connection was closed early"
            except httpx2.HTTPError as error:
                if not is_transient(error):
                    raise
                reason = reason_of(error)
            failures.add(partial.position)
            if failures.count > policy.retries:
                raise NetworkError(
                    f"{file.path} could not be fetched: {reason}",
                    hint="Run the same command again: it continues where this one stopped.",
                )
            self._pause(policy.wait(failures.count, delay))

    def _receive(self, file: RemoteFile, partial: PartialFile, report: Callable[[int], None]) -> float | None:
        """Receive the body of one response; return the seconds of ``Retry-After`` if the hub sends it instead."""
        headers = {**self._headers, "Range": f"bytes={partial.position}-"} if partial.position else self._headers
        url = self._client.file_url(self._folder.name, self._commit, file.path)
        with self._session.stream("GET", url, headers=headers, extensions={IS_FILE: True}) as response:
            if response.status_code in TRANSIENT_STATUSES:
                return parse_retry_after(response.headers.get("Retry-After"))
            self._check(response, partial)
            for chunk in response.iter_raw():
                if self._stop.is_set():
                    raise StoppedError
                if partial.position + len(chunk) > file.size_bytes:
                    raise DownloadFailedError(f"the hub sent more than the {file.size_bytes} bytes of {file.path}")
                partial.append(chunk)
                report(partial.position)
        return None

    def _check(self, response: httpx2.Response, partial: PartialFile) -> None:
        """Check that the body is the requested range; a server may ignore the range and send the entire file."""
        if response.status_code == 206:
            if not response.headers.get("Content-Range", "").startswith(f"bytes {partial.position}-"):
                partial.restart()
                raise DownloadFailedError("the hub sent another part of the file than was asked for")
            return
        if response.status_code == 200:
            if partial.position:
                partial.restart()
            return
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
        """Hold the lock that every client of the cache takes to write this blob, if the disk supports locks."""
        with contextlib.ExitStack() as stack:
            while True:
                if self._stop.is_set():
                    raise StoppedError
                try:
                    stack.enter_context(WeakFileLock(self._folder.lock(file.digest), timeout=LOCK_SECONDS))
                    break
                except Timeout:
                    continue
                except OSError as error:
                    if error.errno in UNSUPPORTED:
                        break
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
