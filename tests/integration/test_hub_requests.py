"""What is asked of a hub and what is believed: tokens, pages, proxies, variables, names, and hostile answers."""

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hub.models import sharded_model, small_model
from hub.server import LoopbackHub

Command = Callable[..., dict[str, Any]]
Program = Callable[..., Any]
TOKEN = "hf_" + "S" * 34
COMMIT = "a" * 40


class Answers(BaseHTTPRequestHandler):
    """Gives the answers of its server, by the beginning of the path."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Give the first answer that fits."""
        server: Any = self.server
        server.asked.append((self.path, self.headers.get("Authorization")))
        answer = next((each for part, each in server.answers.items() if part in self.path), {})
        headers: dict[str, str] = {}
        if isinstance(answer, tuple):
            answer, headers = answer
        body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(200)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(body)


class Server(ThreadingHTTPServer):
    """Takes it in silence when a client goes."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing."""


@contextlib.contextmanager
def answering(answers: dict[str, Any]) -> Iterator[Any]:
    """Serve answers on a port of this machine; ``url`` is the address, ``asked`` what was asked."""
    server: Any = Server(("127.0.0.1", 0), Answers)
    server.answers, server.asked = answers, []
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


INFO: dict[str, Any] = {"id": "org/m", "sha": COMMIT, "tags": ["mlx"], "private": False, "gated": False}


def entry(path: object, size: object = 1, **more: object) -> dict[str, object]:
    """Return one file of a listing."""
    return {"type": "file", "path": path, "size": size, "oid": "b" * 40, **more}


@pytest.mark.parametrize(
    "answer",
    [
        [entry("model.safetensors", 3.5)],
        [entry("model.safetensors", "3")],
        [entry("model.safetensors", True)],
        [entry("model.safetensors", None)],
        [entry("model.safetensors", -1)],
        [entry(7)],
        [entry("half\ud800.json")],
        [entry("a.json", oid=5)],
        [entry("a.json", lfs={"oid": [1]})],
        [entry("a.json", lfs=[1])],
        ["model.safetensors"],
        {"error": "none"},
        "text",
        None,
        b"<html>no</html>",
        b"[" * 100_000,
        b"[1" + b"0" * 10_000 + b"]",
        b"\xff\xfe",
    ],
)
def test_a_listing_that_is_none_is_refused_by_name(command: Command, answer: Any) -> None:
    with answering({"/tree/": answer, "/api/models/": INFO}) as server:
        error = command("pull", "org/m", HF_ENDPOINT=server.url)["error"]
    assert (error["type"], "hub" in error["message"]) == ("download_failed", True), error


@pytest.mark.parametrize("answer", [[], None, "x", {}, {"sha": 5}, {"sha": "main"}, b"{", b"[" * 100_000])
def test_a_description_that_is_none_is_refused_by_name(command: Command, answer: Any) -> None:
    with answering({"/api/models/": answer}) as server:
        error = command("pull", "org/m", HF_ENDPOINT=server.url)["error"]
    assert error["type"] == "download_failed", error


def test_odd_facts_about_a_model_do_no_harm(command: Command) -> None:
    odd = {**INFO, "id": 5, "tags": {"mlx": 1}, "library_name": ["x"], "siblings": 3}
    with answering({"/tree/": [], "/api/models/": odd}) as server:
        assert command("pull", "org/m", HF_ENDPOINT=server.url)["error"]["type"] == "incompatible_model"


def test_an_answer_that_does_not_end_is_given_up(command: Command) -> None:
    endless = (b'{"a":"' + b"x" * (33 * 1024 * 1024), {"Content-Length": str(2**40)})
    for answers in ({"/api/models/": endless}, {"/tree/": endless, "/api/models/": INFO}):
        with answering(answers) as server:
            error = command("pull", "org/m", HF_ENDPOINT=server.url)["error"]
        assert (error["type"], "does not end" in error["message"]) == ("download_failed", True)


def test_pages_that_do_not_end_are_given_up(command: Command) -> None:
    pages: dict[str, Any] = {"/api/models/org/m/tree": ([], {}), "/api/models/": INFO}
    with answering(pages) as server:
        itself = f"/api/models/org/m/tree/{COMMIT}?recursive=true&expand=false"
        pages["/api/models/org/m/tree"] = ([], {"Link": f'<{server.url}{itself}>; rel="next"'})
        error = command("pull", "org/m", HF_ENDPOINT=server.url)["error"]
        assert (error["type"], "does not end" in error["message"]) == ("download_failed", True)


