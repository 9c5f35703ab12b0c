"""The hub as a source of models: listing files, fetching several at a time, and publishing a complete snapshot.

A snapshot becomes visible in one step, and only when every file of it has arrived.
"""

import os
import threading
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from mlxk.adapters.huggingface.client import HubClient, translate_errors
from mlxk.adapters.huggingface.layout import ModelFolder, publish_snapshot
from mlxk.adapters.huggingface.transfer import BlobTransfer, StoppedError, storage_error
from mlxk.application.ports.model_hub import ModelHub
from mlxk.application.ports.progress import Progress
from mlxk.domain.download import (
    DownloadPlan,
    RemoteFile,
    RemoteModel,
    check_commit,
    check_file,
    check_name,
    check_revision,
)

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo
    from huggingface_hub.hf_api import RepoFile


FILES_AT_A_TIME = 8
TELL_SECONDS = 0.1
"""How often progress is told."""
FAREWELL_SECONDS = 2.0
"""How long the other downloads get to end when one fails or the user interrupts."""


class HuggingFaceModelHub(ModelHub):
    """Reads models from a Hugging Face Hub into the hub cache.

    Args:
        client: The hub.
        root: The ``hub`` directory of the cache.
    """

    def __init__(self, client: HubClient, root: str) -> None:
        self._client, self._root = client, root

    def describe(self, name: str, revision: str | None = None) -> RemoteModel:
        """Return one revision of a model, after making sure that its files may be read."""
        check_name(name)
        if revision is not None:
            check_revision(revision)
        with translate_errors(name, revision, self._client.access):
            api = self._client.api()
            info = self._client.with_retries(lambda: api.model_info(name, revision=revision))
            commit = check_commit(info.sha)
            listed = self._client.with_retries(lambda: list(api.list_repo_tree(name, revision=commit, recursive=True)))
            files = tuple(sorted(remote_files(listed), key=lambda file: file.path))
            if info.gated or info.private:
                self._check_access(name, commit, files)
        return RemoteModel(name, commit, files, revision, made_for_mlx=_made_for_mlx(info))

    def missing_bytes(self, plan: DownloadPlan) -> int:
        """Return how much of a plan is not on this disk yet."""
        folder = ModelFolder(self._root, plan.model.name)
        contents = {file.digest: file.size_bytes for file in plan.files}
        return sum(_missing(folder, digest, size) for digest, size in contents.items())

    def fetch(self, plan: DownloadPlan, progress: Progress, *, verify_present: bool = False) -> None:
        """Bring the files of a plan into the cache; they become visible together."""
        folder = ModelFolder(self._root, plan.model.name)
        try:
            folder.create()
        except OSError as error:
            raise storage_error(error) from error
        files = sorted({file.digest: file for file in plan.files}.values(), key=lambda file: -file.size_bytes)
        with translate_errors(plan.model.name, plan.model.commit, self._client.access):
            stop = threading.Event()
            transfer = BlobTransfer(self._client, folder, plan.model.commit, stop, verify_present=verify_present)
            progress.begin("Downloading", {file.path: file.size_bytes for file in files})
            try:
                _Crew(transfer, files, stop).run(progress)
            finally:
                progress.end()
        try:
            publish_snapshot(folder, plan)
        except OSError as error:
            raise storage_error(error) from error

    def _check_access(self, name: str, commit: str, files: tuple[RemoteFile, ...]) -> None:
        """Ask for one file: the description of a gated model is public, its files are not."""
        from huggingface_hub import get_hf_file_metadata

        access = self._client.access
        url = self._client.file_url(name, commit, files[0].path)
        self._client.with_retries(
            lambda: get_hf_file_metadata(url, token=access.token or False, timeout=access.timeout)
        )


class _Crew:
    """Threads that fetch files, the largest first."""

    def __init__(self, transfer: BlobTransfer, files: list[RemoteFile], stop: threading.Event) -> None:
        self._transfer, self._stop = transfer, stop
        self._waiting = list(reversed(files))
        self._done: dict[str, int] = {}
        self._failure: BaseException | None = None
        count = min(FILES_AT_A_TIME, len(files))
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(count)]

    def run(self, progress: Progress) -> None:
        """Fetch all files.

        Raises:
            MlxkError, httpx2.HTTPError: The first failure of any of them.
        """
        for thread in self._threads:
            thread.start()
        try:
            while any(thread.is_alive() for thread in self._threads):
                _wait_for(self._threads, TELL_SECONDS)
                progress.advance(dict(self._done))
        finally:
            self._stop.set()
            _wait_for(self._threads, FAREWELL_SECONDS)
        if self._failure:
            raise self._failure

    def _work(self) -> None:
        while not self._stop.is_set():
            try:
                file = self._waiting.pop()
            except IndexError:
                return
            try:
                self._fetch(file)
            except StoppedError:
                return
            except BaseException as failure:  # noqa: BLE001 - handed to the thread that waits for this one
                self._failure = self._failure or failure
                self._stop.set()

    def _fetch(self, file: RemoteFile) -> None:
        def tell(count: int) -> None:
            self._done[file.path] = count

        self._transfer.fetch(file, tell)


def remote_files(listed: Iterable[object]) -> Iterable[RemoteFile]:
    """Return the files of a listing of the hub client, each of them checked."""
    from huggingface_hub.hf_api import RepoFile

    return (check_file(_remote_file(entry)) for entry in listed if isinstance(entry, RepoFile))


def _remote_file(entry: "RepoFile") -> RemoteFile:
    return RemoteFile(
        path=entry.path,
        size_bytes=entry.size,
        blob_id=entry.blob_id,
        sha256=entry.lfs.sha256 if entry.lfs else None,
        chunk_hash=entry.xet_hash,
    )


def _made_for_mlx(info: "ModelInfo") -> bool:
    return info.library_name == "mlx" or "mlx" in (info.tags or ()) or info.id.startswith("mlx-community/")


def _missing(folder: ModelFolder, digest: str, size: int) -> int:
    for path, whole in ((folder.blob(digest), True), (folder.partial(digest), False)):
        try:
            here = os.stat(path).st_size
        except OSError:
            continue
        if here == size or not whole:
            return max(0, size - here)
    return size


def _wait_for(threads: list[threading.Thread], seconds: float) -> None:
    """Wait until threads end, or so many seconds."""
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
