"""Untrusted answers of the hub's HTTP API: limited in bytes, time and pages, and with checked types.

The session of ``client`` limits the bytes of every answer and sends the token to the hub only; this module reads the
description of a model, its file list and short files.
"""

import json
import time
from collections.abc import Collection, Iterable, Iterator
from urllib.parse import quote, urlsplit

import attrs
import httpx2
from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]  # public, though not marked so

from mlxk.adapters.huggingface.client import MAX_ANSWER_BYTES, HubClient, origin_of
from mlxk.domain.errors import DownloadFailedError
from mlxk.domain.hub import RemoteFile, check_commit, check_file
from mlxk.domain.models.file_formats import header_span, read_header

MAX_PAGES = 1000
MAX_FILES = 200_000
HEADER_BYTES = 64 * 1024
"""Bytes of a weight file that are requested first; most headers fit."""
ANSWER_SECONDS = 120.0
"""Time for one complete answer; the timeout of the session limits only the time between two bytes."""


@attrs.frozen
class RepositoryInfo:
    """A revision of a model on the hub."""

    name: str
    """As the hub spells it."""
    commit: str
    """40 hexadecimal digits."""
    private: bool
    gated: bool
    library: str | None
    tags: tuple[str, ...]
    downloads: int = 0
    """In the last month."""
    task: str | None = None


def tagged(tags: Iterable[str], prefix: str) -> tuple[str, ...]:
    """Return the sorted, non-empty values of the tags with a prefix, such as ``license:``."""
    return tuple(sorted({tag.removeprefix(prefix) for tag in tags if tag.startswith(prefix) and tag != prefix}))


def model_info(client: HubClient, name: str, revision: str | None = None) -> RepositoryInfo:
    """Return the hub's description of a model.

    Raises:
        httpx2.HTTPError: The hub refuses, or cannot be reached.
        DownloadFailedError: The answer is malformed.
    """
    suffix = f"/revision/{quote(revision, safe='')}" if revision else ""
    answer = document(client, f"{client.access.endpoint}/api/models/{name}{suffix}")[0]
    if not isinstance(answer, dict):
        raise malformed()
    full_name, commit, library, tags = (answer.get(key) for key in ("id", "sha", "library_name", "tags"))
    downloads, task = answer.get("downloads"), answer.get("pipeline_tag")
    return RepositoryInfo(
        name=full_name if isinstance(full_name, str) else name,
        commit=check_commit(commit if isinstance(commit, str) else None),
        private=bool(answer.get("private")),
        gated=bool(answer.get("gated")),
        library=library if isinstance(library, str) else None,
        tags=tuple(tag for tag in tags if isinstance(tag, str)) if isinstance(tags, list) else (),
        downloads=downloads if type(downloads) is int and downloads >= 0 else 0,
        task=task if isinstance(task, str) else None,
    )


def list_files(client: HubClient, name: str, commit: str) -> tuple[RemoteFile, ...]:
    """Return the files of a revision, sorted by path. Pages are fetched from the endpoint, whatever host a link names.

    Raises:
        httpx2.HTTPError: The hub refuses, or cannot be reached.
        DownloadFailedError: The answer is malformed, or exceeds the limits.
    """
    url: str | None = f"{client.access.endpoint}/api/models/{name}/tree/{commit}?recursive=true&expand=false"
    files: list[RemoteFile] = []
    seen: set[str] = set()
    while url is not None:
        seen.add(url)
        entries, following = document(client, url)
        if not isinstance(entries, list):
            raise malformed()
        files += _files(entries)
        url = None if following is None else _at_endpoint(client.access.endpoint, following)
        if url in seen or len(seen) >= MAX_PAGES or len(files) > MAX_FILES:
            raise DownloadFailedError(f"the hub's list of the files of '{name}' does not end")
    return tuple(sorted(files, key=lambda file: file.path))


def require_access(client: HubClient, name: str, commit: str, path: str) -> None:
    """Request the metadata of one file, since of a gated model only the description is public.

    Raises:
        httpx2.HTTPError: The hub refuses, or cannot be reached.
    """
    url = client.file_url(name, commit, path)
    response = client.with_retries(
        lambda: client.open().head(
            url, headers=client.headers(), follow_redirects=False, timeout=client.access.metadata_timeout
        )
    )
    if not response.is_redirect:
        hf_raise_for_status(response)


