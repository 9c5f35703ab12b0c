"""Adapters of PEFT: read by their names and transposed matrices, with the text of the same adapter of mlx-lm."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from models.tiny_models import build, write_adapter

Command = Callable[..., dict[str, Any]]

pytestmark = pytest.mark.mlx


def as_peft(adapter: Path, directory: Path, **config: object) -> Path:
    """Write an adapter of mlx-lm as PEFT writes it."""
    parameters = json.loads((adapter / "adapter_config.json").read_text())["lora_parameters"]
    rank, scale = parameters["rank"], parameters["scale"]
    tensors = mx.load(str(adapter / "adapters.safetensors"))
    directory.mkdir()
    renamed = {
        f"base_model.model.{name[:-1]}{name[-1].upper()}.weight": mx.contiguous(array.T)
        for name, array in tensors.items()
    }
    mx.save_safetensors(str(directory / "adapter_model.safetensors"), renamed, metadata={"format": "pt"})
    stated = {"peft_type": "LORA", "r": rank, "lora_alpha": scale * rank, "bias": "none", **config}
    stated |= {"base_model_name_or_path": "../tiny", "target_modules": ["q_proj", "up_proj"], "lora_dropout": 0.05}
    (directory / "adapter_config.json").write_text(json.dumps(stated | config))
    return directory


def said(command: Command, *words: str) -> str:
    """Return a greedy answer."""
    done = command("run", *words, "--temperature", "0", "--max-tokens", "8")
    assert done["status"] == "success", done
    return str(done["data"]["response"])


def test_an_adapter_of_peft_says_what_the_same_one_of_mlx_lm_says(command: Command, tmp_path: Path) -> None:
    handle = build(tmp_path / "tiny")
    adapter = write_adapter(tmp_path / "of-mlx-lm", handle)
    rank = json.loads((adapter / "adapter_config.json").read_text())["lora_parameters"]["rank"]
    as_peft(adapter, tmp_path / "of-peft")
    alpha = 6.0 * math.sqrt(rank)
    as_peft(adapter, tmp_path / "stable", use_rslora=True, lora_alpha=alpha)
    wanted = said(command, "./tiny", "Hello", "--adapter", "of-mlx-lm")
    assert wanted != said(command, "./tiny", "Hello")
    assert said(command, "./tiny", "Hello", "--adapter", "of-peft") == wanted
    assert said(command, "./of-peft", "Hello") == wanted
    assert said(command, "./stable", "Hello") == wanted
    shown = command("show", "./of-peft")["data"]["model"]
    assert (shown["model_type"], shown["health"], shown["runtime_compatible"]) == ("adapter", "healthy", True)


@pytest.mark.parametrize(
    ("config", "fault"),
    [
        ({"peft_type": "IA3"}, "has a peft_type that is not LORA (IA3)"),
        ({"use_dora": True}, "has use_dora, which is not read"),
        ({"modules_to_save": ["lm_head"]}, "has modules_to_save, which is not read"),
        ({"bias": "all"}, "has bias, which is not read"),
        ({"r": 0}, "needs r, a whole number from 1"),
        ({"lora_alpha": "16"}, "needs lora_alpha, a number"),
        ({"rank_pattern": {"q_proj": 4}}, "has rank_pattern, which is not read"),
    ],
)
def test_what_is_not_read_is_refused_by_its_field(
    config: dict[str, object], fault: str, command: Command, tmp_path: Path
) -> None:
    handle = build(tmp_path / "tiny")
    as_peft(write_adapter(tmp_path / "of-mlx-lm", handle), tmp_path / "of-peft", **config)
    error = command("run", "./tiny", "Hello", "--adapter", "of-peft")["error"]
    assert (error["type"], fault in error["message"]) == ("validation_error", True), error


def test_a_tensor_of_another_kind_is_named(command: Command, tmp_path: Path) -> None:
    handle = build(tmp_path / "tiny")
    directory = as_peft(write_adapter(tmp_path / "of-mlx-lm", handle), tmp_path / "of-peft")
    path = directory / "adapter_model.safetensors"
    tensors = {**mx.load(str(path)), "base_model.model.model.embed_tokens.lora_embedding_A": mx.zeros((2, 2))}
    mx.save_safetensors(str(path), tensors, metadata={"format": "pt"})
    error = command("run", "./tiny", "Hello", "--adapter", "of-peft")["error"]
    assert "has a tensor that is not read: base_model.model.model.embed_tokens.lora_embedding_A" in error["message"]
