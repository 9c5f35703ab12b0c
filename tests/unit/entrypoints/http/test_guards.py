"""Guards: which hosts, which web pages, which keys."""

import os
import socket
from pathlib import Path

import pytest
from falcon.testing import Result, TestClient
from serving.parts import Parts

from mlxk.domain.errors import ValidationError
from mlxk.entrypoints.cli.server_settings import DESKTOP_ORIGINS
from mlxk.entrypoints.settings import ServerSettings


def get(
    settings: ServerSettings | None = None, method: str = "GET", path: str = "/v1/models", **headers: str
) -> Result:
    """Ask, with headers given as ``Access_Control_…``."""
    parts = Parts(settings=settings)
    named = {name.replace("_", "-"): value for name, value in {"Host": "127.0.0.1:8000", **headers}.items()}
    try:
        return TestClient(parts.application.wsgi).simulate_request(method, path, headers=named)
    finally:
        parts.close()


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8000", "127.0.0.1", "[::1]:8000", "192.168.1.5:8000", "LOCALHOST", "localhost."]
)
def test_names_and_addresses_of_this_machine_are_answered(host: str) -> None:
    assert get(Host=host).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost, evil.example", "a b", "@", "[::1"]
)
def test_other_host_names_are_refused(host: str) -> None:
    answer = get(Host=host)
    assert (answer.status_code, answer.json["error"]["type"]) == (403, "forbidden_origin")


@pytest.mark.parametrize("name", ["host.docker.internal", "gateway.docker.internal", "host.containers.internal"])
def test_names_of_this_machine_inside_of_containers_are_answered(name: str) -> None:
    assert get(Host=f"{name}:8000").status_code == get(Host=name.upper()).status_code == 200
    for other in (f"evil.{name}", f"{name}.evil.example", "docker.internal", "evil.internal"):
        assert get(Host=other).status_code == 403


@pytest.mark.parametrize("own", ["Studio", "studio.local", "STUDIO.LOCAL."])
def test_exactly_the_host_name_of_this_machine_is_answered(own: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: own)
    for name in ("studio", "Studio.local", "studio.local:8000"):
        assert get(Host=name).status_code == 200
    for other in ("studio.example", "studio.local.example", "a.studio.local", "studi", "local", ".local"):
        answer = get(Host=other)
        assert answer.status_code == 403
    assert "--allowed-host studi" in get(Host="studi").json["error"]["hint"]
    assert get(Host="studio.local", Origin="http://evil.example").status_code == 403
    assert get(Host="studio.local", Origin="http://studio.local:3000").status_code == 403


@pytest.mark.parametrize("own", ["", ".", ".local", "localhost"])
def test_a_machine_without_a_name_of_its_own_answers_no_others(own: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: own)
    assert get(Host=".local").status_code == get(Host="local").status_code == 403


def test_the_operator_can_allow_host_names() -> None:
    assert get(ServerSettings(allowed_hosts=("mac.local",)), Host="mac.local:8000").status_code == 200
    assert get(ServerSettings(host="studio"), Host="studio").status_code == 200


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "null",
        "http://localhost.evil.example",
        "file://",
        "http://",
        "http://localhost/path",
        "http://[",
    ],
)
def test_foreign_web_pages_are_refused(origin: str) -> None:
    answer = get(Origin=origin)
    assert (answer.status_code, answer.json["error"]["type"]) == (403, "forbidden_origin")
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("origin", ["http://localhost:3000", "https://127.0.0.1", "http://[::1]:5173"])
def test_pages_of_this_machine_are_answered(origin: str) -> None:
    answer = get(Origin=origin)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == origin
    assert "X-Request-ID" in answer.headers["access-control-expose-headers"]
    assert "Origin" in answer.headers["vary"]


def test_the_page_of_the_server_itself_is_answered() -> None:
    assert get(Host="192.168.1.5:8000", Origin="http://192.168.1.5:8000").status_code == 200
    assert get(Host="192.168.1.5:8000", Origin="http://192.168.1.5:9000").status_code == 403


