"""``mlxk convert`` with the MLX libraries: results load and answer, and what is not whole is refused."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from models.pictures import as_png, noise
from models.tiny_models import ARCHITECTURES, build
from models.tiny_vision import ARCHITECTURES as VISION_ARCHITECTURES
from models.tiny_vision import build as build_with_eyes

Command = Callable[..., dict[str, Any]]

pytestmark = pytest.mark.mlx


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """Write a tiny model with a folder of its own files."""
    directory = tmp_path / "llama"
    build(directory)
    (directory / "sub").mkdir()
    (directory / "sub" / "extra.json").write_text("{}")
    (directory / "README.md").write_text("---\nlicense: mit\n---\n")
    return directory


def weights(directory: Path) -> dict[str, mx.array]:
    """Return the tensors of all weight files of a model."""
    found: dict[str, mx.array] = {}
    for path in sorted(directory.glob("*.safetensors")):
        found |= mx.load(str(path))
    return found


def config(directory: Path) -> dict[str, Any]:
    """Return the config of a model."""
    return dict(json.loads((directory / "config.json").read_text()))


def change_config(directory: Path, **entries: object) -> None:
    """Change entries of a model's config."""
    (directory / "config.json").write_text(json.dumps({**config(directory), **entries}))


def shard(directory: Path, count: int = 3) -> list[Path]:
    """Split the weights of a model into files that count themselves, with an index; returns the files."""
    tensors = sorted(weights(directory).items())
    names = [f"model-{number + 1:05d}-of-{count:05d}.safetensors" for number in range(count)]
    parts = [dict(tensors[number::count]) for number in range(count)]
    for name, part in zip(names, parts, strict=True):
        mx.save_safetensors(str(directory / name), part, metadata={"format": "mlx"})
    (directory / "model.safetensors").unlink()
    weight_map = {tensor: name for name, part in zip(names, parts, strict=True) for tensor in part}
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return [directory / name for name in names]


def fingerprint(directory: Path) -> dict[str, str]:
    """Return a digest of everything below a directory, links as links."""
    return {
        str(path.relative_to(directory)): os.readlink(path)
        if path.is_symlink()
        else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if not path.is_dir()
    }


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_a_quantized_model_answers(architecture: str, bits: int, command: Command, tmp_path: Path) -> None:
    build(tmp_path / architecture, architecture)
    made = command("convert", f"./{architecture}", "./small", "--quantize", str(bits), "--q-group-size", "32")["data"]
    assert (made["bits"], made["group_size"], made["health"]) == (bits, 32, "healthy")
    quantization = config(tmp_path / "small")["quantization"]
    assert (quantization["bits"], quantization["group_size"]) == (bits, 32)
    assert made["weights_bytes"] < (tmp_path / architecture / "model.safetensors").stat().st_size / 2
    answer = command("run", "./small", "hello", "--max-tokens", "4", "--temperature", "0")["data"]
    assert answer["usage"]["completion_tokens"] == 4


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("architecture", sorted(VISION_ARCHITECTURES))
def test_a_quantized_model_that_looks_at_images_answers(
    architecture: str, bits: int, command: Command, tmp_path: Path
) -> None:
    build_with_eyes(tmp_path / architecture, architecture)
    (tmp_path / "noise.png").write_bytes(as_png(noise(1)))
    made = command("convert", f"./{architecture}", "./small", "--quantize", str(bits), "--q-group-size", "32")["data"]
    assert (made["bits"], made["health"], made["changed_layers"] > 0) == (bits, "healthy", True)
    answer = command("run", "./small", "hello", "--image", "noise.png", "--max-tokens", "4", "--temperature", "0")
    assert answer["data"]["usage"]["completion_tokens"] == 4


def test_the_models_that_come_with_the_program_still_know_what_they_knew(command: Command) -> None:
    greeting = command("run", "demo", "hello", "--temperature", "0")["data"]["response"]
    for bits, group_size, sample, seen in (
        (4, 32, "red-circle.png", "A red circle."),
        (8, 64, "blue-square.jpg", "A blue square."),
    ):
        flags = ("--quantize", str(bits), "--q-group-size", str(group_size))
        command("convert", "demo", f"./talks{bits}", *flags)
        assert command("run", f"./talks{bits}", "hello", "--temperature", "0")["data"]["response"] == greeting
        command("convert", "demo-vision", f"./sees{bits}", *flags)
        command("convert", f"./sees{bits}", f"./sees{bits}-in-full", "--dequantize")
        question = ("What is this?", "--image", f"demo-vision/{sample}", "--temperature", "0")
        for model in (f"./sees{bits}", f"./sees{bits}-in-full"):
            assert command("run", model, *question)["data"]["response"].rstrip().endswith(seen)


