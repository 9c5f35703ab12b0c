"""The chat page: who gets it, and with which headers; its files are whole and small, and refer to nothing else."""

import gzip
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from falcon.testing import Result, TestClient
from serving.parts import Parts
from serving.running import RunningServer

from mlxk.entrypoints.http.page import CONTENT_POLICY
from mlxk.entrypoints.settings import ServerSettings

FILES = Path(__file__).parents[2] / "entrypoints" / "http" / "page_files"
OURS = [path for path in sorted(FILES.iterdir()) if path.is_file()]
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"


@pytest.fixture(scope="module")
def served() -> Iterator[RunningServer]:
    """Return a server on loopback."""
    with RunningServer(Parts()) as running:
        yield running


def get(settings: ServerSettings, path: str, method: str = "GET", **headers: str) -> Result:
    """Ask a server with these settings."""
    parts = Parts(settings=settings)
    named = {name.replace("_", "-"): value for name, value in {"Host": "127.0.0.1", **headers}.items()}
    try:
        return TestClient(parts.application.wsgi).simulate_request(method, path, headers=named)
    finally:
        parts.close()


def test_a_browser_gets_the_page_and_every_file_that_it_loads(served: RunningServer) -> None:
    status, headers, body = served.get("/", Accept=BROWSER)
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert body == (FILES / "index.html").read_bytes()
    paths = [path.relative_to(FILES).as_posix() for path in FILES.rglob("*") if path.is_file()]
    for path in paths:
        status, headers, body = served.get(f"/page/{path}")
        assert (status, body) == (200, (FILES / path).read_bytes()), path
        assert headers["content-type"].startswith("text/")
    assert served.request("HEAD", "/", None, {"Accept": BROWSER})[::2] == (200, b"")
    assert served.request("HEAD", "/page/page.css")[::2] == (200, b"")


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (BROWSER, "text/html"),
        ("text/html", "text/html"),
        ("application/json, text/html;q=0.1", "text/html"),
        ("text/html;q=0.5, text/plain", "text/plain"),
        ("text/html;q=0, */*", "text/plain"),
        ("text/*", "text/plain"),
        ("*/*", "text/plain"),
        ("application/json", "text/plain"),
        ("text/html;q=many", "text/plain"),
        ("", "text/plain"),
    ],
)
def test_only_who_names_html_and_wants_it_is_a_browser(served: RunningServer, accept: str, kind: str) -> None:
    status, headers, _ = served.get("/", Accept=accept)
    assert (status, headers["content-type"]) == (200, f"{kind}; charset=utf-8")
    assert "Accept" in headers["vary"].split(", ")


@pytest.mark.parametrize("path", ["/", "/page/app.js"])
def test_what_the_page_may_load_and_do_is_stated(served: RunningServer, path: str) -> None:
    headers = served.get(path, Accept=BROWSER)[1]
    assert headers["content-security-policy"] == CONTENT_POLICY
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    stated = dict(rule.split(" ", 1) for rule in CONTENT_POLICY.split("; "))
    assert (stated["default-src"], stated["base-uri"], stated["form-action"]) == ("'none'",) * 3
    assert {stated[each] for each in ("script-src", "style-src", "connect-src")} == {"'self'"}
    assert "unsafe" not in CONTENT_POLICY


def test_a_file_is_sent_compressed_and_only_once(served: RunningServer) -> None:
    _, headers, plain = served.get("/page/app.js")
    tag = headers["etag"]
    for asked, packed in (("gzip, br", True), ("br", False), ("gzip;q=0", False), ("gzip; q=0.5", True)):
        answer = get(ServerSettings(), "/page/app.js", Accept_Encoding=asked)
        assert (answer.headers.get("content-encoding") == "gzip") is packed
        assert (gzip.decompress(answer.content) if packed else answer.content) == plain
        assert (answer.headers["etag"], "Accept-Encoding" in answer.headers["vary"]) == (tag, True)
    for known in (tag, f'"other", {tag}', "*"):
        status, headers, body = served.get("/page/app.js", **{"If-None-Match": known})
        assert (status, headers["etag"], body) == (304, tag, b"")
    assert served.get("/page/app.js", **{"If-None-Match": '"other"'})[0] == 200
    tag = served.get("/", Accept=BROWSER)[1]["etag"]
    assert served.get("/", Accept=BROWSER, **{"If-None-Match": tag})[0] == 304


