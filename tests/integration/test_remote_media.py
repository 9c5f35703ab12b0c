"""Addresses that requests name: public ones alone, over pinned connections, and servers that mean no good."""

import socket
import threading
import time
from pathlib import Path

import pytest
from serving.web import Web, answer, certificates

from mlxk.adapters.remote_media import RemoteMediaSource, is_public
from mlxk.domain.errors import ValidationError
from mlxk.domain.generation.media import IMAGES, RECORDINGS

PNG = b"\x89PNG\r\n\x1a\n"
PAGE = "http://media.example/a.png"


def fetch(web: Web, url: str = PAGE, max_bytes: int = 1000, seconds: float = 5) -> bytes:
    return RemoteMediaSource(web.resolve, web).read(url, IMAGES, max_bytes, seconds)


def refused(web: Web, url: str = PAGE, **limits: float) -> str:
    with pytest.raises(ValidationError) as found:
        fetch(web, url, **limits)  # type: ignore[arg-type]
    assert "example" not in found.value.message
    assert "10.0" not in found.value.message
    return found.value.message


@pytest.mark.parametrize("address", ["8.8.8.8", "93.184.216.34", "2606:2800:220:1::1", "2a00:1450:4001::1"])
def test_public_addresses(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        *("0.0.0.0", "10.1.2.3", "100.64.0.1", "127.0.0.1", "127.255.1.1", "169.254.169.254", "172.16.0.1"),
        *("192.168.0.1", "192.0.0.192", "192.0.2.1", "192.88.99.1", "198.18.0.1", "203.0.113.9", "224.0.0.1"),
        *("240.0.0.1", "255.255.255.255", "100.100.100.200", "168.63.129.16"),
        *("::", "::1", "::8.8.8.8", "::ffff:8.8.8.8", "::ffff:127.0.0.1", "64:ff9b::8.8.8.8", "64:ff9b:1::1"),
        *("2001::1", "2001:db8::1", "2002:7f00:1::", "3fff::1", "5f00::1", "fc00::1", "fd00:ec2::254", "fe80::1"),
        *("fe80::1%lo", "fec0::1", "ff02::1", "100::1", "2a00:1450::5efe:10.0.0.1", "2a00:1450::200:5efe:10.0.0.1"),
        *("", "no address", "127.1", "0x7f000001"),
    ],
)
def test_all_other_addresses(address: str) -> None:
    assert not is_public(address)


def test_what_is_at_a_public_address_comes_without_cookies_and_credentials() -> None:
    with Web({"/a.png?size=1": answer(PNG, Content_Type="image/png", Set_Cookie="a=b")}) as web:
        for _ in range(2):
            assert fetch(web, "HTTP://Media.Example:8080/a.png?size=1#top") == PNG
        assert web.connected == [("93.184.216.34", 8080)] * 2
        assert web.heads[0].startswith("GET /a.png?size=1 HTTP/1.1\r\nHost: media.example:8080\r\n")
        assert "cookie" not in web.heads[1].lower()
        assert "authorization" not in web.heads[1].lower()
        assert fetch(web, "http://[2606:2800:220:1::1]/a.png?size=1") == PNG
        assert "Host: [2606:2800:220:1::1]\r\n" in web.heads[2]


def test_environment_variables_name_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with Web({"/a.png": answer(PNG)}) as web:
        assert fetch(web) == PNG


@pytest.mark.parametrize(
    "host",
    [
        *("inside.example", "both.example", "nowhere.example", "localhost", "LOCALHOST.", "127.0.0.1", "[::1]"),
        *(
            "10.0.0.1",
            "169.254.169.254",
            "[::ffff:127.0.0.1]",
            "[64:ff9b::a9fe:a9fe]",
            "2130706433",
            "0x7f.1",
            "0177.1",
        ),
        *("127.1", "[fe80::1%25lo]", "0", "[::]"),
    ],
)
def test_hosts_that_are_not_public_are_never_connected_to(host: str) -> None:
    with Web({}) as web:
        said = refused(web, f"http://{host}/a.png")
        assert said in ("names no host with public addresses alone", "is no valid address")
        assert web.connected == []


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://user:pw@media.example/", "must not hold a name or a password"),
        ("http://media.example:22/", "names the port 22"),
        ("http://media.example:0/", "names the port 0"),
        ("http://media.example:99999/", "valid|names the port"),
        ("http:///a.png", "valid"),
        ("http://media.example/\r\nX: y", "valid"),
        ("http://" + "a" * 70_000, "valid|names no host"),
    ],
)
def test_addresses_that_are_none(url: str, said: str) -> None:
    with Web({}) as web, pytest.raises(ValidationError, match=said):
        fetch(web, url)


def redirect(to: str, status: str = "302 Found") -> bytes:
    return answer(status=status, Location=to)


def test_redirections_are_followed_and_checked_each() -> None:
    ways = {
        "/a.png": redirect("/b.png", "301 Moved"),
        "/b.png": redirect("//other.example/c.png", "307 Temporary Redirect"),
        "/c.png": answer(PNG),
        "/round": redirect("/round"),
        "/inside": redirect("http://inside.example/a.png"),
        "/metadata": redirect("http://169.254.169.254/latest"),
        "/file": redirect("file:///etc/passwd"),
        "/login": redirect("http://user:pw@media.example/"),
        "/nowhere": redirect(""),
    }
    with Web(ways) as web:
        assert fetch(web) == PNG
        assert [host for host, _ in web.connected] == ["93.184.216.34"] * 2 + ["2606:2800:220:1::1"]
        said = {path: refused(web, f"http://media.example{path}") for path in list(ways)[3:]}
    assert said == {
        "/round": "is redirected more than 4 times",
        "/inside": "names no host with public addresses alone",
        "/metadata": "names no host with public addresses alone",
        "/file": "is redirected to something else than a page",
        "/login": "must not hold a name or a password",
        "/nowhere": "is redirected to something else than a page",
    }
    assert not {host for host, _ in web.connected} - {"93.184.216.34", "2606:2800:220:1::1"}


