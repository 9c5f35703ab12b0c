"""The contract of workspaces, held by every adapter."""

import json
import os
import posixpath
from collections.abc import Callable, Mapping
from pathlib import Path

import attrs
import pytest
from doubles.model_files import InMemoryModelFiles
from doubles.workspace_store import InMemoryWorkspaceStore

from mlxk.adapters.filesystem.workspaces import FilesystemWorkspaceStore
from mlxk.application.ports.model_directories import CopyMethod, Provenance, WorkspaceStore
from mlxk.domain.errors import LocksPresentError, ValidationError
from mlxk.domain.models.model import SENTINEL_NAME, ModelHandle, Origin, Workspace

MANAGED = Workspace(managed=True, source_repo="org/m", source_revision="a" * 40, operation="clone")
PLAIN = Workspace(managed=False)
CONFIG, WEIGHTS = b'{"model_type": "llama"}', b"weights" * 100
Make = Callable[[bool], WorkspaceStore]


@attrs.frozen
class World:
    """One store, and where its relative paths start."""

    store: WorkspaceStore
    here: str

    def found(self, path: str) -> ModelHandle:
        handle = self.store.at(path)
        assert handle is not None
        return handle


Build = Callable[..., World]


def write(directory: Path, workspace: Workspace) -> None:
    directory.mkdir(parents=True)
    (directory / "config.json").write_text("{}")
    if workspace.managed:
        fields = ("managed", "source_repo", "source_revision", "operation")
        record = {name: getattr(workspace, name) for name in fields}
        (directory / SENTINEL_NAME).write_text(json.dumps(record))


