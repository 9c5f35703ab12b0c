"""One content from the hub into a blob: what is here already is kept, every byte is hashed, failures are repeated.

The hub client neither continues a download of an earlier run nor compares what arrived with its digest; this does both.
The file it arrives in is ``partial_file``; links and references are the work of ``publication``.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import attrs

from mlxk.adapters.huggingface.client import TRANSIENT_STATUSES, HubClient, is_transient, reason_of, seconds_asked
from mlxk.adapters.huggingface.layout import ModelFolder
from mlxk.adapters.huggingface.partial_file import PartialFile, hash_file, storage_error
from mlxk.domain.errors import DownloadFailedError, NetworkError
from mlxk.domain.remote_model import RemoteFile

if TYPE_CHECKING:
    import httpx2

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
