"""The contract of files of training data, held by every adapter."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from doubles.training_files import InMemoryTrainingFiles

from mlxk.adapters.filesystem.training_files import FilesystemTrainingFiles
from mlxk.application.ports.tuning import TrainingFiles
from mlxk.domain.errors import StorageError, ValidationError

Build = Callable[..., TrainingFiles]
LINE = b'{"text": "a"}\n'


@pytest.fixture(params=["filesystem", "in_memory"])
def build(request: pytest.FixtureRequest, tmp_path: Path) -> Build:
    """Return what makes files by their path below a folder; the paths are absolute."""

    def in_memory(**files: bytes) -> TrainingFiles:
        return InMemoryTrainingFiles({f"{tmp_path}/{_path(name)}": content for name, content in files.items()})

    def on_disk(**files: bytes) -> TrainingFiles:
        for name, content in files.items():
            (tmp_path / _path(name)).parent.mkdir(exist_ok=True)
            (tmp_path / _path(name)).write_bytes(content)
        return FilesystemTrainingFiles()

    return in_memory if request.param == "in_memory" else on_disk


def _path(name: str) -> str:
    return f"{name.replace('__', '/')}.jsonl"


def test_a_file_is_for_training(build: Build, tmp_path: Path) -> None:
    files = build(facts=LINE * 2)
    path = f"{tmp_path}/facts.jsonl"
    assert files.find(path) == {"train": path}
    assert list(files.lines(path, 100)) == [LINE, LINE]


def test_a_folder_has_splits(build: Build, tmp_path: Path) -> None:
    files = build(data__train=LINE, data__valid=LINE, data__other=LINE)
    found = files.find(f"{tmp_path}/data")
    assert found == {split: f"{tmp_path}/data/{split}.jsonl" for split in ("train", "valid")}


def test_what_is_not_there_is_refused_by_name(build: Build, tmp_path: Path) -> None:
    files = build(data__other=LINE)
    for path in (f"{tmp_path}/none.jsonl", f"{tmp_path}/data"):
        with pytest.raises(ValidationError, match=r"^data: "):
            files.find(path)
    with pytest.raises(StorageError):
        list(files.lines(f"{tmp_path}/none.jsonl", 10))


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("", "data: the path is empty"),
        (" ", "data: the path is empty"),
        ("a\0b", "data: the path is empty"),
        ("{place}/none", "data: there is no file '{place}/none'"),
        ("{place}/table.csv", "data: 'table.csv' is no file of JSON lines (.jsonl)"),
        ("{place}/pipe.jsonl", "data: 'pipe.jsonl' is no regular file"),
        ("{place}/folder", "data: 'train.jsonl' is no regular file"),
        ("{place}/loop.jsonl", "data: 'loop.jsonl' cannot be read: Too many levels of symbolic links"),
        ("{place}/loop", "data: 'train.jsonl' cannot be read: Too many levels of symbolic links"),
    ],
)
def test_what_holds_no_lines_of_json_is_refused_with_the_reason(tmp_path: Path, typed: str, said: str) -> None:
    (tmp_path / "table.csv").write_text("a,b")
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "folder" / "train.jsonl").mkdir(parents=True)
    (tmp_path / "loop").mkdir()
    for loop in (tmp_path / "loop.jsonl", tmp_path / "loop" / "train.jsonl"):
        loop.symlink_to(loop)
    with pytest.raises((ValidationError, StorageError)) as caught:
        FilesystemTrainingFiles().find(typed.format(place=tmp_path))
    assert caught.value.message == said.format(place=tmp_path)


@pytest.mark.parametrize("name", ["facts", "facts.txt", "facts.JSON", "facts.ndjson"])
def test_other_usual_endings_are_accepted(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(LINE)
    assert FilesystemTrainingFiles().find(f"{tmp_path}/{name}") == {"train": f"{tmp_path}/{name}"}


def test_an_image_that_cannot_be_read_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "loop.png").symlink_to("loop.png")
    with pytest.raises(ValidationError, match=r"^cannot be read: Too many levels of symbolic links$"):
        FilesystemTrainingFiles().image(f"{tmp_path}/loop.png", 10)


def test_a_long_line_is_cut_and_the_next_one_is_a_line_of_its_own(build: Build, tmp_path: Path) -> None:
    files = build(facts=b"a" * 50 + b"\n" + b"b\n" + b"c" * 50)
    assert list(files.lines(f"{tmp_path}/facts.jsonl", 10)) == [b"a" * 11, b"b\n", b"c" * 11]


def test_an_empty_file_has_no_lines(build: Build, tmp_path: Path) -> None:
    assert list(build(facts=b"").lines(f"{tmp_path}/facts.jsonl", 10)) == []


def test_images_are_read_up_to_a_limit(build: Build, tmp_path: Path) -> None:
    files = build(picture=b"pixels")
    assert files.image(f"{tmp_path}/picture.jsonl", 100) == b"pixels"
    assert files.image(f"{tmp_path}/picture.jsonl", 3) == b"pixe"
    for path in ("none", "", "data"):
        with pytest.raises(ValidationError, match=r"^(there is no such|is no regular) file"):
            files.image(f"{tmp_path}/{path}", 10)
