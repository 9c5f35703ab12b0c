"""The contract of making workspaces, held by every adapter."""

from collections.abc import Callable
from pathlib import Path

import pytest
from doubles.model_files import InMemoryModelFiles
from doubles.workspace_builder import InMemoryWorkspaceBuilder
from doubles.workspace_store import InMemoryWorkspaceStore

from mlxk.adapters.filesystem.workspace_builder import FilesystemWorkspaceBuilder
from mlxk.adapters.filesystem.workspaces import FilesystemWorkspaceStore
from mlxk.application.ports.workspace_builder import CopyMethod, Provenance, WorkspaceBuilder
from mlxk.application.ports.workspace_store import WorkspaceStore
from mlxk.domain.errors import LocksPresentError, ValidationError

CONFIG, WEIGHTS = b'{"model_type": "llama"}', b"weights" * 100
Make = Callable[[bool], tuple[WorkspaceBuilder, WorkspaceStore]]


def ignore(count: int) -> None:
    """Listen to nobody."""


@pytest.fixture(params=["filesystem", "in_memory"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    source, home, cache = tmp_path / "source", tmp_path / "home", tmp_path / "cache"
    files = {"config.json": CONFIG, "sub/weights.bin": WEIGHTS}

    def on_disk(has_home: bool) -> tuple[WorkspaceBuilder, WorkspaceStore]:
        for directory in (source / "sub", home, cache):
            directory.mkdir(parents=True)
        for path, content in files.items():
            (source / path).write_bytes(content)
        store = FilesystemWorkspaceStore(str(home) if has_home else None)
        return FilesystemWorkspaceBuilder(store, str(home) if has_home else None, (str(cache),)), store

    def in_memory(has_home: bool) -> tuple[WorkspaceBuilder, WorkspaceStore]:
        listed = InMemoryModelFiles({str(source): files})
        store = InMemoryWorkspaceStore(home=str(home) if has_home else None, working_directory=str(tmp_path))
        builder = InMemoryWorkspaceBuilder(
            store, listed, str(home) if has_home else None, (str(cache),), working_directory=str(tmp_path)
        )
        return builder, store

    return on_disk if request.param == "filesystem" else in_memory


def test_a_workspace_appears_whole_with_its_provenance(make: Make, tmp_path: Path) -> None:
    builder, store = make(True)
    place = builder.place(None, "tiny")
    assert place == str(tmp_path / "home" / "tiny")
    done: list[int] = []
    with builder.draft(place, Provenance("clone", "org/m", "a" * 40), keep_unfinished=True) as draft:
        for path in ("config.json", "sub/weights.bin"):
            assert draft.take(str(tmp_path / "source"), path, done.append) in {CopyMethod.CLONED, CopyMethod.COPIED}
        draft.write("extra.json", b"{}")
        assert store.find(place) is None
        assert [handle.directory for handle in store.home()] == []
        handle = draft.publish()
    assert (handle.directory, done[-1]) == (place, len(WEIGHTS))
    workspace = store.read(handle)
    assert (workspace.managed, workspace.operation, workspace.clean) == (True, "clone", True)
    assert (workspace.source_repo, workspace.source_revision) == ("org/m", "a" * 40)


def test_a_failure_leaves_nothing_at_the_place_and_what_was_kept_is_used_again(make: Make, tmp_path: Path) -> None:
    builder, store = make(True)
    place, source = builder.place("tiny", "x"), str(tmp_path / "source")
    for expected in (False, True):
        with (
            pytest.raises(KeyboardInterrupt),
            builder.draft(place, Provenance("clone", "org/m"), keep_unfinished=True) as draft,
        ):
            kept = draft.take(source, "sub/weights.bin", ignore) is CopyMethod.KEPT
            assert kept is expected
            raise KeyboardInterrupt
    assert store.find(place) is None
    with builder.draft(place, Provenance("clone", "org/other"), keep_unfinished=False) as draft:
        assert draft.take(source, "sub/weights.bin", ignore) is not CopyMethod.KEPT
    with builder.draft(place, Provenance("clone", "org/other"), keep_unfinished=False) as draft:
        assert draft.take(source, "sub/weights.bin", ignore) is not CopyMethod.KEPT


def test_two_cannot_make_the_same_workspace(make: Make) -> None:
    builder, _ = make(True)
    place = builder.place("tiny", "x")
    with builder.draft(place, Provenance("clone"), keep_unfinished=False), pytest.raises(LocksPresentError):
        builder.draft(place, Provenance("clone"), keep_unfinished=False).__enter__()


def test_a_place_that_is_taken_or_in_the_cache_is_refused(make: Make, tmp_path: Path) -> None:
    builder, _ = make(True)
    place = builder.place("tiny", "x")
    with builder.draft(place, Provenance("clone"), keep_unfinished=False) as draft:
        draft.write("config.json", CONFIG)
        draft.publish()
    for target in ("tiny", str(tmp_path / "source"), str(tmp_path / "cache" / "x"), str(tmp_path / "cache"), " "):
        with pytest.raises(ValidationError):
            builder.place(target, "x")


def test_without_a_home_a_path_must_be_given(make: Make, tmp_path: Path) -> None:
    builder, _ = make(False)
    with pytest.raises(ValidationError):
        builder.place(None, "tiny")
    assert builder.place(str(tmp_path / "there"), "tiny") == str(tmp_path / "there")
