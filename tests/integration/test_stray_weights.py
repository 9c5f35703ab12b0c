"""Weights that do not belong to a model, and litter of file managers, through the commands."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from hub.models import safetensors, sharded_model, small_model
from hub.server import LoopbackHub
from models import tiny_models

Command = Callable[..., dict[str, Any]]
Model = Callable[[], Path]


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """Make a runnable model of two shards with an index."""
    directory = tmp_path / "model"
    tiny_models.build(directory)
    weights = mx.load(str(directory / "model.safetensors"))
    assert isinstance(weights, dict)
    names = sorted(weights)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for shard, part in shards.items():
        mx.save_safetensors(str(directory / shard), {name: weights[name] for name in part}, metadata={"format": "mlx"})
    (directory / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {name: shard for shard, part in shards.items() for name in part}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


@pytest.fixture
def single(tmp_path: Path) -> Path:
    """Make a runnable model of one weight file."""
    directory = tmp_path / "model"
    tiny_models.build(directory)
    return directory


def zeros_of(directory: Path, path: str) -> None:
    """Add a weight file with all tensors of the model, every one of them zero."""
    weights: dict[str, mx.array] = {}
    for file in directory.glob("model*.safetensors"):
        loaded = mx.load(str(file))
        assert isinstance(loaded, dict)
        weights |= {name: mx.zeros_like(value) for name, value in loaded.items()}
    (directory / path).parent.mkdir(exist_ok=True)
    mx.save_safetensors(str(directory / path), weights, metadata={"format": "mlx"})


def answer(command: Command) -> str:
    """Return what the model says."""
    done = command("run", "./model", "hello", "--max-tokens", "6", "--temperature", "0")
    return str(done["data"]["response"])


COPIES = (
    "model.safetensors",
    "model_fp16.safetensors",
    "modelz.safetensors",
    "model-00001-of-00001.safetensors",
    "consolidated.safetensors",
    "original/model.safetensors",
    "fp16/model-00001-of-00002.safetensors",
)


def test_a_model_is_what_its_index_names(sharded: Path, command: Command) -> None:
    expected, before = answer(command), command("show", "./model")["data"]
    for copy in COPIES:
        zeros_of(sharded, copy)
        assert answer(command) == expected, copy
        after = command("show", "./model")["data"]
        assert after["strays"] == [copy]
        assert after["model"]["size_bytes"] == before["model"]["size_bytes"], copy
        assert after["metadata"]["parameters"] == before["metadata"]["parameters"], copy
        assert after["memory"] == before["memory"], copy
        assert command("health", "./model")["data"]["summary"]["unhealthy_count"] == 0, copy
        (sharded / copy).unlink()


def test_without_an_index_the_plain_name_is_the_model(single: Path, command: Command) -> None:
    expected = answer(command)
    for copy in ("model_fp16.safetensors", "model-4bit.safetensors", "modelz.safetensors"):
        zeros_of(single, copy)
        assert answer(command) == expected, copy
        assert command("show", "./model")["data"]["strays"] == [copy]
        (single / copy).unlink()


def test_adapters_and_other_formats_are_left_out_of_clones_conversions_and_publications(
    sharded: Path, command: Command, tmp_path: Path
) -> None:
    zeros_of(sharded, "model_fp16.safetensors")
    for name in ("adapters.safetensors", "adapter_model.safetensors", "metal/model.bin", "model.gguf"):
        (sharded / name).parent.mkdir(exist_ok=True)
        (sharded / name).write_bytes(safetensors("lora_a", 8))
    strays = sorted(
        ["adapter_model.safetensors", "adapters.safetensors", "metal/model.bin", "model.gguf", "model_fp16.safetensors"]
    )
    assert command("show", "./model")["data"]["strays"] == strays
    command("clone", "./model", "./copy")
    assert "strays" not in command("show", "./copy")["data"]
    command("convert", "./model", "./small", "--quantize", "4")
    command("convert", "./model", "./mended", "--repair-index")
    for made in ("copy", "small", "mended"):
        assert not [path for path in strays if (tmp_path / made / path).exists()], made
    published = command("push", "./model", "me/m", "--private", "--check-only")["data"]
    assert published["left_out_files"] == strays


@pytest.mark.parametrize(
    "litter", ["._model.safetensors", "._config.json", "._tokenizer.json", "__MACOSX/._model.safetensors", "Thumbs.db"]
)
def test_litter_is_invisible(single: Path, command: Command, tmp_path: Path, litter: str) -> None:
    before = command("show", "./model", "--files")["data"]
    (single / litter).parent.mkdir(exist_ok=True)
    (single / litter).write_bytes(b"\0\x05\x16\x07\0\2\0\0Mac OS X        " + b"\0" * 4000)
    assert command("show", "./model", "--files")["data"]["files"] == before["files"]
    assert command("health", "./model")["data"]["summary"]["unhealthy_count"] == 0
    assert answer(command)
    command("clone", "./model", "./copy")
    command("convert", "./model", "./mended", "--repair-index")
    assert not (tmp_path / "copy" / litter).exists()
    assert not (tmp_path / "mended" / litter).exists()
    published = command("push", "./model", "me/m", "--private", "--check-only")["data"]
    assert published["local_files_count"] == len(before["files"])


def test_only_what_the_index_names_is_fetched(hub: LoopbackHub, command: Command, cache: Path) -> None:
    copies = dict.fromkeys((*COPIES, "metal/model.bin", "adapter_model.safetensors"), b"\x01" * 4000)
    hub.add("org/m", {**copies, **sharded_model((2000, 1000)), "._model.safetensors": b"\0" * 4000})
    planned = command("pull", "org/m", "--dry-run")["data"]
    assert [file["path"] for file in planned["files"]] == sorted(sharded_model((2000, 1000)))
    command("pull", "org/m")
    assert command("health", "org/m")["data"]["summary"]["healthy_count"] == 1
    assert "strays" not in command("show", "org/m")["data"]


def test_other_forms_of_one_file_and_modules_of_an_encoder_are_told_apart(hub: LoopbackHub, command: Command) -> None:
    part = {"2_Dense/model.safetensors": safetensors("linear.weight", 8), "2_Dense/config.json": b"{}"}
    hub.add("org/m", {**small_model(), **part, "model.fp16.safetensors": b"\1" * 4000})
    planned = command("pull", "org/m", "--dry-run")["data"]
    assert [file["path"] for file in planned["files"]] == sorted({**small_model(), **part})


FURTHER_COPIES = (
    "pytorch_model.safetensors",
    "consolidated.00.safetensors",
    "weights.safetensors",
    "modelz.safetensors",
    "model-copy.safetensors",
    "model_fp16.safetensors",
    "model (1).safetensors",
    "model-00001-of-00001.safetensors",
    "backup.safetensors",
    "original/model.safetensors",
    "original/consolidated.00.safetensors",
    "metal/model.safetensors",
    "encoder/model.safetensors",
)


@pytest.mark.parametrize("indexed", [True, False])
def test_no_copy_is_fetched_whatever_its_name(hub: LoopbackHub, command: Command, single: Path, indexed: bool) -> None:
    if not indexed:
        (single / "model.safetensors.index.json").unlink()
    for copy in FURTHER_COPIES:
        zeros_of(single, copy)
    files = {str(path.relative_to(single)): path.read_bytes() for path in single.rglob("*") if path.is_file()}
    hub.add("org/m", files)
    expected = sorted(set(files) - set(FURTHER_COPIES))
    planned = command("pull", "org/m", "--dry-run")["data"]
    assert [file["path"] for file in planned["files"]] == expected
    command("pull", "org/m")
    assert command("show", "org/m", "--files")["data"].get("strays") is None
    said = command("run", "org/m", "hello", "--max-tokens", "6", "--temperature", "0")["data"]["response"]
    assert said == answer(command)


def test_without_an_index_a_file_with_further_tensors_is_fetched(
    hub: LoopbackHub, command: Command, single: Path
) -> None:
    weights = mx.load(str(single / "model.safetensors"))
    assert isinstance(weights, dict)
    mx.eval(weights)
    (single / "model.safetensors.index.json").unlink()
    names = sorted(weights)
    for path, part in {"model.safetensors": names[::2], "model_2.safetensors": names[1::2]}.items():
        mx.save_safetensors(str(single / path), {name: weights[name] for name in part}, metadata={"format": "mlx"})
    hub.add("org/m", {path.name: path.read_bytes() for path in single.iterdir()})
    expected = answer(command)
    command("pull", "org/m")
    said = command("run", "org/m", "hello", "--max-tokens", "6", "--temperature", "0")["data"]["response"]
    assert said == expected


@pytest.mark.parametrize("ignored", [False, True])
def test_long_headers_are_read_whole_before_a_download(
    hub: LoopbackHub, command: Command, tmp_path: Path, ignored: bool
) -> None:
    names = [f"model.layers.{number}.self_attn.q_proj.weight" for number in range(2000)]
    files = dict(small_model())
    weights = {name: mx.zeros((1,)) for name in names}
    further = {"further": mx.zeros((1,))}
    for path, part in {"model": weights, "other": weights, "third": further}.items():
        mx.save_safetensors(str(tmp_path / f"{path}.safetensors"), part)
        files[f"{path}.safetensors"] = (tmp_path / f"{path}.safetensors").read_bytes()
    hub.add("org/m", files)
    if ignored:
        hub.fault(r"safetensors$", ignore_range=True, times=100)
    planned = command("pull", "org/m", "--dry-run")["data"]
    assert [file["path"] for file in planned["files"]] == sorted(set(files) - {"other.safetensors"})


def test_no_part_of_a_file_is_asked_for_before_there_is_space(
    hub: LoopbackHub, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=0))
    hub.add("org/m", {**small_model(), "other.safetensors": safetensors("further", 8)})
    assert command("pull", "org/m")["error"]["type"] == "storage_error"
    assert not hub.calls("safetensors")


def test_an_index_of_other_files_hides_nothing(hub: LoopbackHub, command: Command, single: Path) -> None:
    shutil.copy(single / "model.safetensors", single / "weights.safetensors")
    (single / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-00001-of-00009.x"}}))
    assert command("health", "./model")["data"]["summary"]["unhealthy_count"] == 1
    hub.add("org/m", {path.name: path.read_bytes() for path in single.iterdir()})
    planned = command("pull", "org/m", "--dry-run")["data"]
    assert "weights.safetensors" in [file["path"] for file in planned["files"]]
