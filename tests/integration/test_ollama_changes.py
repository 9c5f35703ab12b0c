"""Models that clients of Ollama's API pull and delete, against the loopback hub, where the operator allows it."""

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import ollama
import pytest
from hub.models import sharded_model, small_model
from hub.server import LoopbackHub
from models.scripted_model import write_model
from serving.ollama import lines_of, stream
from serving.parts import Parts
from serving.running import RunningServer, eventually, read_all, unchunked
from serving.whole_program import WholeProgram

from mlxk.domain.errors import MlxkError
from mlxk.entrypoints.http.ollama.pull import MAX_PULLS
from mlxk.entrypoints.settings import ServerSettings

MEGABYTE = 1024 * 1024

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def served(program_environment: dict[str, str], hub_variables: dict[str, str]) -> Iterator[RunningServer]:
    """Serve a cache that clients may change."""
    variables = {**program_environment, **hub_variables}
    home = Path(variables.pop("HOME"))
    program: Any = WholeProgram(home, ServerSettings(allow_model_changes=True), **variables)
    with RunningServer(program) as running:
        yield running


def listed(served: RunningServer) -> list[str]:
    """Return the names in the listing that are not built in."""
    names = [each["name"] for each in served.get("/api/tags")[2]["models"]]
    return [name for name in names if not name.startswith("demo")]


def pulled(served: RunningServer, name: str, **fields: Any) -> list[dict[str, Any]]:
    """Pull a model; return the lines."""
    return stream(served, "/api/pull", {"model": name, **fields})


def begun_pull(hub: LoopbackHub, served: RunningServer, cache: Path) -> socket.socket:
    """Return the connection of a slow pull of which a part has arrived."""
    hub.add("org/m", small_model(8 * MEGABYTE))
    hub.fault("/cdn/", rate=2 * MEGABYTE)
    connection = served.raw("/api/pull", {"model": "org/m"})
    assert eventually(lambda: bool(partial(cache)))
    return connection


def delete(served: RunningServer, name: str, field: str = "model") -> tuple[int, Any]:
    """Delete a model; return status and body."""
    headers = {"Content-Type": "application/json"}
    status, _, body = served.request("DELETE", "/api/delete", json.dumps({field: name}).encode(), headers)
    return status, body


def test_a_pull_reports_the_bytes_of_every_file(hub: LoopbackHub, served: RunningServer) -> None:
    repository = hub.add("org/m", sharded_model((MEGABYTE, 2 * MEGABYTE)))
    hub.fault("/cdn/", rate=4 * MEGABYTE)
    lines = pulled(served, "org/m:latest")
    assert [line["status"] for line in (lines[0], *lines[-3:])] == [
        "pulling manifest",
        "verifying sha256 digest",
        "writing manifest",
        "success",
    ]
    files = {entry["digest"]: entry for entry in lines if "digest" in entry}
    sizes = sorted(len(content) for path, content in hub.contents("org/m").items() if path != ".gitattributes")
    assert sorted(entry["total"] for entry in files.values()) == sizes
    assert all(entry["completed"] == entry["total"] for entry in files.values())
    assert all(entry["status"] == f"pulling {entry['digest'].partition(':')[2][:12]}" for entry in files.values())
    for digest in files:
        counts = [line.get("completed", 0) for line in lines if line.get("digest") == digest]
        assert counts == sorted(counts)
        assert counts[0] == 0
    assert listed(served) == ["org/m:latest"]
    assert served.post("/api/show", {"model": "org/m"})[0] == 200
    assert pulled(served, f"org/m:{repository.head()}")[-1] == {"status": "success"}


def test_the_sdk_pulls_and_deletes(hub: LoopbackHub, served: RunningServer) -> None:
    hub.add("mlx-community/tiny", small_model(MEGABYTE))
    client = ollama.Client(host=served.url)
    assert client.pull("tiny").status == "success"
    assert [model.model for model in client.list().models if "demo" not in str(model.model)] == [
        "mlx-community/tiny:latest"
    ]
    assert [part.status for part in client.pull("hf.co/mlx-community/tiny", stream=True)][-1] == "success"
    assert client.delete("mlx-community/tiny:latest").status == "success"
    assert listed(served) == []
    with pytest.raises(ollama.ResponseError) as failure:
        client.delete("mlx-community/tiny")
    assert (failure.value.status_code, failure.value.error) == (404, "model 'mlx-community/tiny' not found")
    client._client.close()