@pytest.mark.parametrize(
    "path", ["nothing.js", "../page.py", "%2e%2e/page.py", "vendored", "vendored/", "", "page.css/"]
)
def test_there_are_no_other_files(served: RunningServer, path: str) -> None:
    status, headers, _ = served.get(f"/page/{path}")
    assert status == (200 if path == "page.css/" else 404)
    assert "python" not in headers["content-type"]


@pytest.mark.parametrize(
    ("settings", "there"),
    [
        (ServerSettings(), True),
        (ServerSettings(host="::1"), True),
        (ServerSettings(host="0.0.0.0"), False),
        (ServerSettings(host="192.168.1.5"), False),
        (ServerSettings(host="0.0.0.0", page=True), True),
        (ServerSettings(page=False), False),
        (ServerSettings(embed_model="org/encoder"), False),
    ],
)
def test_the_page_is_there_on_loopback_or_when_it_is_asked_for(settings: ServerSettings, there: bool) -> None:
    answer = get(settings, "/", Accept=BROWSER)
    assert (answer.status_code, answer.headers.get("location")) == ((200, None) if there else (302, "/docs"))
    assert get(settings, "/page/app.js").status_code == (200 if there else 404)
    assert get(settings, "/", Accept="*/*").text == "Ollama is running"


def test_the_files_of_the_page_need_no_key_and_everything_else_does() -> None:
    keyed = ServerSettings(api_keys=("right",))
    for path in ("/", "/page/app.js", "/page/vendored/purify.es.js"):
        assert get(keyed, path, Accept=BROWSER).status_code == 200
        assert get(keyed, path, "HEAD", Accept=BROWSER).status_code == 200
        assert get(keyed, path, "POST", Accept=BROWSER).status_code == 401
    for path in ("/v1/models", "/docs", "/metrics", "/page/nothing.js", "/page/../v1/models", "/page"):
        assert get(keyed, path, Accept=BROWSER).status_code == 401, path
    assert get(keyed, "/", Accept="*/*").status_code == 401
    assert get(ServerSettings(api_keys=("right",), page=False), "/", Accept=BROWSER).status_code == 401
    assert get(keyed, "/", Accept=BROWSER, Host="evil.example").status_code == 403
    assert get(keyed, "/", Accept=BROWSER, Origin="https://evil.example").status_code == 403


class Markup(HTMLParser):
    """What a page refers to, and what its content policy forbids."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.forbidden: list[str] = []
        self.ids: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """Note an element."""
        named = dict(attributes)
        self.addresses += [value or "" for name, value in attributes if name in {"src", "href"}]
        self.ids += [value or "" for name, value in attributes if name == "id"]
        if tag in {"style", "base", "iframe", "object", "embed"} or (tag == "script" and "src" not in named):
            self.forbidden.append(tag)
        self.forbidden += [name for name, _ in attributes if name == "style" or name.startswith("on")]


def test_every_reference_of_the_page_leads_to_one_of_its_files_and_nowhere_else() -> None:
    page = Markup((FILES / "index.html").read_text(encoding="utf-8"))
    assert page.forbidden == []
    assert len(page.ids) == len(set(page.ids))
    inside = {"data:,", "#prompt", "docs"}
    assert [
        each
        for each in page.addresses
        if each not in inside and not (FILES.parent / "page_files" / each.removeprefix("page/")).is_file()
    ] == []
    for path in OURS:
        text = path.read_text(encoding="utf-8")
        assert not re.search(
            r"(https?:)?//[a-z]|url\(|@import|innerHTML|outerHTML|insertAdjacentHTML|\beval\(",
            re.sub(r"(?m)^\s*(//|\*|/\*).*$", "", text),
        ), path
        for imported in re.findall(r'(?:from|import\()\s*"([^"]+)"', text):
            assert (FILES / imported).is_file(), (path, imported)
            assert f"page/{imported.removeprefix('./')}" in page.addresses or "highlight" in imported
        for name in re.findall(r'byId\("([^"]+)"\)', text):
            assert name in page.ids, (path, name)


def test_the_page_is_small_and_its_modules_are_readable_in_one_sitting() -> None:
    files = [path for path in FILES.rglob("*") if path.is_file()]
    assert sum(len(gzip.compress(path.read_bytes(), mtime=0)) for path in files) <= 400_000
    assert [path.name for path in OURS if len(path.read_text(encoding="utf-8").splitlines()) > 400] == []