@pytest.mark.parametrize("link", ["http://[", "http://127.0.0.1:x/", "//\x7f/"])
def test_a_further_page_without_an_address_is_refused(command: Command, link: str) -> None:
    page = ([entry("a.json")], {"Link": f'<{link}>; rel="next"'})
    with answering({"/tree/": page, "/api/models/": INFO}) as server:
        error = command("pull", "org/m", HF_ENDPOINT=server.url)["error"]
    assert (error["type"], "hub" in error["message"]) == ("download_failed", True), error


def test_the_header_of_an_empty_file_is_not_asked_for(hub: LoopbackHub, command: Command) -> None:
    hub.add("org/m", {**small_model(), "model-copy.safetensors": b""})
    assert command("pull", "org/m", "--dry-run")["status"] == "success"
    assert [call.path.rpartition("/")[2] for call in hub.calls("/resolve/.*safetensors$")] == ["model.safetensors"]


def test_no_page_of_another_host_is_asked_for_and_no_token_leaves_the_endpoint(command: Command) -> None:
    with answering({"": [entry("stolen.json")]}) as other:
        page = ([entry("a.json")], {"Link": f'<{other.url}/elsewhere>; rel="next"'})
        with answering({"/tree/": page, "/api/models/": INFO}) as server:
            error = command("pull", "org/m", HF_ENDPOINT=server.url, HF_TOKEN=TOKEN)["error"]
        assert error["type"] == "download_failed"
        assert other.asked == []


def test_pages_of_a_mirror_stay_with_the_mirror(hub: LoopbackHub, command: Command, cache: Path) -> None:
    hub.add("org/m", sharded_model((2000, 1000, 500)))
    with answering({}) as other:
        hub.page, hub.linked_url = 2, other.url
        command("pull", "org/m", HF_TOKEN="hf_write")
        assert other.asked == []
    assert command("health", "org/m")["data"]["summary"]["healthy_count"] == 1


def test_only_what_a_pull_needs_is_asked_for(
    hub: LoopbackHub, mlxk: Program, hub_variables: dict[str, str], program_environment: dict[str, str]
) -> None:
    hub.add("org/m", small_model())
    assert mlxk("pull", "org/m", HF_ENDPOINT=hub.url).returncode == 0
    assert [call.path for call in hub.calls("agent|telemetry|validate")] == []
    assert not (Path(program_environment["HF_HOME"]) / ".agent_harnesses.json").exists()


@pytest.mark.parametrize("name", ["org/m.git", "m.git", "org/m.git@main"])
def test_an_address_of_git_is_refused_before_any_request(hub: LoopbackHub, command: Command, name: str) -> None:
    for arguments in (["pull", name], ["clone", name, "./x"], ["pull", name, "--dry-run"]):
        error = command(*arguments)["error"]
        assert (error["type"], ".git" in error["message"]) == ("validation_error", True)
    assert hub.calls() == []


def test_names_are_spelled_as_the_hub_spells_them(hub: LoopbackHub, command: Command, cache: Path) -> None:
    repository = hub.add("Org/Tiny-4bit", small_model())
    for spelling in ("org/tiny-4bit", "ORG/TINY-4BIT", "org/TINY-4bit"):
        hub.repositories["models", spelling] = repository
        hub.spellings[spelling] = "Org/Tiny-4bit"
    assert command("pull", "org/tiny-4bit", "--dry-run")["data"]["model"] == "Org/Tiny-4bit"
    assert command("pull", "org/tiny-4bit")["data"]["model"] == "Org/Tiny-4bit"
    assert [folder.name for folder in cache.glob("models--*")] == ["models--Org--Tiny-4bit"]
    fetched = len(hub.calls("/resolve/"))
    assert command("pull", "ORG/TINY-4BIT")["data"]["download_status"] == "already_exists"
    command("clone", "org/TINY-4bit", "./copy")
    assert len(hub.calls("/resolve/")) == fetched
    assert [folder.name for folder in cache.glob("models--*")] == ["models--Org--Tiny-4bit"]