def test_dequantized_weights_are_within_one_step_of_the_original(command: Command, llama: Path, tmp_path: Path) -> None:
    command("convert", "./llama", "./q8", "--quantize", "8", "--q-group-size", "32")
    made = command("convert", "./q8", "./full", "--dequantize")["data"]
    assert (made["bits"], made["changed_layers"] > 0) == (None, True)
    assert "quantization" not in config(tmp_path / "full")
    before, after = weights(llama), weights(tmp_path / "full")
    assert before.keys() == after.keys()
    for name, original in before.items():
        assert original.shape == after[name].shape
        if original.ndim < 2:
            assert mx.array_equal(original, after[name])
            continue
        groups = original.reshape(-1, 32)
        step = (groups.max(axis=-1) - groups.min(axis=-1)) / 255
        worst = mx.abs(after[name].reshape(-1, 32) - groups).max(axis=-1)
        assert mx.all(worst <= step * 1.01), name


def test_everything_beside_the_weights_is_carried_over(command: Command, llama: Path, tmp_path: Path) -> None:
    before = fingerprint(llama)
    data = command("convert", "./llama", "./q4", "--quantize", "4")["data"]
    assert fingerprint(llama) == before
    target = tmp_path / "q4"
    kept = before.keys() - {"model.safetensors", "config.json", "model.safetensors.index.json"}
    assert {path: fingerprint(target)[path] for path in kept} == {path: before[path] for path in kept}
    record = json.loads((target / ".mlxk_workspace.json").read_text())
    assert (record["operation"], record["quantization"]) == ("convert", {"bits": 4, "group_size": 64})
    assert record["content_hash"] == data["content_hash"]
    written = b"".join(path.read_bytes() for path in target.rglob("*") if path.is_file())
    assert str(tmp_path).encode() not in written


def test_quantizing_again_goes_through_full_precision_and_says_what_that_means(
    command: Command, llama: Path, tmp_path: Path
) -> None:
    command("convert", "./llama", "./q4", "--quantize", "4")
    again = command("convert", "./q4", "./q8", "--quantize", "8")["data"]
    assert again["warning"] == "Source already 4-bit. Quantizing to 8-bit does not increase precision."
    assert config(tmp_path / "q8")["quantization"]["bits"] == 8
    same = command("convert", "./q4", "./q4-again", "--quantize", "4")["error"]
    assert same["type"] == "validation_error"


def test_layers_that_do_not_fit_the_group_size_are_named_or_refused(
    command: Command, llama: Path, tmp_path: Path
) -> None:
    made = command("convert", "./llama", "./q", "--quantize", "4", "--q-group-size", "128")["data"]
    assert "model.layers.0.self_attn.q_proj" in made["unchanged_layers"]
    assert command("run", "./q", "hi", "--max-tokens", "1")["status"] == "success"
    build(tmp_path / "narrow", intermediate_size=64)
    refused = command("convert", "./narrow", "./none", "--quantize", "4", "--q-group-size", "128")["error"]
    assert refused["type"] == "conversion_failed"
    assert not (tmp_path / "none").exists()


