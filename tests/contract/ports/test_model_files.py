"""The contract of reading a model's files, held by every adapter."""

import datetime
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from doubles.model_files import InMemoryModelFiles

from mlxk.adapters.filesystem.model_files import FilesystemModelFiles
from mlxk.application.ports.model_directories import ModelFiles
from mlxk.domain.errors import StorageError
from mlxk.domain.models.model import FileEntry

WHEN = datetime.datetime(2026, 3, 4, 5, 6, 7, tzinfo=datetime.UTC)
Build = Callable[..., tuple[ModelFiles, str]]


@pytest.fixture(params=["filesystem", "in_memory"])
def build(request: pytest.FixtureRequest, tmp_path: Path) -> Build:
    def on_disk(files: Mapping[str, bytes], dangling: tuple[str, ...] = ()) -> tuple[ModelFiles, str]:
        model = tmp_path / "model"
        model.mkdir()
        for path, content in files.items():
            (model / path).parent.mkdir(parents=True, exist_ok=True)
            (model / path).write_bytes(content)
        for path in dangling:
            (model / path).symlink_to("../blobs/gone")
        os.utime(model, (WHEN.timestamp(), WHEN.timestamp()))
        return FilesystemModelFiles(), str(model)

    def in_memory(files: Mapping[str, bytes], dangling: tuple[str, ...] = ()) -> tuple[ModelFiles, str]:
        return InMemoryModelFiles({"/model": files}, {"/model": dangling}, WHEN), "/model"

    return on_disk if request.param == "filesystem" else in_memory


class TestModelFiles:
    def test_an_empty_directory_has_no_files(self, build: Build) -> None:
        files, directory = build({})
        assert files.list(directory).files == ()

    def test_files_are_listed_with_their_size_sorted_by_path(self, build: Build) -> None:
        files, directory = build({"sub/deep/b": b"123", "a": b"", "sub.txt": b"12"})
        expected = (FileEntry("a", 0), FileEntry("sub.txt", 2), FileEntry("sub/deep/b", 3))
        assert files.list(directory).files == expected

    def test_links_that_lead_nowhere_are_named(self, build: Build) -> None:
        files, directory = build({"a": b"1"}, ("z.bin", "b.bin"))
        listing = files.list(directory)
        assert listing.dangling == ("b.bin", "z.bin")
        assert listing.files == (FileEntry("a", 1),)

    def test_the_time_of_the_last_change_is_utc(self, build: Build) -> None:
        files, directory = build({"a": b""})
        modified = files.list(directory).modified
        assert modified == WHEN
        assert modified.utcoffset() == datetime.timedelta(0)

    def test_a_directory_that_does_not_exist_is_a_storage_error(self, build: Build) -> None:
        files, directory = build({})
        for missing in (directory + "-gone", "/nowhere/at/all", directory + "\0"):
            with pytest.raises(StorageError):
                files.list(missing)

    def test_reading_returns_the_first_bytes(self, build: Build) -> None:
        files, directory = build({"sub/a": b"0123456789", "empty": b""})
        assert files.read(directory, "sub/a", 4) == b"0123"
        assert files.read(directory, "sub/a", 10) == b"0123456789"
        assert files.read(directory, "sub/a", 1000) == b"0123456789"
        assert files.read(directory, "sub/a", 0) == b""
        assert files.read(directory, "empty", 10) == b""

    def test_reading_the_end_returns_the_last_bytes(self, build: Build) -> None:
        files, directory = build({"sub/a": b"0123456789", "empty": b""})
        assert files.read_end(directory, "sub/a", 4) == b"6789"
        assert files.read_end(directory, "sub/a", 1000) == b"0123456789"
        assert files.read_end(directory, "sub/a", 0) == b""
        assert files.read_end(directory, "empty", 10) == b""

    @pytest.mark.parametrize(
        "path", ["b", "sub", "a/b", "", ".", "..", "../model/a", "sub/../a", "/etc/hostname", "a\0"]
    )
    def test_what_is_no_file_below_the_directory_reads_as_none(self, build: Build, path: str) -> None:
        files, directory = build({"a": b"1", "sub/c": b"2"})
        assert files.read(directory, path, 10) is None
        assert files.read_end(directory, path, 10) is None

    def test_a_directory_that_does_not_exist_reads_as_none(self, build: Build) -> None:
        files, directory = build({"a": b"1"})
        assert files.read(directory + "-gone", "a", 10) is None
