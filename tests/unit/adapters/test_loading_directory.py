"""The directory from which libraries load a model: its own, or one without what does not belong to it."""

import json
import struct
import sys
from pathlib import Path

import pytest

from mlxk.adapters.mlx.loading.model_files import loading_directory, require_regular, weight_bytes, weight_files
from mlxk.domain.models.model import ModelHandle, Origin

HEADER = json.dumps({"w": {"dtype": "F16", "shape": [4], "data_offsets": [0, 8]}}).encode()
WEIGHTS = struct.pack("<Q", len(HEADER)) + HEADER + bytes(8)
LITTER = [".DS_Store", "Thumbs.db", "~$config.json", "._config.json", "config.json:Zone.Identifier", ".nfs00ab12"]


def model(folder: Path, *names: str) -> ModelHandle:
    for name in ("config.json", "chat_template.jinja", "additional_chat_templates/tool_use.jinja", *names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    return ModelHandle("org/model", str(folder), Origin.WORKSPACE)


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


OWN = ["additional_chat_templates/tool_use.jinja", "chat_template.jinja", "config.json", "model.safetensors"]


def test_a_model_without_anything_else_is_loaded_from_its_own_directory(tmp_path: Path) -> None:
    for folder, names in (("plain", ()), ("littered", LITTER)):
        with loading_directory(model(tmp_path / folder, *names)) as directory:
            assert directory == tmp_path / folder


def test_litter_among_the_templates_is_left_out_with_all_other_litter(tmp_path: Path) -> None:
    for number, name in enumerate(("~$tool_use.jinja", "._tool_use.jinja", ".smbdeleteAAA1.jinja")):
        folders = ("__MACOSX/model.safetensors", "lost+found/a.json", "@eaDir/config.json")
        handle = model(tmp_path / str(number), f"additional_chat_templates/{name}", *folders, *LITTER)
        with loading_directory(handle) as directory:
            assert directory != tmp_path / str(number)
            assert files(directory) == OWN
        assert not directory.exists()
        assert (tmp_path / str(number) / "additional_chat_templates" / name).exists()


def test_weights_are_those_in_the_directory_itself_and_no_others(tmp_path: Path) -> None:
    handle = model(tmp_path)
    for name in (
        "~$model.safetensors",
        "._model.safetensors",
        "consolidated.safetensors",
        "sub/model.safetensors",
        "tower/a.safetensors",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(WEIGHTS)
    assert weight_files(handle.directory) == [str(tmp_path / "model.safetensors")]
    assert weight_bytes(handle.directory) == len(WEIGHTS)
    with loading_directory(handle) as directory:
        assert files(directory) == OWN


def test_folders_are_entered_so_deep_and_no_deeper(tmp_path: Path) -> None:
    deep = ["a/1.json", "a/b/2.json", "a/b/c/3.json", "a/b/c/d/4.json"]
    handle = model(tmp_path, *deep, "a/b/c/d/e/5.json", "additional_chat_templates/._x.jinja")
    with loading_directory(handle) as directory:
        assert [path for path in files(directory) if path.startswith("a/")] == deep
    assert [name for name, _ in require_regular(handle) if name.startswith("a/")] == deep


@pytest.mark.skipif(sys.platform != "linux", reason="has no regular file that opens and cannot be read")
def test_a_file_of_weights_that_cannot_be_read_stands_in_nobody_s_way(tmp_path: Path) -> None:
    model(tmp_path)
    (tmp_path / "model-2.safetensors").symlink_to("/proc/self/mem")  # its first page is nobody's
    with pytest.raises(OSError, match="Input/output error"):
        (tmp_path / "model-2.safetensors").read_bytes()
    assert weight_files(str(tmp_path)) == [str(tmp_path / "model.safetensors")]
