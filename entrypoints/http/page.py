"""The chat page: the document that browsers get at ``/``, and the files below ``/page/`` that it loads."""

import functools
import gzip
import hashlib
from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable

import attrs
import falcon

from mlxk.entrypoints.http.resources import Readable

CONTENT_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "media-src blob: data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types dompurify",
    )
)
"""Content Security Policy: nothing from other origins, no inline script or style, no markup built from text."""

_MEDIA_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
}
"""Media types by file suffix."""

INDEX = "index.html"
PREFIX = "/page/"


def asks_for_page(request: falcon.Request) -> bool:
    """Whether a request for ``/`` comes from a browser: it accepts HTML by name, and does not prefer plain text."""
    names_html = "text/html" in (request.get_header("Accept") or "")
    return names_html and request.client_prefers(("text/html", "text/plain")) == "text/html"


@attrs.frozen
class _Content:
    plain: bytes
    compressed: bytes
    tag: str
    """Hash of the content, for the ETag."""


class ChatPage:
    """The files of the page, each read and compressed at its first request."""

    def __init__(self) -> None:
        self._files = dict(_files_below(resources.files("mlxk.entrypoints.http").joinpath("page_files")))
        self._content = functools.cache(self._read)

    def is_public(self, request: falcon.Request) -> bool:
        """Whether a request is for a file of the page. These need no key, since the page is where the user types it."""
        if request.method not in {"GET", "HEAD"}:
            return False
        path = request.path
        return asks_for_page(request) if path == "/" else self.has(path.removeprefix(PREFIX))

    def has(self, name: str) -> bool:
        """Whether the page has a file of this name, such as ``page.css``."""
        return name in self._files

    def send(self, name: str, request: falcon.Request, response: falcon.Response) -> None:
        """Send a file, or 304 when the browser has it already."""
        content = self._content(name)
        response.set_header("Content-Security-Policy", CONTENT_POLICY)
        response.set_header("Referrer-Policy", "no-referrer")
        response.set_header("Cache-Control", "no-cache")
        response.append_header("Vary", "Accept-Encoding")
        response.set_header("ETag", f'W/"{content.tag}"')
        if any(each in {"*", content.tag} for each in request.if_none_match or ()):
            response.status = falcon.HTTP_304
            return
        response.content_type = _MEDIA_TYPES[name.rpartition(".")[2]]
        if _takes_gzip(request):
            response.set_header("Content-Encoding", "gzip")
            response.data = content.compressed
        else:
            response.data = content.plain

    def _read(self, name: str) -> _Content:
        plain = self._files[name].read_bytes()
        return _Content(plain, gzip.compress(plain, mtime=0), hashlib.sha256(plain).hexdigest()[:32])


class PageFile(Readable):
    """``/page/…``: a file that the page loads."""

    def __init__(self, page: ChatPage) -> None:
        self._page = page

    def on_get(self, request: falcon.Request, response: falcon.Response, file: str) -> None:
        """Send the file."""
        if not self._page.has(file):
            raise falcon.HTTPNotFound
        self._page.send(file, request, response)


def _files_below(folder: Traversable, prefix: str = "") -> Iterator[tuple[str, Traversable]]:
    """Yield the files of a folder that have a media type, each after its path in the folder."""
    for each in folder.iterdir():
        if each.is_dir():
            yield from _files_below(each, f"{prefix}{each.name}/")
        elif each.name.rpartition(".")[2] in _MEDIA_TYPES:
            yield f"{prefix}{each.name}", each


def _takes_gzip(request: falcon.Request) -> bool:
    for each in (request.get_header("Accept-Encoding") or "").lower().split(","):
        name, _, quality = each.partition(";")
        if name.strip() == "gzip":
            return quality.replace(" ", "").rstrip("0.") != "q="
    return False