class SocksProxy:
    """A SOCKS 5 proxy without authentication."""

    def __init__(self) -> None:
        self.connections = 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Accept no more."""
        self._socket.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            methods = client.recv(2)[1]
            client.recv(methods)
            client.sendall(b"\x05\x00")
            _, _, _, kind = client.recv(4)
            host = socket.inet_ntoa(client.recv(4)) if kind == 1 else client.recv(client.recv(1)[0]).decode()
            port = int.from_bytes(client.recv(2), "big")
            with socket.create_connection((host, port)) as target:
                self.connections += 1
                client.sendall(b"\x05\x00\x00\x01\x7f\x00\x00\x01\x00\x00")
                back = threading.Thread(target=_copy, args=(target, client), daemon=True)
                back.start()
                _copy(client, target)
                back.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("scheme", ["socks5", "socks5h"])
def test_a_socks_proxy_is_used(hub: LoopbackHub, mlxk: Program, hub_variables: dict[str, str], scheme: str) -> None:
    hub.add("org/m", small_model())
    proxy = SocksProxy()
    try:
        pulled = mlxk("pull", "org/m", "--json", **hub_variables, ALL_PROXY=f"{scheme}://127.0.0.1:{proxy.port}")
    finally:
        proxy.close()
    assert pulled.returncode == 0, pulled.stdout
    assert proxy.connections > 0


@pytest.mark.parametrize("address", ["socks4://127.0.0.1:9", "foo://user:secret@x", "socks://127.0.0.1:9"])
@pytest.mark.parametrize("variable", ["ALL_PROXY", "http_proxy"])
def test_a_proxy_of_an_unknown_kind_is_named_and_its_value_is_not_shown(
    hub: LoopbackHub, mlxk: Program, hub_variables: dict[str, str], variable: str, address: str
) -> None:
    hub.add("org/m", small_model())
    refused = mlxk("pull", "org/m", "--json", **hub_variables, **{variable: address})
    error = json.loads(refused.stdout)["error"]
    assert (error["type"], variable.upper() in error["message"]) == ("validation_error", True), error
    assert "secret" not in refused.stdout + refused.stderr
    assert mlxk("list", "--json", **{variable: address}).returncode == 0


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ({"HUGGINGFACE_HUB_CACHE": "$HOME/old"}, "old"),
        ({"HF_HUB_CACHE": "${HOME}/new", "HUGGINGFACE_HUB_CACHE": "$HOME/old"}, "new"),
        ({"HF_HUB_CACHE": "~/tilde"}, "tilde"),
        ({"HF_HOME": "$HOME/home"}, "home/hub"),
        ({"HF_HOME": "", "XDG_CACHE_HOME": "$HOME/xdg"}, "xdg/huggingface/hub"),
        ({"HF_HUB_CACHE": "$HOME/$UNSET_BY_ALL"}, "$UNSET_BY_ALL"),
    ],
)
def test_the_cache_is_where_the_hub_client_looks_for_it(
    hub: LoopbackHub, command: Command, program_environment: dict[str, str], variables: dict[str, str], place: str
) -> None:
    hub.add("org/m", small_model())
    command("pull", "org/m", **variables)
    assert (Path(program_environment["HOME"]) / place / "models--org--m").is_dir()


@pytest.mark.parametrize("name", ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN"])
def test_a_token_is_read_under_each_of_its_names_and_may_be_kept_back(
    hub: LoopbackHub, command: Command, name: str
) -> None:
    hub.add("org/m", small_model())
    command("pull", "org/m", **{name: "hf_write"})
    assert all(call.headers.get("authorization") for call in hub.calls("/api/"))
    before = len(hub.calls())
    command("pull", "org/m", "--dry-run", HF_HUB_DISABLE_IMPLICIT_TOKEN="1", **{name: "hf_write"})
    assert not any(call.headers.get("authorization") for call in hub.calls()[before:])


def test_variables_of_the_hub_client_are_honoured(hub: LoopbackHub, command: Command, cache: Path) -> None:
    hub.add("org/m", small_model())
    assert command("pull", "org/m", TRANSFORMERS_OFFLINE="1")["error"]["type"] == "network_error"
    assert hub.calls() == []
    command("pull", "org/m", HF_HUB_DISABLE_SYMLINKS="1")
    snapshot = next((cache / "models--org--m" / "snapshots").iterdir())
    assert not [path for path in snapshot.iterdir() if path.is_symlink()]
    assert command("health", "org/m", "--deep")["data"]["summary"]["healthy_count"] == 1


def test_a_disk_that_is_too_small_is_described_in_one_unit(
    hub: LoopbackHub, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    hub.add("org/m", small_model(1_000_000))
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=50_000_000))
    error = command("pull", "org/m")["error"]
    assert error["message"].count(" MB") == 3
    assert error["detail"]["reserve_bytes"] > 0


def test_a_hub_without_xet_takes_a_push(hub: LoopbackHub, mlxk: Program, tmp_path: Path) -> None:
    for path, content in small_model(100_000).items():
        (tmp_path / "work").mkdir(exist_ok=True)
        (tmp_path / "work" / path).write_bytes(content)
    pushed = mlxk("push", "./work", "me/m", "--private", "--create", "--json", HF_ENDPOINT=hub.url, HF_TOKEN="hf_write")
    assert pushed.returncode == 0, pushed.stdout
    assert hub.calls("xet-write-token")
    assert hub.contents("me/m")["model.safetensors"] == small_model(100_000)["model.safetensors"]
