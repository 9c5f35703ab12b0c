"""Models that are links to other places: ``rm`` removes the link, and a place that is absent is named."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub.models import small_model
from hub.server import LoopbackHub

Command = Callable[..., dict[str, Any]]
PARTS = ("blobs", "snapshots", "refs", "trees")


@pytest.fixture
def place(program_environment: dict[str, str]) -> Path:
    """Return the cache's directory, which these tests do not leave sound."""
    return Path(program_environment["HF_HOME"]) / "hub"


@pytest.fixture
def pulled(hub: LoopbackHub, command: Command, place: Path) -> Path:
    """Return the folder of a pulled model."""
    hub.add("org/m", small_model())
    command("pull", "org/m")
    return place / "models--org--m"


def contents(directory: Path) -> dict[str, bytes]:
    """Return the files below a directory, links not followed."""
    files = (path for path in directory.rglob("*") if path.is_file() and not path.is_symlink())
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}


def moved(part: Path, target: Path) -> dict[str, bytes]:
    """Move a directory elsewhere, leave a link, and return what it holds."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(part, target)
    part.symlink_to(target)
    return contents(target)


@pytest.mark.parametrize("reference", ["org/m", "org/*", "m"])
def test_of_a_linked_model_only_the_link_is_removed(
    command: Command, pulled: Path, tmp_path: Path, reference: str
) -> None:
    library = tmp_path / "library" / "m"
    before = moved(pulled, library)
    planned = command("rm", reference, "--dry-run", "--force")["data"]
    assert str(library) in planned["message"]
    assert pulled.is_symlink()
    removed = command("rm", reference, "--force")["data"]
    assert (removed["freed_bytes"], removed["removed"][0]["link_to"]) == (0, str(library))
    assert not os.path.lexists(pulled)
    assert contents(library) == before
    assert command("list")["data"]["count"] == command("list")["data"]["count"]
    assert "org/m" not in [model["name"] for model in command("list", "--all")["data"]["models"]]


@pytest.mark.parametrize("part", PARTS)
def test_of_a_linked_part_only_the_link_is_removed(command: Command, pulled: Path, tmp_path: Path, part: str) -> None:
    before = moved(pulled / part, tmp_path / "library" / part)
    removed = command("rm", "org/m")["data"]
    assert removed["removed"][0]["linked_parts"] == [part]
    assert not pulled.exists()
    assert contents(tmp_path / "library" / part) == before


@pytest.mark.parametrize("part", PARTS)
def test_a_revision_is_not_removed_from_another_place(
    hub: LoopbackHub, command: Command, pulled: Path, tmp_path: Path, part: str
) -> None:
    commit = next((pulled / "snapshots").iterdir()).name
    hub.change(next(iter(hub.repositories.values())), {"config.json": b'{"model_type": "llama", "x": 1}'})
    command("pull", "org/m")
    before = moved(pulled / part, tmp_path / "library" / part)
    command("rm", f"org/m@{commit}")
    assert contents(tmp_path / "library" / part) == before


def test_a_revision_of_a_linked_model_is_not_removed(command: Command, pulled: Path, tmp_path: Path) -> None:
    commit = next((pulled / "snapshots").iterdir()).name
    before = moved(pulled, tmp_path / "library")
    assert command("rm", f"org/m@{commit}")["error"]["type"] == "storage_error"
    assert contents(tmp_path / "library") == before


def test_a_linked_snapshot_and_linked_files_leave_the_originals(command: Command, pulled: Path, tmp_path: Path) -> None:
    snapshot = next((pulled / "snapshots").iterdir())
    before = moved(snapshot, tmp_path / "whole")
    (tmp_path / "own").write_bytes(b"mine")
    (tmp_path / "whole" / "linked.json").symlink_to(tmp_path / "own")
    command("rm", "org/m")
    assert contents(tmp_path / "whole") == before
    assert (tmp_path / "own").read_bytes() == b"mine"


def test_a_model_on_a_disk_that_is_not_connected_is_listed_as_such_and_its_link_can_be_removed(
    command: Command, pulled: Path, tmp_path: Path
) -> None:
    moved(pulled, tmp_path / "disk")
    shutil.rmtree(tmp_path / "disk")
    (listed,) = [model for model in command("list", "--all")["data"]["models"] if model["name"] == "org/m"]
    assert (listed["health"], listed["runtime_compatible"]) == ("unhealthy", False)
    assert "is not there" in listed["reason"]
    assert "is not there" in command("health", "org/m")["data"]["unhealthy"][0]["reason"]
    assert "is not there" in command("run", "org/m", "hello")["error"]["message"]
    assert command("show", "org/m")["data"]["model"]["health"] == "unhealthy"
    assert command("rm", "org/m")["data"]["freed_bytes"] == 0
    assert not os.path.lexists(pulled)


def test_a_cache_on_a_disk_that_is_not_connected_is_not_an_empty_one(
    command: Command, pulled: Path, place: Path, tmp_path: Path
) -> None:
    moved(place, tmp_path / "disk")
    shutil.rmtree(tmp_path / "disk")
    for arguments in (["list"], ["show", "org/m"], ["health"]):
        error = command(*arguments)["error"]
        assert (error["type"], "is not there" in error["message"]) == ("storage_error", True), arguments


def test_a_workspace_on_a_disk_that_is_not_connected_is_listed_as_such(command: Command, tmp_path: Path) -> None:
    (tmp_path / "works").mkdir()
    (tmp_path / "works" / "far").symlink_to(tmp_path / "disk" / "far")
    home = str(tmp_path / "works")
    listed = command("list", "--all", MLXK_WORKSPACE_HOME=home)["data"]["models"]
    (found,) = [model for model in listed if model["source"] == "workspace"]
    assert (found["display_name"], found["health"], found["runtime_compatible"]) == ("far", "unhealthy", False)
    assert "is not there" in found["reason"]
    assert "is not there" in command("run", "far", "hello", MLXK_WORKSPACE_HOME=home)["error"]["message"]
    assert command("show", "far", MLXK_WORKSPACE_HOME=home)["data"]["model"]["health"] == "unhealthy"
    assert command("clone", "far", "./made", MLXK_WORKSPACE_HOME=home)["status"] == "error"
    assert not (tmp_path / "made").exists()
