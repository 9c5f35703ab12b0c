"""The hub: search and description of models, and downloads of a revision into the cache.

Answers of the hub are untrusted. A snapshot becomes visible in one step, when all of its files are complete.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from urllib.parse import urlencode

import attrs
from huggingface_hub import errors

from mlxk.adapters.huggingface.answers import (
    RepositoryInfo,
    document,
    list_files,
    malformed,
    model_info,
    read_answer,
    read_tensors,
    require_access,
    tagged,
)
from mlxk.adapters.huggingface.client import HubClient, translate_errors
from mlxk.adapters.huggingface.layout import ModelFolder, publish_snapshot
from mlxk.adapters.huggingface.transfer import BlobTransfer, StoppedError, storage_error
from mlxk.application.ports.hub import ModelHub
from mlxk.application.ports.system import Progress
from mlxk.domain.errors import ValidationError
from mlxk.domain.hub import DownloadPlan, FoundModel, RemoteCard, RemoteFile, RemoteModel, check_revision
from mlxk.domain.models.file_formats import element_bits, read_document
from mlxk.domain.models.reference import check_name
from mlxk.domain.models.snapshot import CONFIG, SAFETENSORS_INDEX
from mlxk.domain.models.weights import SAFETENSORS, indexed_tensors, is_one_set, undecided_weights

FIELDS = ("downloads", "gated", "library_name", "safetensors", "tags")
"""Fields that a search requests of each model."""
LICENSE_TAG = "license:"
BASE_MODEL_TAG = "base_model:"
"""Prefixes of tags with a value."""


def search_models(
    client: HubClient, terms: str, limit: int, *, mlx_only: bool, made_for_mlx: Callable[..., bool]
) -> tuple[FoundModel, ...]:
    """Return the models whose names match the terms, the most downloaded first, with one request.

    Args:
        client: The hub.
        terms: Words of the name.
        limit: Number of models.
        mlx_only: Whether to request only models with the tag ``mlx``.
        made_for_mlx: Predicate on ``name``, ``library`` and ``tags``.

    Raises:
        httpx2.HTTPError: The hub refuses, or cannot be reached.
        DownloadFailedError: The answer is malformed.
    """
    query = [("search", terms), ("sort", "downloads"), ("limit", str(limit))]
    query += [("filter", "mlx")] if mlx_only else []
    query += [("expand[]", field) for field in FIELDS]
    entries = document(client, f"{client.access.endpoint}/api/models?{urlencode(query)}")[0]
    if not isinstance(entries, list):
        raise malformed()
    found = (_found(entry, made_for_mlx) for entry in entries[:limit])
    return tuple(model for model in found if model)


def _found(entry: object, made_for_mlx: Callable[..., bool]) -> FoundModel | None:
    """Return a model; None if its name cannot be pulled, as those of the hub's first years."""
    if not isinstance(entry, dict) or not isinstance(entry.get("id"), str):
        raise malformed()
    try:
        name = check_name(entry["id"])
    except ValidationError:
        return None
    downloads, library, listed = entry.get("downloads"), entry.get("library_name"), entry.get("tags")
    tags = tuple(tag for tag in listed if isinstance(tag, str)) if isinstance(listed, list) else ()
    return FoundModel(
        name=name,
        made_for_mlx=made_for_mlx(name=name, library=library if isinstance(library, str) else None, tags=tags),
        weight_bytes=_weight_bytes(entry.get("safetensors")),
        downloads=downloads if type(downloads) is int and downloads >= 0 else 0,
        license=next(iter(tagged(tags, LICENSE_TAG)), None),
        gated=bool(entry.get("gated")),
    )


