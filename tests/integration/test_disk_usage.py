"""``mlxk du`` and ``mlxk prune`` on caches with every kind of waste: figures are those of ``du``."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub.models import sharded_model, share_content, small_model
from hub.server import LoopbackHub

Command = Callable[..., dict[str, Any]]
MEGABYTE = 1024 * 1024
ORPHAN, PARTIAL = "e" * 64, "f" * 64 + ".0123abcd.incomplete"


def disk(path: Path) -> int:
    """Return what ``du`` says of a path, in bytes."""
    found = subprocess.run(["du", "-sk", str(path)], check=True, capture_output=True, text=True).stdout
    exact = sum(os.lstat(each).st_blocks * 512 for each in unique_files(path))
    assert abs(int(found.split()[0]) * 1024 - exact) < 1024
    return exact


def unique_files(path: Path) -> list[Path]:
    """Return a path and everything below it, each inode once."""
    return list({(os.lstat(each).st_dev, os.lstat(each).st_ino): each for each in (path, *path.rglob("*"))}.values())


@pytest.fixture
def place(program_environment: dict[str, str]) -> Path:
    return Path(program_environment["HF_HOME"]) / "hub"


@pytest.fixture
def wasteful(hub: LoopbackHub, command: Command, place: Path) -> Path:
    """Return the folder of a model with an old revision, a partial download and an orphaned blob."""
    repository = hub.add("org/m", small_model(MEGABYTE, seed=1))
    old = repository.head()
    command("pull", f"org/m@{old}")
    hub.change(repository, {"config.json": b'{"model_type": "llama", "x": 1}'})
    command("pull", "org/m")
    folder = place / "models--org--m"
    (folder / "blobs" / ORPHAN).write_bytes(b"o" * 50_000)
    (folder / "blobs" / PARTIAL).write_bytes(b"p" * 20_000)
    hub.add("org/clean", sharded_model((100, 200)))
    command("pull", "org/clean")
    half = place / "models--org--half" / "blobs"
    half.mkdir(parents=True)
    (half / PARTIAL).write_bytes(b"h" * 9_000)
    return folder


def models(data: dict[str, Any]) -> dict[str, Any]:
    return {model["model"]: model for model in data["models"]}


def test_figures_are_those_of_du(wasteful: Path, command: Command, place: Path) -> None:
    data = command("du")["data"]
    found = models(data)
    assert list(found) == ["org/clean", "org/half", "org/m"]
    assert data["total_bytes"] == disk(place)
    for name, model in found.items():
        assert model["total_bytes"] == disk(place / f"models--{name.replace('/', '--')}"), name
        assert model["unique_bytes"] == model["total_bytes"]
    model = found["org/m"]
    assert model["orphaned_bytes"] == disk(wasteful / "blobs" / ORPHAN)
    assert model["partial_bytes"] == disk(wasteful / "blobs" / PARTIAL)
    assert [(each["old"], each["references"]) for each in model["revisions"]].count((True, [])) == 1
    weights = {path.resolve() for path in (wasteful / "snapshots").rglob("*.safetensors")}
    assert all(each["shared_bytes"] >= sum(map(disk, weights)) for each in model["revisions"])
    assert command("du", "ORG/H")["data"]["remainder_bytes"] is None


def test_what_prune_frees_is_what_du_says_afterwards(wasteful: Path, command: Command, place: Path) -> None:
    before = {name: disk(place / name) for name in ("models--org--m", "models--org--half")}
    kept = command("show", "org/m", "--files")["data"]
    shown = command("prune", "--dry-run")["data"]
    assert shown["action"] == "dry_run"
    assert command("prune")["error"]["type"] == "requires_confirmation"
    assert {name: disk(place / name) for name in before} == before
    data = command("prune", "--yes")["data"]
    assert {**data, "action": "", "message": ""} == {**shown, "action": "", "message": ""}
    assert (data["action"], data["freed_bytes"]) == ("pruned", sum(before.values()) - disk(wasteful))
    assert not (place / "models--org--half").exists()
    assert command("show", "org/m", "--files")["data"] == kept
    assert command("health", "org/m", "--deep")["data"]["summary"]["unhealthy_count"] == 0
    assert command("prune", "--yes")["data"]["action"] == "nothing"
    assert command("du")["data"]["prunable_bytes"] == 0


@pytest.mark.parametrize("part", ["", "blobs", "snapshots", "refs"])
def test_a_link_to_another_place_is_not_followed(
    wasteful: Path, command: Command, place: Path, tmp_path: Path, part: str
) -> None:
    library = tmp_path / "library"
    source = wasteful / part if part else wasteful
    source.rename(library)
    source.symlink_to(library)
    before = sorted(path.relative_to(library) for path in library.rglob("*"))
    data = command("du")["data"]
    assert data["total_bytes"] == disk(place)
    model = models(data)["org/m"]
    assert model.get("link_to", model.get("linked_parts")) == ([part] if part else str(library))
    pruned = command("prune", "--yes")["data"]
    reason = f"a link to another place ({part})" if part else "a link to another place"
    assert [(each["model"], each["reason"]) for each in pruned["spared"]] == [("org/m", reason)]
    assert sorted(path.relative_to(library) for path in library.rglob("*")) == before
    assert source.is_symlink()


def test_a_link_among_the_blobs_goes_and_not_what_it_leads_to(
    wasteful: Path, command: Command, place: Path, tmp_path: Path
) -> None:
    precious = tmp_path / "precious"
    precious.write_bytes(b"mine" * 10_000)
    link = wasteful / "blobs" / ("d" * 64)
    link.symlink_to(precious)
    assert command("du")["data"]["total_bytes"] == disk(place)
    command("prune", "--yes")
    assert precious.read_bytes() == b"mine" * 10_000
    assert not link.is_symlink()


@pytest.mark.parametrize("lock", ["mlxk.lock", f"{'f' * 64}.lock", "1.mlxk.use"])
def test_what_a_download_or_a_server_holds_is_left_alone(
    wasteful: Path, command: Command, place: Path, lock: str
) -> None:
    path = place / ".locks" / "models--org--m" / lock
    program = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); input()"
    holder = subprocess.Popen(
        ["python3", "-c", program, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    try:
        holder.stdout.readline()
        before = disk(wasteful)
        data = command("prune", "--yes")["data"]
        assert ([each["model"] for each in data["removed"]], [each["model"] for each in data["spared"]]) == (
            ["org/half"],
            ["org/m"],
        )
        assert disk(wasteful) == before
    finally:
        holder.communicate("\n")
    assert [each["model"] for each in command("prune", "--yes")["data"]["removed"]] == ["org/m"]


def test_contents_that_models_share_count_once(command: Command, place: Path) -> None:
    store = share_content(place, b"shared" * 10_000)
    data = command("du")["data"]
    assert data["total_bytes"] == disk(place)
    assert [model["shared_bytes"] for model in data["models"]] == [disk(store), disk(store)]
    assert (data["prunable_bytes"], command("prune", "--yes")["data"]["action"]) == (0, "nothing")


def test_snapshots_of_files_instead_of_links_are_counted_once_and_kept(
    hub: LoopbackHub, command: Command, place: Path
) -> None:
    hub.add("org/m", small_model(MEGABYTE))
    command("pull", "org/m", HF_HUB_DISABLE_SYMLINKS="1")
    data = command("du")["data"]
    assert data["total_bytes"] == disk(place)
    assert data["prunable_bytes"] == 0


def test_a_crash_between_download_and_publication_leaves_waste_that_is_found(
    wasteful: Path, command: Command, place: Path
) -> None:
    staged = wasteful / ".staging" / ("9" * 40)
    staged.mkdir(parents=True)
    (staged / "model.safetensors").symlink_to(f"../../blobs/{ORPHAN}")
    assert models(command("du")["data"])["org/m"]["total_bytes"] == disk(wasteful)
    command("prune", "--yes")
    assert not (wasteful / ".staging").exists()


def test_litter_and_staged_files_are_no_waste_that_stays(wasteful: Path, command: Command, place: Path) -> None:
    (wasteful / "snapshots" / ".DS_Store").write_bytes(b"\0" * 6000)
    staged = wasteful / ".staging" / ("9" * 40)
    staged.mkdir(parents=True)
    (staged / "model.safetensors").write_bytes(b"\0" * 9000)
    assert models(command("du")["data"])["org/m"]["total_bytes"] == disk(wasteful)
    command("prune", "--yes")
    assert not staged.exists()
    assert command("prune", "--yes")["data"]["action"] == "nothing"


def test_an_empty_or_absent_cache_is_no_fault(command: Command, place: Path) -> None:
    empty = {"models": [], "total_bytes": 0, "remainder_bytes": 0, "prunable_bytes": 0}
    assert {**command("du")["data"], "free_bytes": 0} == {**empty, "free_bytes": 0}
    assert command("prune")["data"]["action"] == "nothing"
    assert command("prune", "none")["error"]["type"] == "model_not_found"
    place.mkdir(parents=True)
    assert command("du")["data"]["total_bytes"] == disk(place)


def test_the_tables_are_for_people(wasteful: Path, mlxk: Callable[..., Any], hub_variables: dict[str, str]) -> None:
    printed = mlxk("du", "--revisions").stdout
    names = [line.split("|")[0].strip() for line in printed.splitlines() if line.startswith("org/")]
    assert (names[0], sorted(names)) == ("org/m", ["org/clean", "org/half", "org/m"])
    assert "(1 old)" in printed
    header = [title.strip() for title in printed.splitlines()[0].split("|")]
    assert header == ["Name", "Size", "Unique", "Shared", "Partial", "Orphaned", "Revisions"]
    columns = mlxk("du", "clean").stdout.splitlines()[0].split("|")
    assert [title.strip() for title in columns] == ["Name", "Size", "Unique", "Revisions"]
    assert "mlxk prune" in printed
    shown = mlxk("prune", "--dry-run").stdout
    assert "org/half: a download that was not finished, entirely" in shown
    assert "org/m: 1 partial download\n" in shown
    assert "org/m: 1 file that no revision has" in shown
    refused = mlxk("prune")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "--yes" in refused.stderr