@pytest.fixture(params=["filesystem", "in_memory"])
def build(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Build:
    monkeypatch.chdir(tmp_path)  # relative paths start at the process's working directory; there is no other way
    monkeypatch.setenv("HOME", str(tmp_path))

    def on_disk(workspaces: Mapping[str, Workspace], home: str | None = None) -> World:
        for path, workspace in workspaces.items():
            write(tmp_path / path, workspace)
        return World(FilesystemWorkspaceStore(home and str(tmp_path / home)), os.path.realpath(tmp_path))

    def in_memory(workspaces: Mapping[str, Workspace], home: str | None = None) -> World:
        placed = {posixpath.join("/home/me", path): workspace for path, workspace in workspaces.items()}
        return World(InMemoryWorkspaceStore(placed, home and posixpath.join("/home/me", home)), "/home/me")

    return on_disk if request.param == "filesystem" else in_memory


class TestWorkspaceStore:
    @pytest.mark.parametrize("path", ["./w", "../{here}/w", "~/w", "{absolute}/w", "./w/", "./x/../w"])
    def test_a_workspace_is_found_by_any_spelling_of_its_path(self, build: Build, path: str) -> None:
        world = build({"w": PLAIN})
        handle = world.found(path.format(here=posixpath.basename(world.here), absolute=world.here))
        assert handle.name == handle.directory == f"{world.here}/w"
        assert (handle.origin, handle.revision) == (Origin.WORKSPACE, None)

    def test_a_workspace_is_shown_absolute_only_when_it_was_asked_for_so(self, build: Build) -> None:
        world = build({"sub/w": PLAIN})
        assert world.found("./sub/w").display_name == "w"
        assert world.found(f"{world.here}/sub/w").display_name == f"{world.here}/sub/w"

    @pytest.mark.parametrize("path", ["./nothing", ".", "./w/config.json", "/", "~", "", "./w\0"])
    def test_what_holds_no_config_is_no_workspace(self, build: Build, path: str) -> None:
        assert build({"w": PLAIN}).store.at(path) is None

    def test_the_home_lists_its_workspaces_by_directory_name(self, build: Build) -> None:
        world = build({"home/b": PLAIN, "home/a": MANAGED, "home/deep/er": PLAIN, "other": PLAIN}, home="home")
        assert list(world.store.names()) == ["a", "b"]
        handles = [world.store.find(name) for name in world.store.names()]
        assert [handle and handle.name for handle in handles] == [f"{world.here}/home/a", f"{world.here}/home/b"]
        assert [handle and handle.display_name for handle in handles] == ["a", "b"]

    @pytest.mark.parametrize("home", [None, "nowhere"])
    def test_no_home_lists_nothing(self, build: Build, home: str | None) -> None:
        store = build({"w": PLAIN}, home=home).store
        assert list(store.names()) == []
        assert store.find("w") is None

    @pytest.mark.parametrize(
        ("pattern", "names"),
        [
            ("./gemma-3", ["gemma-3"]),  # a workspace selects itself
            (".", ["emptyish", "gemma-3", "gemma-3n", "qwen"]),  # a directory selects those directly in it
            ("./sub", ["deep"]),
            ("./gemma-", ["gemma-3", "gemma-3n"]),  # anything else is a prefix
            ("./sub/d", ["deep"]),
            ("~/q", ["qwen"]),
            ("./nothing", []),
            ("./no/such/place", []),
            ("./empty", []),  # a directory, though others begin like it
        ],
    )
    def test_a_path_selects_itself_or_its_children_or_by_prefix(
        self, build: Build, pattern: str, names: list[str]
    ) -> None:
        paths = ("qwen", "gemma-3n", "gemma-3", "sub/deep", "empty/x/y", "emptyish")
        world = build(dict.fromkeys(paths, PLAIN))
        assert [handle.display_name for handle in world.store.below(pattern)] == names

    def test_an_absolute_path_selects_with_absolute_names(self, build: Build) -> None:
        world = build({"b": PLAIN, "a": PLAIN})
        for pattern in (world.here, f"{world.here}/"):
            shown = [handle.display_name for handle in world.store.below(pattern)]
            assert shown == [f"{world.here}/a", f"{world.here}/b"]

    def test_a_managed_workspace_tells_its_provenance(self, build: Build) -> None:
        world = build({"w": MANAGED})
        assert world.store.read(world.found("./w")) == MANAGED

    def test_any_other_directory_is_unmanaged(self, build: Build) -> None:
        world = build({"w": PLAIN})
        assert world.store.read(world.found("./w")) == PLAIN
        assert world.store.read(ModelHandle("/gone", "/gone", Origin.WORKSPACE)) == PLAIN

    def test_only_a_managed_workspace_has_a_manifest(self, build: Build) -> None:
        world = build({"w": PLAIN, "m": MANAGED})
        assert world.store.manifest(world.found("./w")) is None
        assert world.store.manifest(world.found("./m")) == ()

    @pytest.mark.parametrize("deep", [False, True])
    def test_recalculating_makes_a_managed_workspace_clean(self, build: Build, deep: bool) -> None:
        world = build({"w": MANAGED})
        handle = world.found("./w")
        state = world.store.recalculate(handle, deep=deep)
        assert state.clean is True
        assert state.content_hash is not None
        assert state.content_hash.startswith("sha256:")
        assert len(state.content_hash) == len("sha256:") + 64
        assert (state.source_repo, state.operation) == ("org/m", "clone")
        assert world.store.read(handle) == state
        again = world.store.recalculate(handle)
        assert again.content_hash == state.content_hash

    def test_an_unmanaged_workspace_cannot_be_recalculated(self, build: Build) -> None:
        world = build({"w": PLAIN})
        with pytest.raises(ValidationError, match="w"):
            world.store.recalculate(world.found("./w"))
        assert world.store.read(world.found("./w")) == PLAIN


def ignore(count: int) -> None:
    """Ignore progress."""


@pytest.fixture(params=["filesystem", "in_memory"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """Return what makes a store, with a home or without, beside a source directory and a protected one."""
    source, home, cache = tmp_path / "source", tmp_path / "home", tmp_path / "cache"
    files = {"config.json": CONFIG, "sub/weights.bin": WEIGHTS}

    def on_disk(has_home: bool) -> WorkspaceStore:
        for directory in (source / "sub", home, cache):
            directory.mkdir(parents=True)
        for path, content in files.items():
            (source / path).write_bytes(content)
        return FilesystemWorkspaceStore(str(home) if has_home else None, (str(cache),))

    def in_memory(has_home: bool) -> WorkspaceStore:
        return InMemoryWorkspaceStore(
            home=str(home) if has_home else None,
            working_directory=str(tmp_path),
            files=InMemoryModelFiles({str(source): files}),
            protected=(str(cache),),
        )

    return on_disk if request.param == "filesystem" else in_memory


def test_a_workspace_appears_whole_with_its_provenance(make: Make, tmp_path: Path) -> None:
    store = make(True)
    place = store.place(None, "tiny")
    assert place == str(tmp_path / "home" / "tiny")
    done: list[int] = []
    with store.draft(place, Provenance("clone", "org/m", "a" * 40), keep_unfinished=True) as draft:
        for path in ("config.json", "sub/weights.bin"):
            assert draft.copy(str(tmp_path / "source"), path, done.append) in {CopyMethod.CLONED, CopyMethod.COPIED}
        draft.write("extra.json", b"{}")
        assert store.at(place) is None
        assert list(store.names()) == []
        handle = draft.publish()
    assert (handle.directory, done[-1]) == (place, len(WEIGHTS))
    workspace = store.read(handle)
    assert (workspace.managed, workspace.operation, workspace.clean) == (True, "clone", True)
    assert (workspace.source_repo, workspace.source_revision) == ("org/m", "a" * 40)


def test_a_failure_leaves_nothing_at_the_place_and_what_was_kept_is_used_again(make: Make, tmp_path: Path) -> None:
    store = make(True)
    place, source = store.place("tiny", "x"), str(tmp_path / "source")
    for expected in (False, True):
        with (
            pytest.raises(KeyboardInterrupt),
            store.draft(place, Provenance("clone", "org/m"), keep_unfinished=True) as draft,
        ):
            kept = draft.copy(source, "sub/weights.bin", ignore) is CopyMethod.KEPT
            assert kept is expected
            raise KeyboardInterrupt
    assert store.at(place) is None
    with store.draft(place, Provenance("clone", "org/other"), keep_unfinished=False) as draft:
        assert draft.copy(source, "sub/weights.bin", ignore) is not CopyMethod.KEPT
    with store.draft(place, Provenance("clone", "org/other"), keep_unfinished=False) as draft:
        assert draft.copy(source, "sub/weights.bin", ignore) is not CopyMethod.KEPT


def test_two_cannot_make_the_same_workspace(make: Make) -> None:
    store = make(True)
    place = store.place("tiny", "x")
    with store.draft(place, Provenance("clone"), keep_unfinished=False), pytest.raises(LocksPresentError):
        store.draft(place, Provenance("clone"), keep_unfinished=False).__enter__()


def test_a_place_that_is_taken_or_in_the_cache_is_refused(make: Make, tmp_path: Path) -> None:
    store = make(True)
    place = store.place("tiny", "x")
    with store.draft(place, Provenance("clone"), keep_unfinished=False) as draft:
        draft.write("config.json", CONFIG)
        draft.publish()
    for target in ("tiny", str(tmp_path / "source"), str(tmp_path / "cache" / "x"), str(tmp_path / "cache"), " "):
        with pytest.raises(ValidationError):
            store.place(target, "x")


def test_without_a_home_a_path_must_be_given(make: Make, tmp_path: Path) -> None:
    store = make(False)
    with pytest.raises(ValidationError):
        store.place(None, "tiny")
    assert store.place(str(tmp_path / "there"), "tiny") == str(tmp_path / "there")