@pytest.mark.parametrize("streams", [True, False])
def test_what_the_hub_refuses_is_the_error(hub: LoopbackHub, served: RunningServer, streams: bool) -> None:
    hub.add("org/gated", small_model(), gated="manual")
    for name, status, text in (("org/none", 404, "'org/none' is not on the hub"), ("org/gated", 403, "'org/gated'")):
        if streams:
            first, last = pulled(served, name)
            assert first == {"status": "pulling manifest"}
        else:
            found, _, last = served.post("/api/pull", {"name": name, "stream": False})
            assert found == status
        assert list(last) == ["error"]
        assert text in last["error"]
    assert listed(served) == []


def test_a_model_that_is_here_needs_no_hub(hub: LoopbackHub, served: RunningServer) -> None:
    hub.add("org/m", small_model())
    pulled(served, "org/m")
    hub.fault("", times=-1, status=503)
    assert pulled(served, "org/m")[-1] == {"status": "success"}
    assert pulled(served, "demo")[-1] == {"status": "success"}
    assert "error" in pulled(served, "org/other")[-1]


def test_a_client_that_leaves_ends_its_pull_and_what_arrived_is_kept(
    hub: LoopbackHub, served: RunningServer, cache: Path
) -> None:
    connection = begun_pull(hub, served, cache)
    connection.close()
    program: Any = served.parts
    assert eventually(lambda: len(program.log.named("a pull was interrupted: its client has gone")) == 1)
    assert partial(cache)
    hub.heal()
    assert pulled(served, "org/m")[-1] == {"status": "success"}


def test_a_server_that_stops_ends_its_pulls_and_what_arrived_is_kept(
    hub: LoopbackHub, served: RunningServer, cache: Path
) -> None:
    connection = begun_pull(hub, served, cache)
    for _ in range(2):
        served.hurry()
    body = unchunked(read_all(connection).partition(b"\r\n\r\n")[2])
    assert lines_of("/api/pull", body)[-1] == {"error": "The server is shutting down; what arrived is kept."}
    assert partial(cache)
    assert listed_here(cache) == []


def listed_here(cache: Path) -> list[Path]:
    """Return the snapshots that have their weights."""
    return list(cache.rglob("model.safetensors"))


def test_a_pull_that_meets_a_fault_of_ours_says_so_and_gives_its_place_to_the_next() -> None:
    parts = Parts(settings=ServerSettings(allow_model_changes=True))
    with RunningServer(parts) as running:
        for _ in range(MAX_PULLS + 1):
            parts.hub.failure = cast("MlxkError", ZeroDivisionError("secret"))
            first, last = pulled(running, "org/m")
            assert first == {"status": "pulling manifest"}
            assert last == {"error": "The server met an unexpected condition; its log says more."}
        [*_, logged] = parts.log.named("a pull failed unexpectedly")
        assert (logged.level, logged.fields["error"]) == ("error", "ZeroDivisionError")
        assert str(logged.fields["where"]).startswith("InMemoryModelHub._request:")
        assert "secret" not in str(parts.log.events)


def partial(cache: Path) -> list[Path]:
    """Return the files of downloads that have begun."""
    return [path for path in cache.rglob("*.incomplete") if path.stat().st_size > 0]


