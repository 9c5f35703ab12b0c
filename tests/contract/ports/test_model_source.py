"""The contract of a source of models, run on every adapter."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from doubles.model_cache import CachedModel, InMemoryModelCache
from doubles.model_source import InMemoryModelSource
from doubles.workspace_store import InMemoryWorkspaceStore

from mlxk.adapters.builtin import PackagedModelSource
from mlxk.adapters.filesystem.workspaces import FilesystemWorkspaceStore
from mlxk.adapters.huggingface.cache import HuggingFaceModelCache
from mlxk.application.ports.model_cache import ModelSource
from mlxk.domain.models.model import Origin, Workspace

Build = Callable[[Path, Iterable[str]], ModelSource]


def directories(root: Path, names: Iterable[str]) -> str:
    """Make directories with a config, and return where."""
    for name in names:
        (root / name).mkdir()
        (root / name / "config.json").write_text("{}")
    return str(root)


SOURCES: dict[str, tuple[Origin, Build]] = {
    "packaged": (Origin.BUILT_IN, lambda root, names: PackagedModelSource(directories(root, names))),
    "built-in, in memory": (
        Origin.BUILT_IN,
        lambda root, names: InMemoryModelSource({name: f"/built-in/{name}" for name in names}),
    ),
    "workspaces": (Origin.WORKSPACE, lambda root, names: FilesystemWorkspaceStore(directories(root, names))),
    "workspaces, in memory": (
        Origin.WORKSPACE,
        lambda root, names: InMemoryWorkspaceStore(
            {f"/home/me/{name}": Workspace(managed=False) for name in names}, home="/home/me"
        ),
    ),
    "cache": (
        Origin.CACHE,
        lambda root, names: HuggingFaceModelCache(directories(root, [f"models--{name}" for name in names])),
    ),
    "cache, in memory": (Origin.CACHE, lambda root, names: InMemoryModelCache({name: CachedModel() for name in names})),
}


@pytest.mark.parametrize(("origin", "build"), SOURCES.values(), ids=SOURCES)
def test_names_are_sorted(origin: Origin, build: Build, tmp_path: Path) -> None:
    assert list(build(tmp_path, ["b", "a"]).names()) == ["a", "b"]


@pytest.mark.parametrize(("origin", "build"), SOURCES.values(), ids=SOURCES)
def test_a_source_without_models_is_empty(origin: Origin, build: Build, tmp_path: Path) -> None:
    source = build(tmp_path, [])
    assert list(source.names()) == []
    assert source.find("demo") is None


@pytest.mark.parametrize(("origin", "build"), SOURCES.values(), ids=SOURCES)
def test_a_model_is_found_by_its_exact_name(origin: Origin, build: Build, tmp_path: Path) -> None:
    source = build(tmp_path, ["demo", "demo-vision"])
    handle = source.find("demo")
    assert handle is not None
    assert (handle.label, handle.origin, handle.revision) == ("demo", origin, None)
    assert os.path.isabs(handle.directory)
    for other in ("", "dem", "Demo", "demo/", "./demo", "demo/../demo", ".", "..", "demo\0"):
        assert source.find(other) is None


def test_the_packaged_models_are_directories_with_a_config() -> None:
    built_in = PackagedModelSource()
    for name in built_in.names():
        handle = built_in.find(name)
        assert handle is not None
        assert os.path.isfile(os.path.join(handle.directory, "config.json"))


@pytest.mark.parametrize("source", [PackagedModelSource, FilesystemWorkspaceStore, HuggingFaceModelCache])
def test_a_directory_that_does_not_exist_has_no_models(source: Callable[[str], ModelSource], tmp_path: Path) -> None:
    assert list(source(str(tmp_path / "gone")).names()) == []