def test_the_operator_can_allow_pages_also_those_opened_from_files() -> None:
    settings = ServerSettings(cors_origins=("https://app.example", "null"))
    assert get(settings, Origin="https://app.example").status_code == 200
    assert get(settings, Origin="null").status_code == 200
    assert get(settings, Origin="https://other.example").status_code == 403


EXTENSION = "chrome-extension://abcdefghijklmnop"


@pytest.mark.parametrize(
    ("allowed", "right", "wrong"),
    [
        ("*", ["https://x.example", EXTENSION, "null", "file://", "http://x.example:99"], []),
        ("chrome-extension://*", [EXTENSION], ["moz-extension://abc", "https://x.example", "null"]),
        ("moz-extension://*", ["moz-extension://1b2c-3d"], [EXTENSION]),
        (EXTENSION, [EXTENSION, EXTENSION.upper()], [f"{EXTENSION}q", "chrome-extension://a"]),
        ("app://obsidian.md", ["app://obsidian.md"], ["app://other", "app://obsidian.md.example"]),
        ("app://*", ["app://obsidian.md", "app://", "app://-"], ["https://app"]),
        ("file://", ["file://"], ["null"]),
        ("https://*.example.com", ["https://a.example.com", "https://a.b.example.com"],
         ["https://example.com", "https://evilexample.com", "http://a.example.com", "https://a.example.com:8443",
          "https://a.example.com.evil.example", "https://evil.example/.example.com", "https://u@a.example.com"]),
        ("http://*:3000", ["http://192.168.1.9:3000"], ["http://192.168.1.9:3001", "http://192.168.1.9"]),
        ("https://app.example/", ["https://app.example", "https://APP.example:443"], ["https://app.example:444"]),
        ("https://app.example:443", ["https://app.example"], ["http://app.example"]),
        ("http://[2001:db8::5]:3000", ["http://[2001:db8::5]:3000"], ["http://[2001:db8::6]:3000"]),
    ],
)  # fmt: skip
def test_every_spelling_of_an_origin_allows_what_it_says(allowed: str, right: list[str], wrong: list[str]) -> None:
    settings = ServerSettings(cors_origins=(allowed,))
    settings.validate()
    for origin in right:
        answer = get(settings, Origin=origin)
        assert (answer.status_code, answer.headers.get("access-control-allow-origin")) == (200, origin)
        preflight = get(settings, "OPTIONS", Origin=origin, Access_Control_Request_Method="POST")
        assert preflight.status_code == 204
    for origin in wrong:
        assert get(settings, Origin=origin).status_code == 403


@pytest.mark.parametrize(
    "origin",
    [
        *("app://obsidian.md", "capacitor://localhost", "file://", "ionic://localhost", "tauri://localhost"),
        *("http://tauri.localhost", "https://tauri.localhost", "vscode-file://vscode-app", "vscode-webview://1a2b"),
        "wails://wails",
    ],
)
def test_desktop_apps_can_be_allowed(origin: str) -> None:
    assert get(ServerSettings(cors_origins=DESKTOP_ORIGINS), Origin=origin).status_code == 200
    assert get(Origin=origin).status_code == 403


@pytest.mark.parametrize("origin", ["null", "https://x.example", "chrome-extension://abc"])
def test_a_refused_page_is_told_what_allows_it(origin: str) -> None:
    hint = get(Origin=origin).json["error"]["hint"]
    assert hint == f"Allow it with --cors-origin {origin}"
    assert get(ServerSettings(cors_origins=(hint.rpartition(" ")[2],)), Origin=origin).status_code == 200