def test_a_name_that_changes_its_address_is_connected_to_at_the_one_that_was_checked() -> None:
    with Web({"/a.png": redirect("/b.png"), "/b.png": answer(PNG)}) as web:
        answers = iter([("93.184.216.34",), ("127.0.0.1",)])
        source = RemoteMediaSource(lambda host, port: next(answers), web)
        with pytest.raises(ValidationError, match="names no host"):
            source.read(PAGE, IMAGES, 100, 5)
        assert web.connected == [("93.184.216.34", 80)]


def drip(head: bytes, piece: bytes, pause: float) -> object:
    def say(client: socket.socket, _: str) -> None:
        client.sendall(head)
        while True:
            client.sendall(piece)
            time.sleep(pause)

    return say


HOSTILE = {
    "silent": (lambda client, _: time.sleep(60), "takes too long"),
    "dripping head": (drip(b"HTTP/1.1 200 OK\r\n", b"X", 0.05), "takes too long"),
    "dripping body": (drip(b"HTTP/1.1 200 OK\r\n\r\n", b"X", 0.05), "takes too long"),
    "endless body": (drip(b"HTTP/1.1 200 OK\r\n\r\n", b"X" * 4096, 0), "has more than"),
    "endless head": (drip(b"HTTP/1.1 200 OK\r\nX: ", b"X" * 4096, 0), "does not answer as one of the web"),
    "endless chunks": (
        drip(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"8\r\nXXXXXXXX\r\n", 0),
        "has more than",
    ),
    "endless notes": (drip(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n", 0.01), "takes too long"),
    "too large": (answer(PNG, Content_Length="99999999999"), "has more than"),
    "cut off": (answer(PNG, Content_Length="900"), "does not answer as one of the web"),
    "no answer": (answer()[:0], "does not answer as one of the web"),
    "no HTTP": (b"SSH-2.0-OpenSSH_9.6\r\n", "does not answer as one of the web"),
    "two lengths": (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", "as one of the web"),
    "a page": (answer(b"<html>", Content_Type="text/html"), "says that it is no image, but 'text/html'"),
    "a sound": (answer(b"RIFF", Content_Type="audio/wav"), "says that it is no image"),
    "compressed": (answer(PNG, Content_Encoding="gzip"), "compresses"),
    "missing": (answer(status="404 Not Found"), "answers with the status 404"),
    "partial": (answer(PNG, status="206 Partial Content"), "answers with the status 206"),
    "other protocol": (answer(status="101 Switching Protocols"), "status 101|as one of the web"),
}


@pytest.mark.parametrize(("say", "said"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_servers_are_left_in_time(say: bytes, said: str) -> None:
    began = time.monotonic()
    with Web({"/a.png": say}) as web, pytest.raises(ValidationError, match=said):
        fetch(web, seconds=0.6)
    assert time.monotonic() - began < 30


def test_a_server_that_nobody_reaches_and_a_resolver_that_is_silent() -> None:
    with Web({"/a.png": answer()}) as web:
        web.port = 1  # nobody listens there
    assert refused(web) == "its server cannot be reached, or breaks off"
    release = threading.Event()
    source = RemoteMediaSource(lambda host, port: [str(release.wait(30))], web)
    with pytest.raises(ValidationError, match="takes too long"):
        source.read(PAGE, IMAGES, 10, 0.3)
    release.set()


def test_media_types_are_those_of_the_kind_or_none() -> None:
    kinds = {"/a": "audio/mpeg", "/b": "video/mp4", "/c": "APPLICATION/OGG; codecs=opus", "/d": "", "/e": "image/png"}
    with Web({path: answer(b"x", Content_Type=each) for path, each in kinds.items()}) as web:
        source = RemoteMediaSource(web.resolve, web)
        for path in "/a", "/b", "/c", "/d":
            assert source.read(f"http://media.example{path}", RECORDINGS, 10, 5) == b"x"
        with pytest.raises(ValidationError, match="no recording"):
            source.read("http://media.example/e", RECORDINGS, 10, 5)


def test_certificates_are_verified_for_the_name_and_tls_is_kept(tmp_path: Path) -> None:
    shown, trusted = certificates(tmp_path, "media.example")
    ways = {"/a.png": answer(PNG), "/down": redirect("http://media.example/a.png")}
    with Web(ways, shown) as web:
        source = RemoteMediaSource(web.resolve, web, trusted)
        assert source.read("https://media.example/a.png", IMAGES, 100, 5) == PNG
        assert web.connected == [("93.184.216.34", 443)]
        with pytest.raises(ValidationError, match="from https to http"):
            source.read("https://media.example/down", IMAGES, 100, 5)
        for untrusted in ("https://other.example/a.png", "https://93.184.216.34/a.png"):
            with pytest.raises(ValidationError, match="certificate"):
                source.read(untrusted, IMAGES, 100, 5)
        with pytest.raises(ValidationError, match="certificate"):
            fetch(web, "https://media.example/a.png")
