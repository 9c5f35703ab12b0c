"""Disks of macOS, by fakes of their system calls: names in any case and form, companions of files, clones."""

import ctypes
import errno
import os
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from doubles.model_source import InMemoryModelSource
from hub.models import small_model
from hub.server import LoopbackHub
from macos.disks import as_apfs, with_companions, without_links, without_locks
from models.cached_models import put

from mlxk.adapters.filesystem.workspace_draft import copy_file
from mlxk.adapters.filesystem.workspaces import FilesystemWorkspaceStore
from mlxk.adapters.huggingface.cache import HuggingFaceModelCache
from mlxk.application.ports.model_directories import CopyMethod, Provenance
from mlxk.application.use_cases.resolve_model import ResolveModel
from mlxk.domain.errors import ValidationError

Command = Callable[..., dict[str, Any]]
NAMES = ("Qwen/Qwen3-4B", "mlx-community/Tiny")


@pytest.fixture
def models(tmp_path: Path) -> HuggingFaceModelCache:
    """A cache of two models."""
    for name in NAMES:
        put(tmp_path, name)
    return HuggingFaceModelCache(str(tmp_path / "hf" / "hub"))


def resolver(models: HuggingFaceModelCache, home: Path) -> ResolveModel:
    workspaces = FilesystemWorkspaceStore(str(home))
    return ResolveModel(models, workspaces, InMemoryModelSource(), default_owner="mlx-community")


