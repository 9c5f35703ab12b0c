"""The hub cache on a real disk."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mlxk.adapters.filesystem.model_files import FilesystemModelFiles
from mlxk.adapters.huggingface.cache import HuggingFaceModelCache
from mlxk.adapters.huggingface.layout import ModelFolder, publish_snapshot
from mlxk.domain.errors import RevisionNotFoundError, StorageError
from mlxk.domain.hub import DownloadPlan, RemoteModel
from mlxk.domain.models.model import ModelHandle

A, B = "a" * 40, "b" * 40


def snapshot(hub: Path, folder: str, revision: str = A) -> Path:
    place = hub / folder / "snapshots" / revision
    place.mkdir(parents=True)
    return place


def found(hub: Path, name: str, revision: str | None = None) -> ModelHandle:
    handle = HuggingFaceModelCache(str(hub)).find(name, revision)
    assert handle is not None
    return handle


def test_only_directories_of_models_are_names(tmp_path: Path) -> None:
    for folder in ("models--org--m", "models--double--dash--name", "models--bare", "models--TEST-CACHE-SENTINEL--x"):
        snapshot(tmp_path, folder)
    for folder in ("datasets--org--d", "models--", ".locks", "blobs", "models-org-x"):
        (tmp_path / folder).mkdir()
    (tmp_path / "models--afile").write_text("x")
    (tmp_path / "models--linked").symlink_to("models--bare")
    (tmp_path / "models--dangling").symlink_to("nowhere")
    cache = HuggingFaceModelCache(str(tmp_path))
    assert cache.names() == ("bare", "dangling", "double/dash/name", "linked", "org/m")
    assert [cache.find(name) for name in ("TEST-CACHE-SENTINEL/x", "afile", "org--m")] == [None] * 3


component = st.text(st.characters(exclude_characters="/\0", exclude_categories=("Cs",)), min_size=1, max_size=20)


@given(st.lists(component, min_size=1, max_size=4).map("--".join))
def test_every_folder_is_found_under_the_name_it_is_listed_as(
    tmp_path_factory: pytest.TempPathFactory, rest: str
) -> None:
    hub = tmp_path_factory.mktemp("hub", numbered=True)
    folder = f"models--{rest}"
    assume(len(os.fsencode(folder)) <= 255)
    place = snapshot(hub, folder)
    cache = HuggingFaceModelCache(str(hub))
    names = cache.names()
    assert len(names) == (0 if "TEST-CACHE-SENTINEL" in rest else 1)
    for name in names:
        assert found(hub, name).directory == str(place)


@given(name=st.text(max_size=300), revision=st.none() | st.text(max_size=300))
def test_no_name_and_no_revision_reaches_outside_the_cache(
    tmp_path_factory: pytest.TempPathFactory, name: str, revision: str | None
) -> None:
    hub = tmp_path_factory.getbasetemp() / "outside"
    if not hub.exists():
        snapshot(hub, "models--org--m")
    cache = HuggingFaceModelCache(str(hub))
    assert cache.find(name, revision) is None or name == "org/m"
    try:
        handle = cache.find("org/m", revision)
    except RevisionNotFoundError:
        return
    assert handle is not None
    assert handle.revision == A


def test_a_cache_that_is_no_directory_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "hub").write_text("not a directory")
    cache = HuggingFaceModelCache(str(tmp_path / "hub"))
    with pytest.raises(StorageError):
        cache.names()
    with pytest.raises(StorageError):
        cache.find("org/m")


def test_a_cache_that_does_not_exist_is_empty(tmp_path: Path) -> None:
    cache = HuggingFaceModelCache(str(tmp_path / "no" / "hub"))
    assert cache.names() == ()
    assert cache.find("org/m") is None


def test_snapshots_that_are_files_or_hidden_do_not_count(tmp_path: Path) -> None:
    place = snapshot(tmp_path, "models--org--m")
    (place.parent / ".DS_Store").write_text("x")
    (place.parent / ".hidden").mkdir()
    (place.parent / "file").write_text("x")
    (tmp_path / "models--org--none" / "snapshots").mkdir(parents=True)
    (tmp_path / "models--org--file").mkdir()
    (tmp_path / "models--org--file" / "snapshots").write_text("x")
    assert found(tmp_path, "org/m").revision == A
    assert found(tmp_path, "org/none").revision is None
    assert found(tmp_path, "org/file").revision is None
    with pytest.raises(RevisionNotFoundError) as caught:
        HuggingFaceModelCache(str(tmp_path)).find("org/m", ".hidden")
    assert caught.value.matches == (A,)


@pytest.mark.parametrize("content", ["", "\n", "../../../outside", "/etc", ".", "..", "x" * 10_000, "a\0b", "c" * 40])
def test_a_reference_that_points_nowhere_useful_is_ignored(tmp_path: Path, content: str) -> None:
    model = snapshot(tmp_path, "models--org--m").parent.parent
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(content)
    (tmp_path / "outside").mkdir()
    assert found(tmp_path, "org/m").revision == A
    with pytest.raises(RevisionNotFoundError):
        found(tmp_path, "org/m", "main")


def test_a_reference_that_cannot_be_written_leaves_no_temporary_file(tmp_path: Path) -> None:
    folder = ModelFolder(str(tmp_path), "org/m")
    folder.create()
    snapshot(tmp_path, folder.folder_name)
    (tmp_path / folder.folder_name / "refs" / "main").mkdir(parents=True)
    with pytest.raises(OSError):
        publish_snapshot(folder, DownloadPlan(RemoteModel("org/m", A, ()), (), ()), links=True)
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_link_to_a_model_is_removed_even_if_it_was_deleted_meanwhile(tmp_path: Path) -> None:
    snapshot(tmp_path / "elsewhere", "models--org--m")
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "models--org--m").symlink_to(tmp_path / "elsewhere" / "models--org--m")
    cache = HuggingFaceModelCache(str(tmp_path / "hub"))
    removal = cache.plan_removal("org/m")
    assert removal is not None
    cache.remove(removal)
    cache.remove(removal)
    assert cache.find("org/m") is None


def test_a_reference_that_is_a_pipe_does_not_wait(tmp_path: Path) -> None:
    model = snapshot(tmp_path, "models--org--m").parent.parent
    (model / "refs").mkdir()
    os.mkfifo(model / "refs" / "main")
    assert found(tmp_path, "org/m").revision == A


def test_a_reference_may_end_with_a_line_break(tmp_path: Path) -> None:
    model = snapshot(tmp_path, "models--org--m").parent.parent
    snapshot(tmp_path, "models--org--m", B)
    os.utime(model / "snapshots" / A, (1, 1))
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(f"{A}\n")
    assert found(tmp_path, "org/m").revision == A


@pytest.mark.parametrize(
    "manifest",
    [
        "",
        "[]",
        "{}",
        "{nope",
        '{"files": 1}',
        '{"files": []}',
        '{"files": {"a": 1}}',
        '{"files": {"a": {}}}',
        '{"files": {"a": {"size": "1"}}}',
        "[" * 100_000,
    ],
)
def test_a_damaged_manifest_is_no_manifest(tmp_path: Path, manifest: str) -> None:
    model = snapshot(tmp_path, "models--org--m").parent.parent
    (model / "trees").mkdir()
    (model / "trees" / f"{A}.json").write_text(manifest)
    assert HuggingFaceModelCache(str(tmp_path)).manifest(found(tmp_path, "org/m")) is None


def test_the_manifest_prefers_the_digest_of_large_files(tmp_path: Path) -> None:
    model = snapshot(tmp_path, "models--org--m").parent.parent
    (model / "trees").mkdir()
    files = {
        "model.safetensors": {"size": 10, "blob_id": "1" * 40, "lfs_sha256": "2" * 64, "lfs_size": 10},
        "config.json": {"size": 2, "blob_id": "3" * 40},
        "odd": {"size": 1, "blob_id": "../../x"},
    }
    (model / "trees" / f"{A}.json").write_text(json.dumps({"format_version": 1, "files": files}))
    manifest = HuggingFaceModelCache(str(tmp_path)).manifest(found(tmp_path, "org/m"))
    assert manifest is not None
    digests = {entry.path: entry.digest for entry in manifest}
    assert digests == {"config.json": "3" * 40, "model.safetensors": "2" * 64, "odd": None}


CHURN = """
import os, shutil, sys, time
hub, until = sys.argv[1], time.monotonic() + float(sys.argv[2])
while time.monotonic() < until:
    for number in range(8):
        model = f"{hub}/models--org--m{number}"
        commit = f"{number:040x}"
        os.makedirs(f"{model}/refs", exist_ok=True)
        with open(f"{model}/refs/main", "w") as main:
            main.write(commit)
        os.makedirs(f"{model}/blobs", exist_ok=True)
        os.makedirs(f"{model}/snapshots/{commit}/sub", exist_ok=True)
        for file in range(6):
            with open(f"{model}/blobs/{file}", "w") as blob:
                blob.write("x" * 100)
            os.symlink(f"../../blobs/{file}", f"{model}/snapshots/{commit}/file{file}")
    for number in range(8):
        shutil.rmtree(f"{hub}/models--org--m{number}")
"""


def look_at_everything(cache: HuggingFaceModelCache, files: FilesystemModelFiles) -> set[int]:
    """Do what a listing does; returns how many files the models had."""
    seen = set()
    names = cache.names()
    assert "org/stays" in names
    for name in names:
        handle = cache.find(name)
        if handle is None:
            continue
        cache.manifest(handle)
        cache.unfinished_downloads(handle)
        try:
            listing = files.list(handle.directory)
        except StorageError:
            continue
        assert all(entry.size_bytes in {0, 2, 40, 100} for entry in listing.files)
        seen.add(len(listing.files))
    return seen


def test_listing_survives_another_process_that_creates_and_removes_models(tmp_path: Path) -> None:
    cache, files = HuggingFaceModelCache(str(tmp_path)), FilesystemModelFiles()
    snapshot(tmp_path, "models--org--stays").joinpath("config.json").write_text("{}")
    rounds, seen = 0, set()
    with subprocess.Popen([sys.executable, "-c", CHURN, str(tmp_path), "2"]) as other:
        while other.poll() is None:
            seen |= look_at_everything(cache, files)
            rounds += 1
    assert other.returncode == 0
    assert rounds > 10
    assert len(seen) > 1
