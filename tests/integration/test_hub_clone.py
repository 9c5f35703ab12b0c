"""``mlxk clone`` against the loopback hub: from the cache, through a pull, to where it may go."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hub.models import small_model
from hub.server import LoopbackHub
from process_limits import largest_file

from mlxk.adapters.filesystem.workspace_draft import NOTE_NAME
from mlxk.adapters.filesystem.workspace_record import write_sentinel
from mlxk.adapters.filesystem.workspaces import FilesystemWorkspaceStore
from mlxk.application.ports.model_directories import Provenance
from mlxk.domain.errors import LocksPresentError, StorageError, ValidationError

Command = Callable[..., dict[str, Any]]

pytestmark = pytest.mark.usefixtures("cache")


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
    hub: LoopbackHub, command: Command, cache: Path, tmp_path: Path, target: str
) -> None:
    hub.add("org/m", small_model())
    for part in ("blobs", "refs", "snapshots"):
        (cache / "models--org--m" / part).mkdir(parents=True)
    (tmp_path / "link").symlink_to(cache)
    for path in (str(cache), str(tmp_path / "link")):
        assert command("clone", "org/m", target.format(cache=path))["error"]["type"] == "validation_error"
    assert hub.calls() == []


def test_editing_a_clone_leaves_the_cache_as_it_was(
    hub: LoopbackHub, command: Command, cache: Path, tmp_path: Path
) -> None:
    files = small_model()
    hub.add("org/m", files)
    command("clone", "org/m", "./copy")
    for path in (tmp_path / "copy").iterdir():
        path.write_bytes(b"edited")
    snapshot = next((cache / "models--org--m" / "snapshots").iterdir())
    assert contents(snapshot) == files


def test_a_model_that_is_not_whole_is_cloned_as_it_is_only_when_told_to(
    hub: LoopbackHub, command: Command, cache: Path, tmp_path: Path
) -> None:
    hub.add("org/m", small_model())
    command("pull", "org/m")
    snapshot = next((cache / "models--org--m" / "snapshots").iterdir())
    (snapshot / "model.safetensors").unlink()
    hub.forget()
    assert command("clone", "org/m", "./copy")["error"]["type"] == "requires_confirmation"
    assert command("clone", "org/m", "./copy", "--no-health-check")["data"]["health"] is None
    assert set(contents(tmp_path / "copy")) == small_model().keys() - {"model.safetensors"}
    refused = command("clone", "./copy", "./again")["error"]
    assert refused["type"] == "model_unhealthy"
    assert list(tmp_path.glob(".*mlxk-draft")) == []
    assert hub.calls() == []


@pytest.mark.parametrize("killed", ["while copying", "before the last step"])
def test_what_a_killed_run_left_of_something_else_is_no_part_of_the_clone(tmp_path: Path, killed: str) -> None:
    store = FilesystemWorkspaceStore()
    source, place = tmp_path / "source", str(tmp_path / "copy")
    source.mkdir()
    for name in ("old.json", "new.json"):
        (source / name).write_text(name)
    with (
        contextlib.suppress(KeyboardInterrupt),
        store.draft(place, Provenance("clone"), keep_unfinished=True) as draft,
    ):
        draft.copy(str(source), "old.json", lambda count: None)
        if killed == "before the last step":
            write_sentinel(draft.directory, {"managed": True, "operation": "clone"})
            (Path(draft.directory) / NOTE_NAME).unlink()
        raise KeyboardInterrupt
    with store.draft(place, Provenance("clone"), keep_unfinished=True) as draft:
        draft.copy(str(source), "new.json", lambda count: None)
        draft.publish()
    assert contents(Path(place)) == {"new.json": b"new.json"}


def test_a_draft_that_another_process_begins_meanwhile_is_left_alone(tmp_path: Path) -> None:
    store = FilesystemWorkspaceStore()
    with store.draft(str(tmp_path / "copy"), Provenance("clone"), keep_unfinished=False) as draft:
        draft.write("config.json", b"{}")
        draft.publish()
        other = Path(draft.directory) / "config.json"
        other.parent.mkdir()
        other.write_bytes(b"{}")
    assert other.exists()


def test_the_directory_one_is_in_is_not_replaced(tmp_path: Path) -> None:
    store = FilesystemWorkspaceStore()
    for target in (".", str(tmp_path)):
        with contextlib.chdir(tmp_path), pytest.raises(ValidationError, match="the directory you are in"):
            store.place(target, "x")


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("", "target: the name is empty"),
        ("a\nb", "target: the name contains a control character"),
        ("file", "target: 'file' exists and is not a directory"),
        ("link", "target: 'link' exists and is not a directory"),
        ("full", "target: 'full' already exists and is not empty"),
        ("none/copy", "target: the parent directory of 'none/copy' does not exist"),
        ("file/copy", "target: the parent directory of 'file/copy' does not exist"),
    ],
)
def test_a_place_that_cannot_be_taken_is_refused_with_the_reason(tmp_path: Path, target: str, said: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "full" / "x").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    with contextlib.chdir(tmp_path), pytest.raises(ValidationError) as caught:
        FilesystemWorkspaceStore().place(target, "x")
    assert caught.value.message == said


@pytest.mark.parametrize("note", [b"{", b"[]", b"null", b"\xff", b"[" * 60_000, b'{"draft_of": "other"}'])
def test_a_draft_whose_note_names_something_else_is_begun_anew(tmp_path: Path, note: bytes) -> None:
    draft = tmp_path / ".copy.mlxk-draft"
    (draft / "sub").mkdir(parents=True)
    for path in ("old.json", "sub/old.json"):
        (draft / path).touch()
    (draft / NOTE_NAME).write_bytes(note)
    with FilesystemWorkspaceStore().draft(str(tmp_path / "copy"), Provenance("clone"), keep_unfinished=True) as begun:
        assert [path.name for path in draft.iterdir()] == [NOTE_NAME]
        begun.write("new.json", b"{}")
        begun.publish()
    assert contents(tmp_path / "copy") == {"new.json": b"{}"}


def test_a_folder_that_is_no_draft_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / ".copy.mlxk-draft").mkdir()
    (tmp_path / ".copy.mlxk-draft" / "mine").touch()
    draft = FilesystemWorkspaceStore().draft(str(tmp_path / "copy"), Provenance("clone"), keep_unfinished=False)
    with pytest.raises(ValidationError, match=r"^target: '\.copy\.mlxk-draft' beside it is in the way$"):
        draft.__enter__()
    assert [path.name for path in (tmp_path / ".copy.mlxk-draft").iterdir()] == ["mine"]


def test_a_draft_that_cannot_be_begun_leaves_nothing(tmp_path: Path) -> None:
    draft = FilesystemWorkspaceStore().draft(str(tmp_path / "copy"), Provenance("clone"), keep_unfinished=False)
    with largest_file(0), pytest.raises(StorageError, match=r"^the workspace cannot be made: File too large$"):
        draft.__enter__()
    assert list(tmp_path.glob(".*")) == []


def test_two_processes_do_not_make_one_workspace(tmp_path: Path) -> None:
    store, place = FilesystemWorkspaceStore(), str(tmp_path / "copy")
    with store.draft(place, Provenance("clone"), keep_unfinished=False) as first:
        with pytest.raises(LocksPresentError, match=r"^another process is making a workspace at the same place$"):
            store.draft(place, Provenance("clone"), keep_unfinished=False).__enter__()
        first.write("a.json", b"{}")
        first.publish()
    assert contents(tmp_path / "copy") == {"a.json": b"{}"}


@pytest.mark.parametrize("taken", ["file", "folder", "part"])
def test_what_is_in_the_place_of_a_workspace_or_of_a_file_meanwhile_stays(tmp_path: Path, taken: str) -> None:
    place = tmp_path / "copy"
    store = FilesystemWorkspaceStore()
    with store.draft(str(place), Provenance("clone"), keep_unfinished=False) as draft:
        draft.write("a.json", b"{}")
        if taken == "part":
            (Path(draft.directory) / "b.json").mkdir()
            with pytest.raises(StorageError, match=r"^the workspace cannot be made: Is a directory \(b\.json\)$"):
                draft.write("b.json", b"{}")
            return
        mine = place if taken == "file" else place / "mine"
        mine.parent.mkdir(exist_ok=True)
        mine.write_text("mine")
        with pytest.raises(StorageError) as caught:
            draft.publish()
    assert mine.read_text() == "mine"
    assert (
        caught.value.message
        == {
            "file": "the workspace cannot be made: Not a directory (.copy.mlxk-draft)",
            "folder": "something else has taken the place of the workspace meanwhile",
        }[taken]
    )


def test_a_home_that_does_not_exist_is_called_by_its_name(command: Command, tmp_path: Path) -> None:
    error = command("clone", "demo", MLXK_WORKSPACE_HOME=str(tmp_path / "none"))["error"]
    assert "MLXK_WORKSPACE_HOME" in error["message"]


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounts a file system")
def test_a_cache_that_may_only_be_read_is_enough_to_clone_from(
    hub: LoopbackHub, command: Command, cache: Path, tmp_path: Path
) -> None:
    hub.add("org/m", small_model())
    hub.add("org/other", small_model())
    command("pull", "org/m")
    with mounted(tmp_path / "mount", "--bind", str(cache)) as mount:
        subprocess.run(["mount", "-o", "remount,bind,ro", mount], check=True)
        variables = {"HF_HUB_CACHE": str(mount)}
        assert command("clone", "org/m", "./copy", **variables)["status"] == "success"
        assert command("pull", "org/m", **variables)["data"]["download_status"] == "already_exists"
        for refused in (command("pull", "org/other", **variables), command("rm", "org/m", **variables)):
            assert (refused["error"]["type"], "Read-only" in refused["error"]["message"]) == ("storage_error", True)
    assert contents(tmp_path / "copy") == small_model()


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounts a file system")
def test_a_full_disk_is_named_and_the_clone_goes_on_when_there_is_space(
    hub: LoopbackHub, command: Command, tmp_path: Path
) -> None:
    files = small_model(3_000_000)
    hub.add("org/m", files)
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=4m", "tmpfs") as disk:
        (disk / "ballast").write_bytes(bytes(2_000_000))
        error = command("clone", "org/m", str(disk / "copy"))["error"]
        assert (error["type"], error["message"]) == ("storage_error", "the disk of the workspace is full")
        assert not (disk / "copy").exists()
        (disk / "ballast").unlink()
        done = command("clone", "org/m", str(disk / "copy"))["data"]
        assert (done["health"], done["kept_files"] > 0) == ("healthy", True)
        assert contents(disk / "copy") == files


@contextlib.contextmanager
def mounted(mount: Path, *what: str) -> Iterator[Path]:
    """Mount a file system for the length of a ``with`` block."""
    mount.mkdir()
    subprocess.run(["mount", *what, mount], check=True)
    try:
        yield mount
    finally:
        subprocess.run(["umount", mount], check=True)