def _weight_bytes(stated: object) -> int | None:
    """Return the size of weights from the number of elements per dtype; None if that is not stated."""
    counts = stated.get("parameters") if isinstance(stated, Mapping) else None
    if not isinstance(counts, Mapping) or not counts:
        return None
    total = 0
    for dtype, count in counts.items():
        bits = element_bits(str(dtype))
        if bits is None or type(count) is not int or count < 0:
            return None
        total += count * bits
    return -(-total // 8)


PARALLEL_DOWNLOADS = 8
PROGRESS_SECONDS = 0.1
"""Interval of progress reports."""
MAX_CONFIG_BYTES = 16 * 1024 * 1024
MAX_HEADERS = 32
"""Number of weight files whose headers are read before a download; of more files all are fetched."""
STOP_SECONDS = 2.0
"""Timeout for the other downloads to end after a failure or an interrupt."""


class HuggingFaceModelHub(ModelHub):
    """Downloads models from a Hugging Face Hub into the hub cache.

    Args:
        client: Access to the hub.
        root: The ``hub`` directory of the cache.
        mlx_owner: The owner whose repositories are all in the format of MLX; empty for none.
        links: Whether snapshots have links to blobs, else hard links or copies.
    """

    def __init__(self, client: HubClient, root: str, mlx_owner: str = "", links: bool = True) -> None:
        self._client, self._root, self._mlx_owner, self._links = client, root, mlx_owner, links

    def describe(self, name: str, revision: str | None = None) -> RemoteModel:
        with self._request(name, revision):
            info, model = self._listed(name, revision)
            if info.gated or info.private:
                require_access(self._client, model.name, model.commit, _any_path(model))
            return self._indexed(model)

    def card(self, name: str, revision: str | None = None) -> RemoteCard:
        with self._request(name, revision):
            info, model = self._listed(name, revision)
            accessible = not (info.gated or info.private) or self._is_accessible(model)
            if accessible:
                model = self._indexed(model)
            config = self._config(model) if accessible else None
        return RemoteCard(
            model=model,
            downloads=info.downloads,
            license=next(iter(tagged(info.tags, LICENSE_TAG)), None),
            library=info.library,
            task=info.task,
            base_models=tuple(base for base in tagged(info.tags, BASE_MODEL_TAG) if ":" not in base),
            gated=info.gated,
            private=info.private,
            accessible=accessible,
            config=config,
        )

    def newest_commit(self, name: str) -> str:
        with self._request(name, None):
            return model_info(self._client, name).commit

    def search(self, terms: str, limit: int, *, mlx_only: bool) -> tuple[FoundModel, ...]:
        with translate_errors(f"search for {terms}", None, self._client.access):
            return search_models(self._client, terms, limit, mlx_only=mlx_only, made_for_mlx=self._made_for_mlx)

    def with_tensors(self, model: RemoteModel) -> RemoteModel:
        sizes = {file.path: file.size_bytes for file in model.files}
        undecided = undecided_weights(sizes, model.indexed)
        if len(undecided) > MAX_HEADERS:
            return model
        urls = {path: self._client.file_url(model.name, model.commit, path) for path in undecided}
        with translate_errors(model.name, model.commit, self._client.access):
            found = {path: read_tensors(self._client, url, sizes[path]) for path, url in urls.items()}
        return attrs.evolve(model, tensors={**model.tensors, **found})

    def missing_bytes(self, plan: DownloadPlan) -> int:
        folder = ModelFolder(self._root, plan.model.name)
        contents = {file.digest: file.size_bytes for file in plan.files}
        return sum(_missing(folder, digest, size) for digest, size in contents.items())

    def fetch(self, plan: DownloadPlan, progress: Progress, *, verify_present: bool = False) -> None:
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
                _ParallelDownload(transfer, files, stop).run(progress)
            finally:
                progress.end()
        try:
            publish_snapshot(folder, plan, links=self._links)
        except OSError as error:
            raise storage_error(error) from error

    @contextlib.contextmanager
    def _request(self, name: str, revision: str | None) -> Iterator[None]:
        """Validate the name and revision of a request, and translate its errors."""
        check_name(name)
        if revision is not None:
            check_revision(revision)
        with translate_errors(name, revision, self._client.access):
            yield

    def _listed(self, name: str, revision: str | None) -> tuple[RepositoryInfo, RemoteModel]:
        """Return the description and the files of a revision."""
        info = model_info(self._client, name, revision)
        full_name = info.name if info.name.lower() == name.lower() else name
        files = list_files(self._client, full_name, info.commit)
        made_for_mlx = self._made_for_mlx(info.name, info.library, info.tags)
        return info, RemoteModel(full_name, info.commit, files, revision, made_for_mlx)

    def _indexed(self, model: RemoteModel) -> RemoteModel:
        """Return a model with the files and tensors of its index."""
        index = self._index(model.name, model.commit, model.files)
        return attrs.evolve(model, indexed=frozenset(index), tensors=index)

    def _is_accessible(self, model: RemoteModel) -> bool:
        try:
            require_access(self._client, model.name, model.commit, _any_path(model))
        except errors.GatedRepoError:
            return False
        return True

    def _config(self, model: RemoteModel) -> Mapping[str, object] | None:
        """Return the configuration of a model; None without a readable one."""
        sizes = {file.path: file.size_bytes for file in model.files}
        if not 0 < sizes.get(CONFIG, 0) <= MAX_CONFIG_BYTES:
            return None
        content, _ = read_answer(self._client, self._client.file_url(model.name, model.commit, CONFIG))
        return read_document(content).mapping or None

    def _index(self, name: str, commit: str, files: tuple[RemoteFile, ...]) -> dict[str, set[str]]:
        """Return the tensors of the index by file; empty without a request if the file names are unambiguous."""
        paths = [file.path for file in files]
        weights = [path for path in paths if path.endswith(SAFETENSORS) and "/" not in path]
        if SAFETENSORS_INDEX not in paths or is_one_set(weights):
            return {}
        url = self._client.file_url(name, commit, SAFETENSORS_INDEX)
        content, _ = read_answer(self._client, url)
        return indexed_tensors(read_document(content).mapping)

    def _made_for_mlx(self, name: str, library: str | None, tags: tuple[str, ...]) -> bool:
        owned = bool(self._mlx_owner) and name.startswith(f"{self._mlx_owner}/")
        return owned or library == "mlx" or "mlx" in tags


class _ParallelDownload:
    """A pool of threads that fetches files, the largest first."""

    def __init__(self, transfer: BlobTransfer, files: list[RemoteFile], stop: threading.Event) -> None:
        self._transfer, self._stop = transfer, stop
        self._queue = list(reversed(files))
        self._done: dict[str, int] = {}
        self._failure: BaseException | None = None
        count = min(PARALLEL_DOWNLOADS, len(files))
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(count)]

    def run(self, progress: Progress) -> None:
        """Fetch all files.

        Raises:
            MlxkError, httpx2.HTTPError: The first failure of a file.
        """
        for thread in self._threads:
            thread.start()
        try:
            while any(thread.is_alive() for thread in self._threads):
                _wait_for(self._threads, PROGRESS_SECONDS)
                progress.advance(dict(self._done))
        finally:
            self._stop.set()
            _wait_for(self._threads, STOP_SECONDS)
        if self._failure:
            raise self._failure

    def _work(self) -> None:
        while not self._stop.is_set():
            try:
                file = self._queue.pop()
            except IndexError:
                return
            try:
                self._fetch(file)
            except StoppedError:
                return
            except BaseException as failure:  # noqa: BLE001 - raised again by ``run``
                self._failure = self._failure or failure
                self._stop.set()

    def _fetch(self, file: RemoteFile) -> None:
        def report(count: int) -> None:
            self._done[file.path] = count

        self._transfer.fetch(file, report)


def _any_path(model: RemoteModel) -> str:
    return model.files[0].path if model.files else ".gitattributes"


def _missing(folder: ModelFolder, digest: str, size: int) -> int:
    for path, complete in ((folder.blob(digest), True), (folder.partial(digest), False)):
        try:
            present = os.stat(path).st_size
        except OSError:
            continue
        if present == size or not complete:
            return max(0, size - present)
    return size


def _wait_for(threads: list[threading.Thread], seconds: float) -> None:
    """Join threads, with a common timeout."""
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
