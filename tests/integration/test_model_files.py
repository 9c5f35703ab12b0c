"""Model files on a real disk, hostile ones included."""

import os
import socket
from pathlib import Path

import pytest

from mlxk.adapters.filesystem.model_files import FilesystemModelFiles
from mlxk.domain.errors import StorageError
from mlxk.domain.models.model import FileEntry

FILES = FilesystemModelFiles()


def paths(directory: Path) -> list[str]:
    return [entry.path for entry in FILES.list(str(directory)).files]


def test_a_snapshot_shows_the_size_of_the_blobs_it_links_to(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared/xet").write_bytes(b"12345")
    (tmp_path / "blobs/one").write_bytes(b"123")
    (tmp_path / "blobs/two").symlink_to("../shared/xet")
    snapshot = tmp_path / "snapshots" / "main"
    (snapshot / "sub").mkdir(parents=True)
    (snapshot / "a").symlink_to("../../blobs/one")
    (snapshot / "sub/b").symlink_to("../../../blobs/two")
    assert FILES.list(str(snapshot)).files == (FileEntry("a", 3), FileEntry("sub/b", 5))
    assert FILES.read(str(snapshot), "sub/b", 2) == b"12"


def test_links_to_directories_are_not_entered(tmp_path: Path) -> None:
    model = tmp_path / "model"
    (model / "sub").mkdir(parents=True)
    (model / "sub/file").write_text("x")
    (model / "up").symlink_to("..")
    (model / "here").symlink_to(".")
    (model / "sub/loop").symlink_to("../sub")
    (model / "root").symlink_to("/")
    listing = FILES.list(str(model))
    assert listing.files == (FileEntry("sub/file", 1),)
    assert listing.dangling == ()


def test_links_that_chase_each_other_are_dangling(tmp_path: Path) -> None:
    (tmp_path / "itself").symlink_to("itself")
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    (tmp_path / "file").write_text("x")
    (tmp_path / "through").symlink_to("file/below")
    listing = FILES.list(str(tmp_path))
    assert listing.dangling == ("a", "b", "itself", "through")
    assert listing.files == (FileEntry("file", 1),)
    assert FILES.read(str(tmp_path), "itself", 10) is None


def test_what_is_no_regular_file_is_left_out_and_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        (tmp_path / "null").symlink_to("/dev/null")
        (tmp_path / "file").write_text("x")
        assert paths(tmp_path) == ["file"]
    assert FILES.read(str(tmp_path), "config.json", 10) is None
    assert FILES.read(str(tmp_path), "null", 10) is None


def test_a_model_directory_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real/a").write_text("x")
    (tmp_path / "link").symlink_to("real")
    assert paths(tmp_path / "link") == ["a"]


def test_a_model_that_is_a_file_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / ("x" * 300), tmp_path / "file" / "below"):
        with pytest.raises(StorageError):
            FILES.list(str(path))


def test_a_folder_too_deep_to_be_read_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(30):
        os.mkdir("d" * 200, dir_fd=here)
        deeper = os.open("d" * 200, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = deeper
    os.close(os.open("bottom", os.O_CREAT, dir_fd=here))
    os.close(here)
    assert paths(tmp_path) == ["file"]


def test_names_may_hold_anything_a_disk_allows(tmp_path: Path) -> None:
    names = ["a b", "ünïcode", "new\nline", "-rf", "'\"", "e\u0301"]
    for name in names:
        (tmp_path / name).write_text("x")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff")).write_text("x")
    assert paths(tmp_path) == sorted([*names, "\udcff"])
    assert all(FILES.read(str(tmp_path), path, 1) == b"x" for path in paths(tmp_path))


def test_a_name_too_long_reads_as_none(tmp_path: Path) -> None:
    assert FILES.read(str(tmp_path), "x" * 300, 10) is None
    assert FILES.read(str(tmp_path), "x/" * 3000, 10) is None
