"""Answers of the hub's HTTP API, read without trust: bounded in bytes, time and pages, and checked for their types.

The session of ``client`` bounds every answer in bytes and sends no token elsewhere; this module reads what a model is
and which files it has.
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
"""First part of a weight file that is asked for; most headers fit."""
ANSWER_SECONDS = 120.0
"""Time for one whole answer; the timeout of the session is that between two bytes."""


@attrs.frozen
class RepositoryInfo:
    """A model on the hub, at one revision."""

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

    def tagged(self, prefix: str) -> tuple[str, ...]:
        """Return what follows a prefix among the tags, sorted."""
        return tagged(self.tags, prefix)


def tagged(tags: Iterable[str], prefix: str) -> tuple[str, ...]:
    """Return what follows a prefix among tags, sorted; blank ones are left out."""
    return tuple(sorted({tag.removeprefix(prefix) for tag in tags if tag.startswith(prefix) and tag != prefix}))


def model_info(client: HubClient, name: str, revision: str | None = None) -> RepositoryInfo:
    """Return what the hub says about a model.

    Raises:
        httpx2.HTTPError: The hub refuses, or cannot be reached.
        DownloadFailedError: The answer is not what the API promises.
    """
    at = f"/revision/{quote(revision, safe='')}" if revision else ""
    answer = document(client, f"{client.access.endpoint}/api/models/{name}{at}")[0]
    if not isinstance(answer, dict):
        raise malformed()
    stated, commit, library, tags = (answer.get(key) for key in ("id", "sha", "library_name", "tags"))
    downloads, task = answer.get("downloads"), answer.get("pipeline_tag")
    return RepositoryInfo(
        name=stated if isinstance(stated, str) else name,
        commit=check_commit(commit if isinstance(commit, str) else None),
        private=bool(answer.get("private")),
        gated=bool(answer.get("gated")),
        library=library if isinstance(library, str) else None,
        tags=tuple(tag for tag in tags if isinstance(tag, str)) if isinstance(tags, list) else (),
        downloads=downloads if type(downloads) is int and downloads >= 0 else 0,
        task=task if isinstance(task, str) else None,
    )


def list_files(client: HubClient, name: str, commit: str) -> tuple[RemoteFile, ...]:
    """Return the files of a revision, sorted by path; further pages are asked of the endpoint, whatever host they name.

    Raises:
        httpx2.HTTPError: The hub refuses, or cannot be reached.
        DownloadFailedError: The answer is not what the API promises, or does not end.
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
    """Ask for one file's metadata: the description of a gated model is public, its files are not.

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
    """Return the JSON of an answer, and the address of the next page if there is one.

    Raises:
        httpx2.HTTPError: The hub refuses, or cannot be reached.
        DownloadFailedError: The answer is not JSON, or does not end.
    """
    content, following = read_answer(client, url)
    try:
        return json.loads(content), following
    except (ValueError, RecursionError) as error:
        raise DownloadFailedError(
            "the hub's answer is not JSON", hint="See whether HF_ENDPOINT, or a proxy on the way, is a hub."
        ) from error


def read_answer(client: HubClient, url: str) -> tuple[bytes, str | None]:
    """Return an answer, or a short file, and the address of the next page if there is one.

    Raises:
        httpx2.HTTPError: The hub refuses, or cannot be reached.
        DownloadFailedError: It is longer than an answer may be, or takes too long.
    """
    return client.with_retries(lambda: _read(client, url))


def _read(client: HubClient, url: str, most: int | None = None) -> tuple[bytes, str | None]:
    """Return an answer and the address of the next page; with ``most``, only so many of its first bytes.

    A server may ignore the range and send the entire file.
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
    """Return the names of the tensors in a weight file, from its header; empty when it has none that can be read.

    Args:
        client: The hub.
        url: Of the file.
        size_bytes: Of the whole file.

    Raises:
        httpx2.HTTPError: The hub cannot be reached.
    """
    if not size_bytes:
        return ()
    try:
        data, _ = client.with_retries(lambda: _read(client, url, min(size_bytes, HEADER_BYTES)))
        span = min(header_span(data), size_bytes)
        if len(data) < span <= MAX_ANSWER_BYTES:
            data, _ = client.with_retries(lambda: _read(client, url, span))
    except httpx2.HTTPStatusError:
        return ()
    return read_header(data, size_bytes).tensors


def _at_endpoint(endpoint: str, url: str) -> str:
    """Return the address of a page at the endpoint: a mirror may pass on the links of the hub that it mirrors."""
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
    path, size, blob, large, chunks = (entry.get(key) for key in ("path", "size", "oid", "lfs", "xetHash"))
    sha256 = large.get("oid") if isinstance(large, dict) else None
    if not isinstance(path, str) or type(size) is not int or not isinstance(blob, str):
        raise malformed()
    if large is not None and not isinstance(sha256, str):
        raise malformed()
    return RemoteFile(path, size, blob, sha256, chunks if isinstance(chunks, str) else None)


def malformed() -> DownloadFailedError:
    """Return the error of an answer that is not what the API promises."""
    return DownloadFailedError("the hub's answer is not what its API promises")