@pytest.mark.parametrize("typed", ["Qwen/Qwen3-4B", "qwen/qwen3-4b", "QWEN/Qwen3-4B", "tiny", "mlx-community/TINY"])
def test_a_model_is_one_model_however_its_name_is_spelled(
    typed: str, models: HuggingFaceModelCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_apfs(monkeypatch, tmp_path)
    right = next(name for name in NAMES if typed.lower() in name.lower())
    exact = models.find(right)
    assert exact is not None
    assert exact.name == right
    assert resolver(models, tmp_path / "none")(typed) == exact
    assert models.find(typed) in {None, exact}
    assert models.plan_removal(exact.name) is not None


def test_where_case_counts_models_whose_names_differ_in_it_are_two(tmp_path: Path) -> None:
    for name in ("org/model", "ORG/MODEL"):
        put(tmp_path, name)
    models = HuggingFaceModelCache(str(tmp_path / "hf" / "hub"))
    found = [models.find(name) for name in ("org/model", "ORG/MODEL", "Org/Model")]
    assert [each and each.name for each in found] == ["org/model", "ORG/MODEL", None]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("disk", ["apfs", "other"])
def test_a_workspace_is_found_in_whatever_form_its_umlauts_are_stored(
    form: str, disk: str, models: HuggingFaceModelCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    stored = unicodedata.normalize(form, "Übersetzer-é")
    (home / stored).mkdir(parents=True)
    (home / stored / "config.json").write_text("{}")
    if disk == "apfs":
        as_apfs(monkeypatch, tmp_path)
    resolve = resolver(models, home)
    for typed in ("NFC", "NFD"):
        name = unicodedata.normalize(typed, "Übersetzer-é")
        assert resolve(name).display_name == stored
        assert [each.display_name for each in resolve.matching(name[:3])] == [stored]


def test_files_and_their_companions_are_removed_to_the_last(
    models: HuggingFaceModelCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "hf" / "hub" / "models--Qwen--Qwen3-4B"
    with_companions(monkeypatch, folder)
    planned = models.plan_removal("Qwen/Qwen3-4B")
    assert planned is not None
    models.remove(planned)
    assert not folder.exists()


def test_a_companion_of_a_partial_download_is_none(models: HuggingFaceModelCache, tmp_path: Path) -> None:
    blobs = tmp_path / "hf" / "hub" / "models--Qwen--Qwen3-4B" / "blobs"
    blobs.mkdir()
    for name in ("abc.mlxk.incomplete", "._abc.mlxk.incomplete"):
        (blobs / name).touch()
    handle = models.find("Qwen/Qwen3-4B")
    assert handle is not None
    assert models.unfinished_downloads(handle) == 1


def test_a_draft_that_is_begun_anew_is_emptied_of_companions_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    for name in ("config.json", "sub/vocab.txt"):
        (source / name).write_text("{}")
    store = FilesystemWorkspaceStore(str(tmp_path))
    place = store.place("new", "new")
    with pytest.raises(KeyboardInterrupt), store.draft(place, Provenance("clone", "a/b"), keep_unfinished=True) as old:
        for name in ("config.json", "sub/vocab.txt"):
            old.copy(str(source), name, lambda _: None)
        raise KeyboardInterrupt
    with_companions(monkeypatch, Path(old.directory))
    with store.draft(place, Provenance("clone", "a/other"), keep_unfinished=False) as draft:
        draft.write("config.json", b"{}")
        draft.publish()
    assert sorted(os.listdir(place)) == [".mlxk_workspace.json", "config.json"]


class SystemLibrary:
    """``clonefile`` of macOS on one kind of disk; a clone has the content and the flags of its file."""

    def __init__(self, refusal: int = 0) -> None:
        self._refusal = refusal
        self.calls: list[tuple[bytes, bytes, int]] = []

    def clonefile(self, source: bytes, target: bytes, flags: int) -> int:
        self.calls.append((source, target, flags))
        if self._refusal or os.path.exists(target):
            ctypes.set_errno(self._refusal or errno.EEXIST)
            return -1
        Path(os.fsdecode(target)).write_bytes(Path(os.fsdecode(source)).read_bytes())
        return 0


def on_macos(monkeypatch: pytest.MonkeyPatch, library: SystemLibrary) -> list[tuple[Any, ...]]:
    """Be macOS with a library, and return the calls that clear flags."""
    cleared: list[tuple[Any, ...]] = []
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: library)
    monkeypatch.setattr(os, "chflags", lambda *given: cleared.append(given), raising=False)
    return cleared


def test_on_apfs_a_file_is_cloned_through_links_and_can_be_edited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "blob").write_bytes(b"weights")
    (tmp_path / "blob").chmod(0o444)
    (tmp_path / "link").symlink_to("blob")
    (tmp_path / "copy.mlxk-copy").write_bytes(b"left over")
    library = SystemLibrary()
    cleared = on_macos(monkeypatch, library)
    done: list[int] = []
    method = copy_file(str(tmp_path / "link"), str(tmp_path / "copy"), done.append)
    unfinished = f"{tmp_path}/copy.mlxk-copy"
    assert (method, done) == (CopyMethod.CLONED, [7])
    assert library.calls == [(f"{tmp_path}/blob".encode(), unfinished.encode(), 0)]
    assert cleared == [(unfinished, 0)]  # Finder's lock
    assert (tmp_path / "copy").read_bytes() == b"weights"
    assert os.access(tmp_path / "copy", os.W_OK)


@pytest.mark.parametrize("refusal", [errno.ENOTSUP, errno.EXDEV, errno.EINVAL])
def test_where_a_disk_cannot_clone_the_file_is_copied(
    refusal: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"weights")
    on_macos(monkeypatch, SystemLibrary(refusal))
    assert copy_file(str(tmp_path / "file"), str(tmp_path / "copy"), lambda _: None) is CopyMethod.COPIED
    assert (tmp_path / "copy").read_bytes() == b"weights"


def test_a_full_disk_is_no_reason_to_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"weights")
    on_macos(monkeypatch, SystemLibrary(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left"):
        copy_file(str(tmp_path / "file"), str(tmp_path / "copy"), lambda _: None)
    assert os.listdir(tmp_path) == ["file"]


def test_a_drive_without_links_holds_models_as_files(
    hub: LoopbackHub, command: Command, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("org/m", small_model())
    without_links(monkeypatch)
    assert command("pull", "org/m")["status"] == "success"
    (snapshot,) = (cache / "models--org--m" / "snapshots").iterdir()
    assert {path.is_symlink() for path in snapshot.iterdir()} == {False}
    assert command("health", "org/m")["data"]["healthy"]
    assert command("clone", "org/m", "./copy")["status"] == "success"
    assert command("rm", "org/m")["data"]["freed_bytes"] > 0
    assert not (cache / "models--org--m").exists()


@pytest.mark.parametrize("number", [errno.ENOTSUP, errno.ENOLCK])
def test_a_drive_without_locks_takes_models_all_the_same(
    number: int, hub: LoopbackHub, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("org/m", small_model())
    without_locks(monkeypatch, number)
    for words in (("pull", "org/m"), ("clone", "org/m", "./copy"), ("rm", "org/m")):
        done = command(*words)
        assert done["status"] == "success", done


def test_a_workspace_is_one_model_however_its_path_is_spelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "Models" / "Tiny"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    as_apfs(monkeypatch, tmp_path)
    monkeypatch.setattr(sys, "platform", "darwin")
    store = FilesystemWorkspaceStore(protected=(str(tmp_path / "models" / "CACHE"),))
    found = [store.at(f"{tmp_path}/{path}") for path in ("Models/Tiny", "models/tiny", "MODELS/TINY/")]
    assert [each and each.directory for each in found] == [str(folder)] * 3
    (tmp_path / "Models" / "Cache").mkdir()
    with pytest.raises(ValidationError, match="lies in the model cache"):
        store.place(f"{tmp_path}/MODELS/cache/new", "new")


def test_a_folder_that_finder_shows_is_removed_all_the_same(
    models: HuggingFaceModelCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, rmdir = tmp_path / "hf" / "hub" / "models--Qwen--Qwen3-4B", os.rmdir
    written: list[str] = []

    def written_into(path: Any, *, dir_fd: int | None = None) -> None:
        if not written:
            written.append("once")
            (next((folder / "snapshots").iterdir()) / ".DS_Store").touch()
        rmdir(path, dir_fd=dir_fd)

    monkeypatch.setattr(os, "rmdir", written_into)
    planned = models.plan_removal("Qwen/Qwen3-4B")
    assert planned is not None
    models.remove(planned)
    assert written
    assert not folder.exists()


def test_a_drive_without_modes_and_times_takes_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    (tmp_path / "file").write_bytes(b"weights")
    for name in ("chmod", "utime"):
        monkeypatch.setattr(os, name, refuse)
    copy_file(str(tmp_path / "file"), str(tmp_path / "copy"), lambda _: None)
    assert (tmp_path / "copy").read_bytes() == b"weights"
