"""Guards: which hosts, which web pages, which keys."""

import pytest
from falcon.testing import Result, TestClient
from serving.parts import Parts

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
