"""Models as their makers publish them for PyTorch, in safetensors: they are listed as runnable, run, and convert."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from models import tiny_models, tiny_speech, tiny_vision
from models.pictures import as_png, noise

Command = Callable[..., dict[str, Any]]
TEXT = ("run", "./model", "hello", "--max-tokens", "8", "--temperature", "0")
IMAGE = ("run", "./model", "What is it?", "--image", "a.png", "--max-tokens", "8", "--temperature", "0")
SPEECH = ("run", "./model", "--audio", "a.wav")


def republish(
    directory: Path, changed: Callable[[str, mx.array], tuple[str, mx.array]], metadata: dict[str, str] | None
) -> None:
    """Write the weights again with other names and layouts, and without a sign of MLX."""
    path = str(directory / "model.safetensors")
    weights = mx.load(path)
    assert isinstance(weights, dict)
    changed_weights = dict(changed(name, value) for name, value in weights.items())
    mx.eval(changed_weights)
    mx.save_safetensors(path, changed_weights, metadata=metadata)
    (directory / "model.safetensors.index.json").unlink(missing_ok=True)


def in_torch(name: str, value: mx.array) -> tuple[str, mx.array]:
    """Return a tensor of a text model as PyTorch has it: channels come before positions."""
    return name, mx.contiguous(value.swapaxes(1, 2)) if "conv" in name and value.ndim == 3 else value


def in_torch_with_images(name: str, value: mx.array) -> tuple[str, mx.array]:
    """Return a tensor of Qwen2-VL as PyTorch has it."""
    name = name.replace("vision_tower", "visual").replace("language_model.model", "model")
    name = name.replace("language_model.lm_head", "lm_head")
    return name, mx.contiguous(mx.moveaxis(value, -1, 1)) if value.ndim == 5 else value


_WHISPER = (
    (".attn_ln.", ".self_attn_layer_norm."),
    (".mlp_ln.", ".final_layer_norm."),
    (".cross_attn_ln.", ".encoder_attn_layer_norm."),
    (".mlp1.", ".fc1."),
    (".mlp2.", ".fc2."),
    (".cross_attn.query.", ".encoder_attn.q_proj."),
    (".cross_attn.key.", ".encoder_attn.k_proj."),
    (".cross_attn.value.", ".encoder_attn.v_proj."),
    (".cross_attn.out.", ".encoder_attn.out_proj."),
    (".attn.query.", ".self_attn.q_proj."),
    (".attn.key.", ".self_attn.k_proj."),
    (".attn.value.", ".self_attn.v_proj."),
    (".attn.out.", ".self_attn.out_proj."),
    (".blocks.", ".layers."),
    ("encoder.ln_post.", "encoder.layer_norm."),
    ("decoder.ln.", "decoder.layer_norm."),
    ("decoder.positional_embedding", "decoder.embed_positions.weight"),
    ("decoder.token_embedding.", "decoder.embed_tokens."),
)


def in_torch_with_sound(name: str, value: mx.array) -> tuple[str, mx.array]:
    """Return a tensor of Whisper as PyTorch has it."""
    for ours, theirs in _WHISPER:
        name = name.replace(ours, theirs)
    return f"model.{name}", mx.contiguous(value.swapaxes(1, 2)) if value.ndim == 3 else value


def assert_runs_as_before(command: Command, asked: tuple[str, ...], before: object) -> None:
    listed = command("list", "./model")["data"]["models"][0]
    assert (listed["framework"], listed["health"], listed["runtime_compatible"]) == ("PyTorch", "healthy", True)
    assert command("show", "./model")["data"]["model"]["runtime_compatible"]
    answered = command(*asked)
    assert answered["error"] is None, answered
    assert answered["data"]["response"] == before


@pytest.mark.parametrize("metadata", [{"format": "pt"}, None])
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3_text", "mamba2"])
def test_text_models(command: Command, tmp_path: Path, architecture: str, metadata: dict[str, str] | None) -> None:
    tiny_models.build(tmp_path / "model", architecture)
    before = command(*TEXT)["data"]["response"]
    republish(tmp_path / "model", in_torch, metadata)
    assert_runs_as_before(command, TEXT, before)


def test_vision_models(command: Command, tmp_path: Path) -> None:
    tiny_vision.build(tmp_path / "model", "qwen2_vl", 3)
    (tmp_path / "a.png").write_bytes(as_png(noise(1)))
    before = command(*IMAGE)["data"]["response"]
    republish(tmp_path / "model", in_torch_with_images, {"format": "pt"})
    assert_runs_as_before(command, IMAGE, before)


def test_whisper(command: Command, tmp_path: Path) -> None:
    tiny_speech.build_whisper(tmp_path / "model")
    tiny_speech.write_wav(tmp_path / "a.wav", tiny_speech.murmur(2.0))
    before = command(*SPEECH)["data"]["response"]
    republish(tmp_path / "model", in_torch_with_sound, {"format": "pt"})
    assert_runs_as_before(command, SPEECH, before)


def test_what_convert_makes_of_them_runs_too(command: Command, tmp_path: Path) -> None:
    tiny_models.build(tmp_path / "model")
    republish(tmp_path / "model", in_torch, {"format": "pt"})
    (tmp_path / "model" / "pytorch_model.bin").write_bytes(b"PK\3\4")
    assert command("convert", "./model", "./small", "--quantize", "8")["error"] is None
    listed = command("list", "./small")["data"]["models"][0]
    assert (listed["framework"], listed["runtime_compatible"]) == ("MLX", True)
    assert command("run", "./small", "hello", "--max-tokens", "2")["data"]["response"] is not None


def test_pickles_stay_refused(command: Command, tmp_path: Path) -> None:
    tiny_models.build(tmp_path / "model")
    for path in (tmp_path / "model").glob("model.safetensors*"):
        path.unlink()
    (tmp_path / "model" / "pytorch_model.bin").write_bytes(b"PK\3\4" * 100)
    assert not command("list", "./model")["data"]["models"][0]["runtime_compatible"]
    error = command(*TEXT)["error"]
    assert (error["type"], "PyTorch" in error["message"]) == ("incompatible_model", True), error