def document(client: HubClient, url: str) -> tuple[object, str | None]:
    """Return the JSON of an answer, and the URL of the next page if there is one.

    Raises:
        httpx2.HTTPError: The hub refuses, or cannot be reached.
        DownloadFailedError: The answer is not JSON, or exceeds the limits.
    """
    content, following = read_answer(client, url)
    try:
        return json.loads(content), following
    except (ValueError, RecursionError) as error:
        raise DownloadFailedError(
            "the hub's answer is not JSON", hint="See whether HF_ENDPOINT, or a proxy on the way, is a hub."
        ) from error


def read_answer(client: HubClient, url: str) -> tuple[bytes, str | None]:
    """Return the body of an answer or of a short file, and the URL of the next page if there is one.

    Raises:
        httpx2.HTTPError: The hub refuses, or cannot be reached.
        DownloadFailedError: It exceeds the limits of size or time.
    """
    return client.with_retries(lambda: _read(client, url))


def _read(client: HubClient, url: str, most: int | None = None) -> tuple[bytes, str | None]:
    """Return the body of an answer, with ``most`` only that many bytes, and the URL of the next page.

    A server may ignore the range and send the entire file; the remainder is then not read.
    """
    content, deadline = bytearray(), time.monotonic() + ANSWER_SECONDS
    headers = {**client.headers(), **({} if most is None else {"Range": f"bytes=0-{most - 1}"})}
    with client.open().stream("GET", url, headers=headers) as response:
        if response.is_error:
            response.read()
        hf_raise_for_status(response)
        for chunk in response.iter_bytes():
            content += chunk
            if most is not None and len(content) >= most:
                break
            if len(content) > MAX_ANSWER_BYTES or time.monotonic() > deadline:
                raise DownloadFailedError("the hub's answer does not end", hint="See whether HF_ENDPOINT is a hub.")
        return bytes(content[:most]), response.links.get("next", {}).get("url")


def read_tensors(client: HubClient, url: str, size_bytes: int) -> Collection[str]:
    """Return the tensor names in the header of a weight file; empty without a valid header.

    Args:
        client: The hub.
        url: URL of the file.
        size_bytes: Size of the file.

    Raises:
        httpx2.HTTPError: The hub refuses, or cannot be reached.
    """
    if not size_bytes:
        return ()
    data, _ = client.with_retries(lambda: _read(client, url, min(size_bytes, HEADER_BYTES)))
    span = min(header_span(data), size_bytes)
    if len(data) < span <= MAX_ANSWER_BYTES:
        data, _ = client.with_retries(lambda: _read(client, url, span))
    return read_header(data, size_bytes).tensors


def _at_endpoint(endpoint: str, url: str) -> str:
    """Return the URL of a page at the endpoint: a mirror may pass on links to the hub that it mirrors."""
    try:
        target = httpx2.URL(endpoint).join(url)
        parts = urlsplit(str(target))
    except (httpx2.InvalidURL, ValueError) as error:
        raise malformed() from error
    if origin_of(target) == origin_of(httpx2.URL(endpoint)):
        return str(target)
    api = parts.path.find("/api/models/")
    if api < 0:
        raise DownloadFailedError("the hub names a next page that is no page of it")
    return f"{endpoint}{parts.path[api:]}{'?' if parts.query else ''}{parts.query}"


def _files(entries: list[object]) -> Iterator[RemoteFile]:
    for entry in entries:
        if not isinstance(entry, dict):
            raise malformed()
        if entry.get("type") == "file":
            yield check_file(_file(entry))


def _file(entry: dict[str, object]) -> RemoteFile:
    path, size, blob_id, lfs, chunk_hash = (entry.get(key) for key in ("path", "size", "oid", "lfs", "xetHash"))
    sha256 = lfs.get("oid") if isinstance(lfs, dict) else None
    if not isinstance(path, str) or type(size) is not int or not isinstance(blob_id, str):
        raise malformed()
    if lfs is not None and not isinstance(sha256, str):
        raise malformed()
    return RemoteFile(path, size, blob_id, sha256, chunk_hash if isinstance(chunk_hash, str) else None)


def malformed() -> DownloadFailedError:
    """Return the error for a malformed answer."""
    return DownloadFailedError("the hub's answer is not what its API promises")
