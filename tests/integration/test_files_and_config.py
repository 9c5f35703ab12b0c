"""Healthy means that the files can be read and fit together: long files, and tensors that no config describes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from models import tiny_models

Command = Callable[..., dict[str, Any]]
MIB = 2**20


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Make a runnable model."""
    tiny_models.build(tmp_path / "model")
    return tmp_path / "model"


def assert_unhealthy(command: Command, named: str) -> None:
    (found,) = command("health", "./model")["data"]["unhealthy"]
    assert named in found["reason"]
    error = command("run", "./model", "hi", "--max-tokens", "2")["error"]
    assert (error["type"], named in error["message"]) == ("model_unhealthy", True)


@pytest.mark.parametrize(
    ("path", "size"),
    [
        ("config.json", 65 * MIB),
        ("tokenizer_config.json", 65 * MIB),
        ("generation_config.json", 65 * MIB),
        ("special_tokens_map.json", 10_000 * MIB),
        ("tokenizer.json", 257 * MIB),
        ("tokenizer.model", 10_000 * MIB),
        ("chat_template.jinja", 2 * MIB),
        ("additional_chat_templates/tool_use.jinja", 2 * MIB),
    ],
)
def test_a_file_that_is_too_long_to_be_read_is_named(model: Path, command: Command, path: str, size: int) -> None:
    (model / path).parent.mkdir(exist_ok=True)
    content = (model / path).read_bytes() if (model / path).exists() else b""
    with (model / path).open("wb") as file:
        file.write(content)
        file.truncate(size - 1)
        file.seek(0, 2)
        file.write(b"}")
    assert_unhealthy(command, path)


@pytest.mark.parametrize(
    "change",
    [
        {"vocab_size": 7},
        {"hidden_size": 32},
        {"num_attention_heads": 8, "num_key_value_heads": 2},
        {"num_key_value_heads": 4},
        {"intermediate_size": 64},
        {"num_hidden_layers": 5},
    ],
)
@pytest.mark.parametrize("quantized", [False, True])
def test_a_config_of_another_model_is_named(
    model: Path, command: Command, tmp_path: Path, change: dict[str, int], quantized: bool
) -> None:
    if quantized:
        command("convert", "./model", "./small", "--quantize", "4")
        model.rename(tmp_path / "old")
        (tmp_path / "small").rename(model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, **change}))
    assert_unhealthy(command, "config.json")


@pytest.mark.parametrize("architecture", sorted(tiny_models.ARCHITECTURES))
def test_every_architecture_fits_its_own_config(command: Command, tmp_path: Path, architecture: str) -> None:
    tiny_models.build(tmp_path / "model", architecture)
    assert command("health", "./model")["data"]["summary"]["unhealthy_count"] == 0
    command("convert", "./model", "./small", "--quantize", "4")
    assert command("health", "./small")["data"]["summary"]["unhealthy_count"] == 0
