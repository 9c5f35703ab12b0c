"""The content hash of a workspace, on real files. The expected digests are computed here from the rule, by hand."""

import hashlib
import json
import os
import struct
from pathlib import Path

import pytest

from mlxk.adapters.filesystem.model_files import (
    MAX_HASHED_BYTES,
    MAX_HEADER_BYTES,
    UnhashableError,
    counted_files,
    digest_of,
    digest_over,
)


def sha(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def digests(root: Path) -> dict[str, str]:
    return {file.path: digest_of(str(root), file) for file in counted_files(str(root))}


def content_hash(root: Path) -> str:
    return digest_over(list(digests(root).items()))


def weights(header: dict[str, object], data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def test_a_small_file_is_hashed_whole(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"{}")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/empty").touch()
    assert digests(tmp_path) == {"config.json": sha(b"{}"), "sub/empty": sha(b"")}


def test_weights_are_hashed_by_their_header(tmp_path: Path) -> None:
    header: dict[str, object] = {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    (tmp_path / "m.safetensors").write_bytes(weights(header, b"12345678"))
    before = digests(tmp_path)
    assert before == {"m.safetensors": sha(json.dumps(header).encode())}
    (tmp_path / "m.safetensors").write_bytes(weights(header, b"87654321"))
    assert digests(tmp_path) == before
    (tmp_path / "m.safetensors").write_bytes(weights({**header, "__metadata__": {}}, b"87654321"))
    assert digests(tmp_path) != before


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"short",
        b"\0" * 20,
        struct.pack("<Q", 10) + b"{}",
        struct.pack("<Q", MAX_HEADER_BYTES + 1) + b"{}",
        b"version https://git-lfs.github.com/spec/v1\n",
    ],
)
def test_weights_without_a_sound_header_have_no_digest(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.safetensors").write_bytes(content)
    with pytest.raises(UnhashableError, match=r"m\.safetensors"):
        digests(tmp_path)


def test_a_very_large_file_is_told_apart_by_name_and_size(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    with open(tmp_path / "sub/big.bin", "wb") as big:
        big.truncate(MAX_HASHED_BYTES + 1)
    assert digests(tmp_path) == {"sub/big.bin": sha(b"big.bin\0%d" % (MAX_HASHED_BYTES + 1))}


def test_a_link_inside_is_hashed_by_its_target_from_the_root(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/file").write_text("x")
    (tmp_path / "sub/link").symlink_to("file")
    (tmp_path / "absolute").symlink_to(tmp_path / "sub/file")
    (tmp_path / "folder").symlink_to("sub")
    (tmp_path / "chain").symlink_to("absolute")
    (tmp_path / "gone").symlink_to("sub/gone")
    found = digests(tmp_path)
    to_file = sha(b"SYMLINK\0sub/file")
    assert found.pop("sub/file") == sha(b"x")
    assert found == {
        "sub/link": to_file,
        "absolute": to_file,
        "chain": to_file,
        "folder": sha(b"SYMLINK\0sub"),
        "gone": sha(b"SYMLINK\0sub/gone"),
    }


@pytest.mark.parametrize("target", ["..", "/etc/hostname", "../elsewhere", "link"])
def test_a_link_out_of_the_workspace_or_to_itself_has_no_digest(tmp_path: Path, target: str) -> None:
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(UnhashableError, match="link"):
        digests(tmp_path)


def test_what_tools_and_systems_leave_behind_does_not_count(tmp_path: Path) -> None:
    names = ("a.tmp", "a.lock", "a.log", "a.bak", ".DS_Store", "._a", "Icon\r", "a~", ".a.swp", ".a.swo", "Thumbs.db")
    for name in (*names, "desktop.ini", ".apdisk"):
        (tmp_path / name).write_text("x")
    for name in (
        ".git", ".github", "__pycache__", ".venv", "venv", "node_modules", ".hf_cache", "System Volume Information",
        ".vscode", ".idea", ".ipynb_checkpoints", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".tox", "$RECYCLE.BIN",
        ".Spotlight-V100", ".Trashes", ".fseventsd", ".TemporaryItems",
    ):  # fmt: skip
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x")
    (tmp_path / ".mlxk_workspace.json").write_text("{}")
    os.mkfifo(tmp_path / "pipe")
    assert digests(tmp_path) == {}


def test_a_name_counts_unless_it_is_excluded_for_its_own_kind(tmp_path: Path) -> None:
    for folder in ("a.tmp", "my.git", "._folder"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "f").write_text("x")
    for name in ("venv", ".git", "A.TMP"):
        (tmp_path / name).write_text("x")
    (tmp_path / "link.tmp").symlink_to("venv")
    assert list(digests(tmp_path)) == ["._folder/f", ".git", "A.TMP", "a.tmp/f", "link.tmp", "my.git/f", "venv"]


def test_paths_are_in_normal_form_and_sorted_by_code_point(tmp_path: Path) -> None:
    for name in ("e\u0301", "z", "Z", "sub-b"):
        (tmp_path / name).write_text("x")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/a").write_text("x")
    assert list(digests(tmp_path)) == ["Z", "sub-b", "sub/a", "z", "\u00e9"]


def test_the_whole_is_the_hash_over_sorted_paths_and_digests(tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(b"2")
    (tmp_path / "a").write_bytes(b"1")
    expected = sha(b"a\0" + sha(b"1").encode() + b"b\0" + sha(b"2").encode())
    assert content_hash(tmp_path) == expected


def test_the_same_content_has_the_same_hash_anywhere(tmp_path: Path) -> None:
    for root in ("one", "two"):
        (tmp_path / root / "sub").mkdir(parents=True)
        (tmp_path / root / "sub/f").write_text("x")
        (tmp_path / root / "config.json").write_text("{}")
    os.utime(tmp_path / "two/config.json", (1, 1))
    assert content_hash(tmp_path / "one") == content_hash(tmp_path / "two")
    (tmp_path / "two/sub/f").write_text("y")
    assert content_hash(tmp_path / "one") != content_hash(tmp_path / "two")


def test_an_empty_workspace_has_the_hash_of_nothing(tmp_path: Path) -> None:
    assert content_hash(tmp_path) == sha(b"")


def test_a_workspace_as_another_tool_recorded_it_has_the_same_hash(tmp_path: Path) -> None:
    """The digest was recorded with mlx-knife 2.0.8 on the same files."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "model.safetensors").write_bytes(weights({"__metadata__": {"format": "mlx"}}, b""))
    (tmp_path / "sub/vocab.txt").write_text("a\nb\n")
    (tmp_path / "tokenizer.json").symlink_to("sub/vocab.txt")
    (tmp_path / "notes.tmp").write_text("not counted")
    assert content_hash(tmp_path) == "sha256:998605801e4738545b693804c773681ad597fa40c47a892bc6560bd06e9dd880"
