"""A model that a server has in memory is not removed under it; one that vanishes costs its own requests only."""

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from models import tiny_models

Program = Callable[..., "subprocess.CompletedProcess[str]"]

pytestmark = pytest.mark.e2e
COMMIT = "1" * 40


def cached(hub: Path, name: str, seed: int) -> Path:
    """Put a runnable model into the cache, with plain files, and return its folder."""
    folder = hub / f"models--{name.replace('/', '--')}"
    tiny_models.build(folder / "snapshots" / COMMIT, seed=seed, max_position_embeddings=200_000)
    (folder / "blobs").mkdir()
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    return folder


@pytest.fixture
def models(program_environment: dict[str, str]) -> dict[str, Path]:
    """Return the folders of two cached models."""
    hub = Path(program_environment["HF_HOME"]) / "hub"
    return {name: cached(hub, name, seed) for seed, name in enumerate(("org/one", "org/two"))}


@pytest.fixture
def serving(
    program_environment: dict[str, str], models: dict[str, Path], tmp_path: Path
) -> "Iterator[tuple[subprocess.Popen[str], int]]":
    """Serve the first model; return the process and its port."""
    with served(program_environment, tmp_path) as server:
        yield server


@contextlib.contextmanager
def served(environment: dict[str, str], folder: Path) -> "Iterator[tuple[subprocess.Popen[str], int]]":
    """Serve the first model; yield the process and its port."""
    process = subprocess.Popen(
        [sys.executable, "-m", "mlxk", "serve", "--port", "0", "--model", "org/one", "--json"],
        env=environment,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    port = json.loads(process.stdout.readline())["data"]["port"]
    yield process, port
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    process.wait(60)
    process.stdout.close()


def endless_answer(port: int, model: str, folder: Path) -> Any:
    """Return the response to a completion that only its client ends."""
    ends = json.loads((folder / "snapshots" / COMMIT / "generation_config.json").read_text())["eos_token_id"]
    bias = dict.fromkeys(map(str, ends), -100)
    body = {"model": model, "prompt": "hi", "stream": True, "max_tokens": 100_000, "logit_bias": bias}
    data = json.dumps(body).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions", data, {"Content-Type": "application/json"}
    )
    return urllib.request.urlopen(request, timeout=100)


def ask(port: int, path: str, model: str | None = None) -> tuple[int, Any]:
    """Return the status and the JSON of an answer; a model is asked for two tokens."""
    body = {"model": model, "max_tokens": 2, "messages": [{"role": "user", "content": "hi"}]}
    data = json.dumps(body).encode() if model else None
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=100) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_a_model_that_a_server_has_in_memory_is_removed_when_the_server_has_let_go_of_it(
    serving: "tuple[subprocess.Popen[str], int]", mlxk: Program, models: dict[str, Path]
) -> None:
    process, port = serving
    assert ask(port, "/v1/chat/completions", "org/one")[0] == 200
    for arguments in (["org/one"], [f"org/one@{COMMIT}"]):
        refused = mlxk("rm", *arguments, "--json")
        error = json.loads(refused.stdout)["error"]
        assert (refused.returncode, error["type"], "serving it" in error["message"]) == (1, "locks_present", True), (
            error
        )
        assert "--force" in error["hint"]
    assert all(folder.exists() for folder in models.values())
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/unload", b"", method="POST")
    urllib.request.urlopen(request, timeout=60).close()
    assert mlxk("rm", "org/one").returncode == 0
    assert not models["org/one"].exists()
    assert ask(port, "/v1/chat/completions", "org/two")[0] == 200
    process.send_signal(signal.SIGKILL)
    process.wait(60)


@pytest.mark.parametrize("reference", ["org/one", "org/o*", f"org/one@{COMMIT}"])
def test_force_has_the_server_unload_the_model(
    serving: "tuple[subprocess.Popen[str], int]", mlxk: Program, models: dict[str, Path], reference: str
) -> None:
    _, port = serving
    assert ask(port, "/v1/chat/completions", "org/one")[0] == 200
    removed = mlxk("rm", reference, "--force")
    assert removed.returncode == 0, removed.stderr
    assert "is unloaded by process" in removed.stderr
    assert not models["org/one"].exists()
    assert ask(port, "/v1/chat/completions", "org/one")[0] == 404
    assert ask(port, "/v1/chat/completions", "org/two")[0] == 200


def test_force_waits_for_an_answer_that_is_being_given(
    serving: "tuple[subprocess.Popen[str], int]", program_environment: dict[str, str], models: dict[str, Path]
) -> None:
    _, port = serving
    with endless_answer(port, "org/one", models["org/one"]) as answer:
        answer.readline()
        removal = subprocess.Popen(
            [sys.executable, "-m", "mlxk", "rm", "org/one", "--force"],
            env=program_environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert removal.stderr is not None
        assert "is unloaded by process" in removal.stderr.readline()
        answer.readline()
        assert models["org/one"].exists()
    assert removal.wait(60) == 0, removal.stderr.read()
    removal.stderr.close()
    assert not models["org/one"].exists()


def test_every_server_that_has_a_model_in_memory_counts(
    serving: "tuple[subprocess.Popen[str], int]", program_environment: dict[str, str], mlxk: Program, tmp_path: Path
) -> None:
    first, _ = serving
    with served(program_environment, tmp_path) as (second, port):
        assert ask(port, "/v1/chat/completions", "org/one")[0] == 200
        both = json.loads(mlxk("rm", "org/one", "--json").stdout)["error"]
        assert len(both["detail"]["processes"]) == 2, both
        second.send_signal(signal.SIGTERM)
        second.wait(60)
        one = json.loads(mlxk("rm", "org/one", "--json").stdout)["error"]
        assert len(one["detail"]["processes"]) == 1, one
    assert first.poll() is None


def test_a_server_that_was_killed_holds_nothing(
    serving: "tuple[subprocess.Popen[str], int]", mlxk: Program, models: dict[str, Path]
) -> None:
    process, port = serving
    assert ask(port, "/v1/chat/completions", "org/one")[0] == 200
    process.send_signal(signal.SIGTERM)
    process.wait(60)
    assert mlxk("rm", "org/one").returncode == 0
    assert not models["org/one"].exists()


def test_a_model_that_vanishes_under_a_server_costs_its_own_requests_only(
    serving: "tuple[subprocess.Popen[str], int]", models: dict[str, Path]
) -> None:
    _, port = serving
    assert ask(port, "/v1/chat/completions", "org/one")[0] == 200
    shutil.rmtree(models["org/one"])
    status, answer = ask(port, "/v1/chat/completions", "org/one")
    assert status in {200, 404}, answer
    status, listed = ask(port, "/v1/models")
    assert (status, "org/two" in [model["id"] for model in listed["data"]]) == (200, True)
    assert ask(port, "/v1/chat/completions", "org/two")[0] == 200
