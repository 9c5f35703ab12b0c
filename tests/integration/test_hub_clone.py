"""``mlxk clone`` against the loopback hub: from the cache, through a pull, to where it may go."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub.models import small_model
from hub.server import LoopbackHub

Command = Callable[..., dict[str, Any]]


def contents(directory: Path) -> dict[str, bytes]:
    """Return the files of a workspace, its record left out."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and path.name != ".mlxk_workspace.json"
    }


def test_a_model_that_is_not_cached_is_pulled_once_and_cloned(
    hub: LoopbackHub, command: Command, tmp_path: Path
) -> None:
    files = {**small_model(), "sub/folder.json": b"{}"}
    repository = hub.add("org/m", files)
    made = command("clone", "org/m", "./first")["data"]
    assert made["target_dir"] == str(tmp_path / "first")
    assert (made["health"], made["source_revision"]) == ("healthy", repository.head())
    assert contents(tmp_path / "first") == files
    hub.forget()
    assert command("clone", "org/m", "./second")["status"] == "success"
    assert hub.calls() == []
    shown = command("show", "./second")["data"]
    assert shown["model"]["origin"] == "org/m"
    assert shown["model"]["clean"] is True
    record = json.loads((tmp_path / "second" / ".mlxk_workspace.json").read_text())
    assert (record["operation"], record["source_revision"]) == ("clone", repository.head())
    assert str(tmp_path) not in json.dumps(record)


def test_a_revision_and_a_branch_are_cloned_as_they_are(hub: LoopbackHub, command: Command, tmp_path: Path) -> None:
    repository = hub.add("org/m", small_model(seed=1))
    first = repository.head()
    hub.change(repository, small_model(seed=2))
    branch = hub.change(repository, small_model(seed=3), branch="dev")
    assert command("clone", f"org/m@{first}", "./old")["data"]["source_revision"] == first
    assert command("clone", "org/m", "./dev", "--branch", "dev")["data"]["source_revision"] == branch
    assert contents(tmp_path / "old") == small_model(seed=1)
    assert contents(tmp_path / "dev") == small_model(seed=3)


def test_the_workspace_home_takes_bare_names_and_names_the_copy(
    hub: LoopbackHub, command: Command, tmp_path: Path
) -> None:
    hub.add("org/Tiny", small_model())
    home = tmp_path / "workspaces"
    home.mkdir()
    variables = {"MLXK_WORKSPACE_HOME": str(home)}
    assert command("clone", "org/Tiny", **variables)["data"]["target_dir"] == str(home / "Tiny")
    assert command("clone", "org/Tiny", "other", **variables)["data"]["target_dir"] == str(home / "other")
    again = command("clone", "org/Tiny", **variables)["error"]
    assert (again["type"], again["message"]) == (
        "validation_error",
        "target: 'Tiny' already exists and is not empty",
    )
    assert command("clone", "org/Tiny")["error"]["hint"].startswith("Name one, or set MLXK_WORKSPACE_HOME")


@pytest.mark.parametrize("target", ["{cache}/copy", "./no/such/parent", "{cache}/models--org--m/snapshots/copy"])
def test_a_target_in_the_cache_or_nowhere_is_refused_before_anything_is_fetched(
    hub: LoopbackHub, command: Command, program_environment: dict[str, str], tmp_path: Path, target: str
) -> None:
    hub.add("org/m", small_model())
    cache = Path(program_environment["HF_HOME"]) / "hub"
    (cache / "models--org--m" / "snapshots").mkdir(parents=True)
    (tmp_path / "link").symlink_to(cache)
    for path in (str(cache), str(tmp_path / "link")):
        assert command("clone", "org/m", target.format(cache=path))["error"]["type"] == "validation_error"
    assert hub.calls() == []


def test_editing_a_clone_leaves_the_cache_as_it_was(
    hub: LoopbackHub, command: Command, program_environment: dict[str, str], tmp_path: Path
) -> None:
    files = small_model()
    hub.add("org/m", files)
    command("clone", "org/m", "./copy")
    for path in (tmp_path / "copy").iterdir():
        path.write_bytes(b"edited")
    snapshot = next((Path(program_environment["HF_HOME"]) / "hub" / "models--org--m" / "snapshots").iterdir())
    assert contents(snapshot) == files