def test_an_index_that_names_other_files_is_repaired_and_the_model_answers(
    command: Command, llama: Path, tmp_path: Path
) -> None:
    shards = shard(llama)
    stale = {"weight_map": dict.fromkeys(("model.norm.weight", "gone.weight"), "model-00001-of-00009.safetensors")}
    (llama / "model.safetensors.index.json").write_text(json.dumps(stale))
    assert command("health", "./llama")["data"]["summary"]["unhealthy_count"] == 1
    made = command("convert", "./llama", "./fixed", "--repair-index")["data"]
    assert (made["message"], made["health"]) == ("Index rebuilt successfully", "healthy")
    index = json.loads((tmp_path / "fixed" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {path.name for path in shards}
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in weights(llama).values())
    assert (tmp_path / "fixed" / "sub" / "extra.json").exists()
    assert command("run", "./fixed", "hi", "--max-tokens", "1")["status"] == "success"


def test_an_index_is_not_built_over_two_of_three_shards(command: Command, llama: Path, tmp_path: Path) -> None:
    lost = shard(llama)[2]
    tensors = sorted(mx.load(str(lost)))
    lost.unlink()
    error = command("convert", "./llama", "./fixed", "--repair-index")["error"]
    assert (error["type"], error["detail"]["missing"]) == ("conversion_failed", tensors)
    assert error["detail"]["absent_files"] == [lost.name]
    assert tensors[0] in error["message"]
    (llama / "model.safetensors.index.json").unlink()
    assert command("convert", "./llama", "./fixed", "--repair-index")["error"]["type"] == "conversion_failed"
    assert not (tmp_path / "fixed").exists()


@pytest.mark.parametrize("lost", ["model.layers.1.self_attn.q_proj.weight", "model.layers.1.", "model.norm.weight"])
def test_tensors_that_the_config_needs_must_be_there_however_the_files_are_counted(
    command: Command, llama: Path, tmp_path: Path, lost: str
) -> None:
    for path in shard(llama, 2):
        kept = {name: value for name, value in mx.load(str(path)).items() if not name.startswith(lost)}
        mx.eval(kept)
        mx.save_safetensors(str(path), kept, metadata={"format": "mlx"})
    (llama / "model.safetensors.index.json").unlink()
    error = command("convert", "./llama", "./fixed", "--repair-index")["error"]
    assert error["type"] == "conversion_failed"
    assert all(name.startswith(lost.rstrip(".")) for name in error["detail"]["missing"])
    assert not (tmp_path / "fixed").exists()


def test_the_cache_is_read_and_never_written_however_it_is_reached(
    command: Command, program_environment: dict[str, str], llama: Path, tmp_path: Path
) -> None:
    cache, commit = Path(program_environment["HF_HOME"]) / "hub", "a" * 40
    snapshot = cache / "models--org--m" / "snapshots" / commit
    snapshot.parent.mkdir(parents=True)
    llama.rename(snapshot)
    (tmp_path / "link").symlink_to(cache)
    before = fingerprint(cache / "models--org--m")
    made = command("convert", "org/m", "./q", "--quantize", "4")["data"]
    assert made["source"] == "org/m"
    assert json.loads((tmp_path / "q" / ".mlxk_workspace.json").read_text())["source_revision"] == commit
    for target in (f"{cache}/copy", "./link/copy", f"./link/models--org--m/snapshots/{commit}/copy"):
        assert command("convert", "org/m", target, "--quantize", "4")["error"]["type"] == "validation_error"
    assert fingerprint(cache / "models--org--m") == before


@pytest.mark.parametrize("flags", [["--quantize", "4"], ["--dequantize"], ["--repair-index"]])
def test_code_of_a_model_is_never_run(command: Command, llama: Path, tmp_path: Path, flags: list[str]) -> None:
    shard(llama)
    (llama / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    change_config(llama, model_file="own.py")
    assert command("convert", "./llama", "./out", *flags)["error"]["type"] == "untrusted_model_code"
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "entries", "code"),
    [
        (["--quantize", "5"], {}, "validation_error"),
        (["--quantize", "4", "--q-group-size", "48"], {}, "validation_error"),
        (["--dequantize", "--q-group-size", "64"], {}, "validation_error"),
        (["--dequantize"], {}, "validation_error"),
        (["--quantize", "4", "--dequantize"], {}, "usage_error"),
        ([], {}, "usage_error"),
        (["--quantize", "4"], {"model_type": "nobody_knows"}, "incompatible_model"),
        (["--quantize", "4"], {"quantization_config": {"quant_method": "awq"}}, "incompatible_model"),
        (["--quantize", "4"], {"model_type": "whisper"}, "capability_not_supported"),
    ],
)
def test_what_cannot_be_converted_is_refused_and_leaves_nothing(
    command: Command, llama: Path, tmp_path: Path, flags: list[str], entries: dict[str, object], code: str
) -> None:
    change_config(llama, **entries)
    assert command("convert", "./llama", "./out", *flags)["error"]["type"] == code
    assert sorted(path.name for path in tmp_path.iterdir() if "out" in path.name) == []


def test_a_model_that_is_not_whole_is_not_quantized(command: Command, llama: Path, tmp_path: Path) -> None:
    content = (llama / "model.safetensors").read_bytes()
    (llama / "model.safetensors").write_bytes(content[:-1000])
    assert command("convert", "./llama", "./out", "--quantize", "4")["error"]["type"] == "model_unhealthy"
    assert command("convert", "./llama", "./out", "--repair-index")["error"]["type"] == "conversion_failed"
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").write_text("")
    assert command("convert", "./llama", "./taken", "--quantize", "4")["error"]["type"] == "validation_error"


def test_a_pipe_beside_the_weights_is_not_waited_for(command: Command, llama: Path) -> None:
    os.mkfifo(llama / "hf_quant_config.json")
    error = command("convert", "./llama", "./out", "--quantize", "4")["error"]
    assert (error["type"], "hf_quant_config.json" in error["message"]) == ("model_unhealthy", True)


def test_a_vision_model_keeps_its_eyes_in_full_precision(command: Command, tmp_path: Path) -> None:
    source = tmp_path / "sight"
    build_with_eyes(source, "gemma3")
    command("convert", "./sight", "./small", "--quantize", "4", "--q-group-size", "32")
    before, after = weights(source), weights(tmp_path / "small")
    seeing = [name for name in before if "vision" in name]
    assert seeing != []
    assert all(mx.array_equal(before[name], after[name]) for name in seeing)
    assert any(name.startswith("language_model") and name.endswith(".scales") for name in after)
    assert config(tmp_path / "small")["vision_config"] == config(source)["vision_config"]


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounts a small file system")
def test_a_disk_that_fills_up_is_named_and_nothing_is_left(command: Command, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=900k", "tmpfs", disk], check=True)
    try:
        error = command("convert", "demo", str(disk / "q"), "--quantize", "8")["error"]
        assert (error["type"], "full" in error["message"]) == ("storage_error", True)
        assert list(disk.iterdir()) == []
        assert command("convert", "demo", str(disk / "q"), "--quantize", "4")["data"]["health"] == "healthy"
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_fault_of_the_library_is_said_in_words(llama: Path, command: Command) -> None:
    change_config(llama, num_attention_heads=0)
    error = command("convert", f"./{llama.name}", "./small", "--quantize", "4", "--q-group-size", "32")["error"]
    assert error["message"].endswith(
        "cannot be converted: its files do not fit together: a number in them is out of range"
    )
