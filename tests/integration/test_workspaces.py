"""Workspaces on a real disk: the record, and whether the content still fits it."""

import datetime
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlxk.adapters.filesystem.workspace_record import write_sentinel
from mlxk.adapters.filesystem.workspaces import FilesystemWorkspaceStore
from mlxk.domain.errors import StorageError, ValidationError
from mlxk.domain.models.model import SENTINEL_NAME, ModelHandle, Workspace

WHEN = datetime.datetime(2026, 5, 6, 7, 8, 9, 123456, tzinfo=datetime.UTC)
STORE = FilesystemWorkspaceStore(None, now=lambda: WHEN)
HEADER = b'{"__metadata__": {"format": "mlx"}}'
WEIGHTS = struct.pack("<Q", len(HEADER)) + HEADER + b"tensor data"
CREATED = {
    "mlxk_version": "2.0.8",
    "created_at": "2026-01-02T03:04:05Z",
    "source_repo": "org/m",
    "source_revision": None,
    "managed": True,
    "operation": "convert",
    "mode": "quantize",
    "quantization": {"bits": 4, "group_size": 64},
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A managed workspace whose hash was never recorded."""
    root = tmp_path / "w"
    (root / "sub").mkdir(parents=True)
    (root / "config.json").write_text("{}")
    (root / "sub/vocab.txt").write_text("a b c")
    (root / "model.safetensors").write_bytes(WEIGHTS)
    (root / "link").symlink_to("config.json")
    (root / SENTINEL_NAME).write_text(json.dumps(CREATED))
    return root


def handle(root: Path) -> ModelHandle:
    found = STORE.at(str(root))
    assert found is not None
    return found


def state(root: Path) -> Workspace:
    return STORE.read(handle(root))


def record(root: Path) -> dict[str, Any]:
    fields = json.loads((root / SENTINEL_NAME).read_text())
    assert isinstance(fields, dict)
    return fields


def test_without_a_recorded_hash_nobody_knows_whether_it_is_clean(root: Path) -> None:
    created = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
    assert state(root) == Workspace(managed=True, source_repo="org/m", operation="convert", created=created)


def test_recording_makes_it_clean_and_keeps_what_else_was_known(root: Path) -> None:
    recorded = STORE.recalculate(handle(root))
    assert recorded == state(root)
    assert (recorded.clean, recorded.hash_modified) == (True, WHEN)
    fields = record(root)
    assert {name: fields[name] for name in CREATED} == CREATED
    assert fields["content_hash"] == recorded.content_hash
    assert fields["hash_algorithm"] == "v2"
    assert fields["hash_modified"] == "2026-05-06T07:08:09.123456Z"
    assert [file["path"] for file in fields["file_index"]] == [
        "config.json",
        "link",
        "model.safetensors",
        "sub/vocab.txt",
    ]
    assert set(fields["file_index"][0]) == {"path", "size", "mtime_ns", "sha"}
    assert (fields["file_index"][1]["size"], fields["file_index"][1]["mtime_ns"]) == (0, 0)


def test_a_record_holds_no_absolute_path(root: Path) -> None:
    (root / "absolute").symlink_to(root / "sub")
    STORE.recalculate(handle(root), deep=True)
    assert str(root.parent) not in (root / SENTINEL_NAME).read_text()


def keep_times(path: Path, change: Callable[[Path], object]) -> None:
    before = path.stat()
    change(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES: dict[str, tuple[Callable[[Path], object], bool]] = {
    "nothing": (lambda root: None, True),
    "touched": (lambda root: os.utime(root / "sub/vocab.txt", (1, 1)), True),
    "weights touched": (lambda root: os.utime(root / "model.safetensors", (1, 1)), True),
    "excluded file added": (lambda root: (root / "a.tmp").write_text("x"), True),
    "excluded folder added": (lambda root: (root / ".git").mkdir(), True),
    "empty folder added": (lambda root: (root / "empty").mkdir(), True),
    "grown": (lambda root: (root / "sub/vocab.txt").write_text("a b c d"), False),
    "grown at the same time": (
        lambda root: keep_times(root / "config.json", lambda path: path.write_text("{ }")),
        False,
    ),
    "rewritten": (lambda root: (root / "sub/vocab.txt").write_text("c b a"), False),
    "added": (lambda root: (root / "new").touch(), False),
    "removed": (lambda root: (root / "sub/vocab.txt").unlink(), False),
    "renamed": (lambda root: (root / "sub/vocab.txt").rename(root / "sub/words.txt"), False),
    "link led elsewhere": (lambda root: relink(root / "link", "sub/vocab.txt"), False),
    "link led outside": (lambda root: relink(root / "link", "/etc"), False),
    "link made a file": (lambda root: ((root / "link").unlink(), (root / "link").touch()), False),
    "weights damaged": (lambda root: (root / "model.safetensors").write_bytes(bytes(len(WEIGHTS))), False),
}


def relink(link: Path, target: str) -> None:
    link.unlink()
    link.symlink_to(target)


@pytest.mark.parametrize("change", list(CHANGES))
def test_a_workspace_is_clean_until_something_that_counts_changes(root: Path, change: str) -> None:
    STORE.recalculate(handle(root))
    act, clean = CHANGES[change]
    act(root)
    assert state(root).clean is clean


def test_changed_tensors_are_seen_only_by_a_deep_record(root: Path) -> None:
    changed = WEIGHTS[:-1] + b"!"
    STORE.recalculate(handle(root))
    (root / "model.safetensors").write_bytes(changed)
    assert state(root).clean is True
    (root / "model.safetensors").write_bytes(WEIGHTS)
    deep = STORE.recalculate(handle(root), deep=True)
    (root / "model.safetensors").write_bytes(changed)
    assert state(root).clean is False
    assert state(root).content_hash == deep.content_hash


def test_reading_never_writes(root: Path) -> None:
    STORE.recalculate(handle(root))
    os.utime(root / "sub/vocab.txt", (1, 1))
    before = (root / SENTINEL_NAME).read_bytes(), os.stat(root).st_mtime_ns, os.stat(root / SENTINEL_NAME).st_mtime_ns
    assert state(root).clean is True
    after = (root / SENTINEL_NAME).read_bytes(), os.stat(root).st_mtime_ns, os.stat(root / SENTINEL_NAME).st_mtime_ns
    assert after == before


@pytest.mark.parametrize(
    "sentinel",
    ["", "{nope", "[]", "1", "null", "{}", '{"managed": false}', '{"managed": "yes"}', '{"managed": 1}', "[" * 100_000],
)
def test_a_sentinel_that_does_not_say_managed_is_none(root: Path, sentinel: str) -> None:
    (root / SENTINEL_NAME).write_text(sentinel)
    assert state(root) == Workspace(managed=False)
    assert STORE.manifest(handle(root)) is None


def test_a_sentinel_that_is_no_file_is_none(root: Path) -> None:
    (root / SENTINEL_NAME).unlink()
    os.mkfifo(root / SENTINEL_NAME)
    assert state(root) == Workspace(managed=False)


@pytest.mark.parametrize(
    "fields",
    [
        {"hash_algorithm": "v1"},
        {"hash_algorithm": None},
        {"file_index": None},
        {"file_index": [1]},
        {"file_index": [{"path": "config.json"}]},
        {"content_hash": "sha256:" + "0" * 64},
        {"content_hash": None},
        *({"file_index": [{"path": path, "size": 0, "mtime_ns": 0, "sha": ""}]} for path in ("/a", "../a", "a/../b")),
        *({"file_index": [{"path": path, "size": 0, "mtime_ns": 0, "sha": ""}]} for path in ("a\\b", "a\0", "C:a", "")),
        {"file_index": [{"path": "a", "size": 0, "mtime_ns": 0, "sha": ""}] * 2},
    ],
)
def test_a_record_that_cannot_be_trusted_says_neither_clean_nor_changed(root: Path, fields: dict[str, object]) -> None:
    STORE.recalculate(handle(root))
    (root / SENTINEL_NAME).write_text(json.dumps({**record(root), **fields}))
    assert state(root).managed is True
    assert state(root).clean is None


def test_fields_of_the_wrong_kind_are_left_out(root: Path) -> None:
    odd = {"managed": True, "source_repo": 5, "operation": [], "created_at": "yesterday", "hash_modified": 7}
    (root / SENTINEL_NAME).write_text(json.dumps(odd))
    assert state(root) == Workspace(managed=True)


@pytest.mark.parametrize("text", ["2026-01-02T03:04:05", "2026-01-02T03:04:05Z", "2026-01-02T05:04:05+02:00"])
def test_times_are_read_as_utc(root: Path, text: str) -> None:
    (root / SENTINEL_NAME).write_text(json.dumps({**CREATED, "created_at": text}))
    created = state(root).created
    assert created == datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
    assert created.utcoffset() == datetime.timedelta(0)


def test_what_its_own_record_excludes_does_not_count(root: Path) -> None:
    STORE.recalculate(handle(root))
    fields = record(root)
    (root / SENTINEL_NAME).write_text(json.dumps({**fields, "exclude_patterns": [*fields["exclude_patterns"], "*.md"]}))
    (root / "notes.md").write_text("x")
    assert state(root).clean is True


def test_a_manifest_has_digests_where_they_cover_every_byte(root: Path) -> None:
    STORE.recalculate(handle(root))
    shallow = {entry.path: entry.digest for entry in STORE.manifest(handle(root)) or ()}
    assert list(shallow) == ["config.json", "model.safetensors", "sub/vocab.txt"]
    assert [path for path, digest in shallow.items() if digest is None] == ["model.safetensors"]
    STORE.recalculate(handle(root), deep=True)
    deep = {entry.path: entry.digest for entry in STORE.manifest(handle(root)) or ()}
    assert all(digest and len(digest) == 64 for digest in deep.values())


def test_content_without_a_hash_is_named_and_leaves_the_old_record(root: Path) -> None:
    STORE.recalculate(handle(root))
    before = (root / SENTINEL_NAME).read_bytes()
    (root / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValidationError, match=r"model\.safetensors"):
        STORE.recalculate(handle(root))
    assert (root / SENTINEL_NAME).read_bytes() == before
    assert sorted(path.name for path in root.iterdir()) == sorted(
        ["config.json", "link", "model.safetensors", "sub", SENTINEL_NAME]
    )


def test_a_record_that_cannot_be_written_is_a_storage_error_and_leaves_no_rest(root: Path) -> None:
    (root / f"{SENTINEL_NAME}.{os.getpid()}.tmp").mkdir()
    before = (root / SENTINEL_NAME).read_bytes()
    with pytest.raises(StorageError):
        STORE.recalculate(handle(root))
    assert (root / SENTINEL_NAME).read_bytes() == before


def test_a_record_whose_place_is_taken_is_not_written_and_leaves_no_rest(root: Path) -> None:
    (root / SENTINEL_NAME).unlink()
    (root / SENTINEL_NAME / "mine").mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        write_sentinel(str(root), CREATED)
    assert (root / SENTINEL_NAME / "mine").is_dir()
    assert list(root.glob("*.tmp")) == []


def test_a_link_in_the_place_of_the_record_being_written_is_not_followed(root: Path) -> None:
    (root / f"{SENTINEL_NAME}.{os.getpid()}.tmp").symlink_to("sub/vocab.txt")
    with pytest.raises(StorageError):
        STORE.recalculate(handle(root))
    assert (root / "sub/vocab.txt").read_text() == "a b c"


def test_a_workspace_reached_through_a_link_has_one_identity(root: Path, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to("w")
    alias = STORE.at(str(tmp_path / "alias"))
    assert alias is not None
    assert alias.directory == handle(root).directory
    assert alias.display_name == str(tmp_path / "alias")


def test_a_linked_workspace_of_the_home_is_found_by_its_link_and_by_its_directory(root: Path, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "linked").symlink_to(root)
    store = FilesystemWorkspaceStore(str(tmp_path / "home"))
    assert store.names() == ("linked",)
    for name in ("linked", root.name):
        found = store.find(name)
        assert found is not None
        assert (found.directory, found.label) == (handle(root).directory, "linked")


def test_a_home_that_cannot_be_read_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file")
    with pytest.raises(StorageError):
        FilesystemWorkspaceStore(str(tmp_path / "home")).names()


def test_a_path_no_disk_can_have_finds_nothing(tmp_path: Path) -> None:
    assert STORE.below("./\0") == ()
    for path in ("./" + "x" * 5000, "./" + "x/" * 3000, "./\0"):
        assert STORE.at(path) is None