def test_a_preflight_is_answered_without_a_key() -> None:
    answer = get(
        ServerSettings(api_keys=("k",)),
        method="OPTIONS",
        path="/v1/chat/completions",
        Origin="http://localhost:3000",
        Access_Control_Request_Method="POST",
        Access_Control_Request_Headers="authorization, content-type",
        Access_Control_Request_Private_Network="true",
    )
    assert answer.status_code == 204
    assert answer.headers["access-control-allow-headers"] == "authorization, content-type"
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert answer.headers["access-control-allow-private-network"] == "true"
    assert "access-control-allow-credentials" not in answer.headers


def test_a_preflight_of_a_foreign_page_is_refused() -> None:
    answer = get(method="OPTIONS", Origin="https://evil.example", Access_Control_Request_Method="POST")
    assert answer.status_code == 403


def test_options_without_a_page_lists_the_methods() -> None:
    answer = get(method="OPTIONS")
    assert answer.status_code == 200
    assert set(answer.headers["allow"].split(", ")) >= {"GET", "HEAD"}


KEYED = ServerSettings(api_keys=("right", "also-right"))


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": "Basic right"}, 401),
        ({"Authorization": "Bearer"}, 401),
        ({"Authorization": "Bearer right"}, 200),
        ({"Authorization": "bearer also-right"}, 200),
        ({"X_API_Key": "right"}, 200),
        ({"X_API_Key": ""}, 401),
        ({"Authorization": "Bearer wrong", "X_API_Key": "right"}, 200),
        ({"Authorization": "Bearer right", "X_API_Key": "wrong"}, 200),
        ({"Authorization": "Bearer wrong", "X_API_Key": "wrong"}, 401),
    ],
)
def test_a_server_with_keys_asks_for_one(headers: dict[str, str], status: int) -> None:
    answer = get(KEYED, **headers)
    assert answer.status_code == status
    if status == 401:
        assert answer.json["error"]["type"] == "unauthorized"
        assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/health"])
def test_probes_need_no_key(path: str) -> None:
    assert get(KEYED, path=path).status_code == 200


@pytest.mark.parametrize("path", ["/metrics", "/v1/models", "/openapi.json", "/nowhere"])
def test_everything_else_does(path: str) -> None:
    assert get(KEYED, path=path).status_code == 401


def test_a_well_formed_request_id_is_taken_and_another_is_not() -> None:
    assert get(X_Request_ID="abc-1.2_3").headers["x-request-id"] == "abc-1.2_3"
    for bad in ("a b", "x" * 129, "", "ä"):
        given = get(X_Request_ID=bad).headers["x-request-id"]
        assert given != bad
        assert len(given) == 32


def test_a_change_of_the_key_file_counts_at_once(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("one\n")
    parts = Parts(settings=ServerSettings(api_keys=("fixed",), api_key_file=str(file)))

    def status(key: str) -> int:
        headers = {"Host": "localhost", "Authorization": f"Bearer {key}"}
        return TestClient(parts.application.wsgi).simulate_get("/v1/models", headers=headers).status_code

    def open_keys() -> list[str]:
        return [key for key in ("one", "two", "three", "fixed", "") if status(key) == 200]

    assert open_keys() == ["one", "fixed"]
    file.write_bytes("\ufefftwo\nthree\n".encode())
    assert open_keys() == ["two", "three", "fixed"]
    (tmp_path / "new").write_text("one\n")
    os.replace(tmp_path / "new", file)
    assert open_keys() == ["one", "fixed"]
    for spoil in (lambda: file.write_text("# none"), lambda: file.write_bytes(b"\xff"), file.unlink, file.mkdir):
        spoil()
        assert open_keys() == ["one", "fixed"]
    assert len(parts.log.named("the key file cannot be read again; its former keys hold")) == 4
    file.rmdir()
    for mark in "\x0c\x1c\x85\u2028":
        file.write_text(f"one{mark}two\r\nthree", encoding="utf-8")
        assert open_keys() == ["three", "fixed"]
    parts.close()


def test_a_server_with_an_empty_key_file_does_not_start(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("\n")
    with pytest.raises(ValidationError, match="holds no key"):
        Parts(settings=ServerSettings(api_key_file=str(tmp_path / "keys")))
