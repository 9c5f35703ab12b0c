"""The user's own files on a file system that has no hard links."""

import os
from pathlib import Path

import pytest

from mlxk.entrypoints import private_files


@pytest.fixture(autouse=True)
def _without_hard_links(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the kernel refuse hard links, as it does on exFAT."""

    def refuse(source: str, target: str) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)


def test_a_new_file_is_written_where_there_are_no_hard_links(tmp_path: Path) -> None:
    private_files.write(str(tmp_path / "chat.json"), b"new", replace=False)
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == {"chat.json": b"new"}


@pytest.mark.parametrize("is_link", [False, True])
def test_what_is_there_is_not_replaced_where_there_are_no_hard_links(tmp_path: Path, is_link: bool) -> None:
    (tmp_path / "other.json").write_bytes(b"old")
    if is_link:
        (tmp_path / "chat.json").symlink_to("other.json")
    else:
        (tmp_path / "other.json").rename(tmp_path / "chat.json")
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(FileExistsError):
        private_files.write(str(tmp_path / "chat.json"), b"new", replace=False)
    assert (sorted(os.listdir(tmp_path)), (tmp_path / "chat.json").read_bytes()) == (before, b"old")
