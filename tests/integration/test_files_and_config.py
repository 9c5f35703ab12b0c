"""Healthy means that the files can be read and fit together: long files, and tensors that no config describes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from models import tiny_embedding, tiny_models, tiny_vision

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


OTHERS = {
    "lfm2": tiny_models.build,
    "mamba2": tiny_models.build,
    "gemma3": tiny_vision.build,
    "qwen3_vl": tiny_vision.build,
    "qwen2_vl": tiny_vision.build,
    "pixtral": tiny_vision.build,
    "smolvlm": tiny_vision.build,
}


@pytest.mark.parametrize("change", [{"hidden_size": 80}, {"vocab_size": 3_000}, {"num_hidden_layers": 9}])
@pytest.mark.parametrize("architecture", sorted(OTHERS))
def test_decoders_of_any_build_are_compared_with_their_config(
    command: Command, tmp_path: Path, architecture: str, change: dict[str, int]
) -> None:
    OTHERS[architecture](tmp_path / "model", architecture)
    assert command("health", "./model")["data"]["summary"]["unhealthy_count"] == 0
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    section = config.get("text_config", config)
    assert set(change) <= set(section)
    section.update(change)
    path.write_text(json.dumps(config))
    assert_unhealthy(command, "Config and weights do not fit together")


@pytest.mark.parametrize("architecture", sorted(tiny_vision.ARCHITECTURES))
def test_every_vision_model_fits_its_own_config(command: Command, tmp_path: Path, architecture: str) -> None:
    tiny_vision.build(tmp_path / "model", architecture)
    assert command("health", "./model")["data"]["summary"]["unhealthy_count"] == 0


def test_encoders_are_compared_with_their_config(command: Command, tmp_path: Path) -> None:
    tiny_embedding.build_bert(tmp_path / "model")
    assert command("health", "./model")["data"]["summary"]["unhealthy_count"] == 0
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "vocab_size": config["vocab_size"] + 8}))
    assert command("health", "./model")["data"]["summary"]["unhealthy_count"] == 1


TEMPLATES = {
    "{% for m in messages %}{{ m.content }}": "blocks 'for'",
    "{%- if messages -%}{% for m in messages %}{{ m.content }}{% endfor %}": "blocks 'if'",
    "{# {% if %} #}{% raw %}{% for %}{% endraw %}{% for m in messages %}{{ m.content if m else '' }}{% endfor %}": None,
    "{% for m in messages %}{% if tools %}<|recipient|>{% endif %}{{ m }}{% endfor %}": "is not read as that call",
}


@pytest.mark.parametrize("place", ["tokenizer_config.json", "chat_template.jinja"])
@pytest.mark.parametrize("template", TEMPLATES)
def test_what_is_wrong_with_a_chat_template_is_a_note_of_health(
    model: Path, command: Command, template: str, place: str
) -> None:
    settings = json.loads((model / "tokenizer_config.json").read_text())
    settings["chat_template"] = template
    if place != "tokenizer_config.json":
        (model / place).write_text(settings.pop("chat_template"))
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    (found,) = command("health", "./model")["data"]["healthy"]
    expected = TEMPLATES[template]
    if expected is None:
        assert "notes" not in found
    else:
        (note,) = found["notes"]
        assert expected in note


def test_a_chat_model_without_a_template_has_a_note_and_a_base_model_none(
    model: Path, command: Command, tmp_path: Path
) -> None:
    settings = json.loads((model / "tokenizer_config.json").read_text())
    del settings["chat_template"]
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    (found,) = command("health", "./model")["data"]["healthy"]
    assert "notes" not in found
    model.rename(tmp_path / "model-instruct")
    (found,) = command("health", "./model-instruct")["data"]["healthy"]
    assert found["notes"][0].startswith("There is no chat template")