def test_so_many_pulls_at_a_time(hub: LoopbackHub, served: RunningServer) -> None:
    names = [f"org/slow-{index}" for index in range(MAX_PULLS)]
    for seed, name in enumerate(names):
        hub.add(name, small_model(MEGABYTE, seed))
    hub.fault("/cdn/", rate=MEGABYTE // 8, times=-1)
    connections = [served.raw("/api/pull", {"model": name}) for name in names]
    assert eventually(lambda: len(hub.calls("/cdn/")) == MAX_PULLS)
    status, _, body = served.post("/api/pull", {"model": "org/another"})
    assert (status, list(body)) == (429, ["error"])
    for connection in connections:
        connection.close()
    hub.heal()
    program: Any = served.parts
    assert eventually(lambda: len(program.log.named("a pull was interrupted: its client has gone")) == MAX_PULLS)


@pytest.mark.parametrize(
    ("name", "status", "text"),
    [
        ("m", 400, "'m' is a part of the name of 'org/m'"),
        ("org", 400, "'org' is a part of the name of 'org/m'"),
        ("org/*", 404, "model 'org/*' not found"),
        ("*", 404, "model '*' not found"),
        ("org/none", 404, "model 'org/none' not found"),
        ("org/m:v9", 404, "model 'org/m:v9' not found"),
        ("demo", 409, "'demo' comes with the program and cannot be removed"),
        ("/etc", 404, "model '/etc' not found"),
        ("", 400, "model is required"),
    ],
)
def test_only_a_whole_name_is_deleted(
    hub: LoopbackHub, served: RunningServer, name: str, status: int, text: str
) -> None:
    hub.add("org/m", small_model())
    pulled(served, "org/m")
    found, body = delete(served, name)
    assert (found, list(body)) == (status, ["error"])
    assert body["error"].startswith(text)
    assert listed(served) == ["org/m:latest"]


@pytest.mark.parametrize("field", ["model", "name"])
def test_a_name_is_deleted_in_any_case_of_letters_and_a_revision_by_its_tag(
    hub: LoopbackHub, served: RunningServer, field: str
) -> None:
    repository = hub.add("org/m", small_model())
    first = repository.head()
    pulled(served, f"org/m:{first}")
    hub.change(repository, small_model(seed=2))
    pulled(served, "org/m")
    assert delete(served, f"ORG/M:{first[:9]}", field) == (200, b"")
    assert listed(served) == ["org/m:latest"]
    assert delete(served, "Org/M:Latest", field) == (200, b"")
    assert listed(served) == []


@pytest.mark.mlx
def test_a_model_in_memory_is_unloaded_and_deleted_but_not_while_it_answers(
    hub: LoopbackHub, served: RunningServer, tmp_path: Path
) -> None:
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    write_model(tmp_path / "made", template, "Hello there, my friend.")
    hub.add("org/said", {path.name: path.read_bytes() for path in (tmp_path / "made").iterdir()})
    pulled(served, "org/said")
    endless = {"model": "org/said", "prompt": "x", "raw": True, "format": {"type": "string", "minLength": 9000}}
    connection = served.raw("/api/generate", endless)
    program: Any = served.parts
    assert eventually(lambda: program.running() == 1)
    status, body = delete(served, "org/said")
    assert (status, body["error"]) == (409, "'org/said' answers requests. Delete it once they have ended.")
    connection.close()
    assert eventually(lambda: program.running() == 0)
    assert [each["name"] for each in served.get("/api/ps")[2]["models"]] == ["org/said:latest"]
    assert eventually(lambda: delete(served, "org/said")[0] == 200)
    assert served.get("/api/ps")[2] == {"models": []}
    assert served.post("/api/chat", {"model": "org/said", "messages": []})[0] == 404


def test_without_the_operators_permission_nothing_changes(
    hub: LoopbackHub, command: Callable[..., dict[str, Any]], program_environment: dict[str, str]
) -> None:
    hub.add("org/m", small_model())
    command("pull", "org/m")
    hub.forget()
    variables = {**program_environment, "HF_ENDPOINT": hub.url}
    program: Any = WholeProgram(Path(variables.pop("HOME")), **variables)
    with RunningServer(program) as it:
        for response in (it.post("/api/pull", {"model": "org/m"}), it.post("/api/pull", {})):
            assert response[0] == 403
            assert "--allow-model-changes" in response[2]["error"]
        assert delete(it, "org/m")[0] == 403
        assert listed(it) == ["org/m:latest"]
    assert hub.calls() == []


def test_a_pull_is_answered_line_by_line(hub: LoopbackHub, served: RunningServer) -> None:
    hub.add("org/m", small_model())
    head, _, _ = read_all(served.raw("/api/pull", {"name": "org/m"})).partition(b"\r\n\r\n")
    assert b"application/x-ndjson" in head
    status, headers, body = served.post("/api/pull", {"name": "org/m", "stream": False, "insecure": False, "x": 1})
    assert (status, body, headers["x-mlxk-ignored-fields"]) == (200, {"status": "success"}, "x")
    assert "insecure: is not supported" in served.post("/api/pull", {"model": "a/b", "insecure": True})[2]["error"]
    assert lines_of("/api/pull", b'{"status": "success"}\n')
