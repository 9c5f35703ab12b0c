"""Weights of other libraries: what ``list`` says of a quantization is what ``run`` does; encoders of PyTorch run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from models import tiny_embedding, tiny_models

Command = Callable[..., dict[str, Any]]

METHODS: dict[str, dict[str, Any]] = {
    "compressed-tensors fp8": {"quant_method": "compressed-tensors", "format": "float-quantized"},
    "compressed-tensors int8": {"quant_method": "compressed-tensors", "format": "int-quantized"},
    "bitsandbytes": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    "fp8": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    "fbgemm_fp8": {"quant_method": "fbgemm_fp8"},
    "awq in 8 bits": {"quant_method": "awq", "bits": 8},
    "AWQ in capitals": {"quant_method": "AWQ", "bits": 4},
    "GPTQ in capitals": {"quant_method": "GPTQ", "bits": 4},
    "MXFP4 in capitals": {"quant_method": "MXFP4"},
    "with an underscore": {"quant_method": "compressed_tensors", "format": "pack-quantized"},
    "gptq in 3 bits": {"quant_method": "gptq", "bits": 3},
    "hqq": {"quant_method": "hqq"},
    "quanto": {"quant_method": "quanto"},
    "torchao": {"quant_method": "torchao"},
    "aqlm": {"quant_method": "aqlm"},
    "auto-round": {"quant_method": "auto-round", "bits": 4},
    "modelopt fp8": {"quant_method": "modelopt", "quant_algo": "FP8"},
    "without a method": {"load_in_8bit": True},
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Make a runnable model."""
    tiny_models.build(tmp_path / "model")
    return tmp_path / "model"


def configure(model: Path, **settings: Any) -> None:
    """Change entries of the config."""
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, **settings}))


def assert_refused(command: Command, named: str) -> None:
    listed = command("list", "./model")["data"]["models"][0]
    assert (listed["health"], listed["runtime_compatible"]) == ("healthy", False)
    assert named in listed["reason"]
    error = command("run", "./model", "hi", "--max-tokens", "2")["error"]
    assert (error["type"], named in error["message"]) == ("incompatible_model", True), error
    assert "conversion" in error["hint"], error
    converted = command("convert", "./model", "./converted", "--quantize", "4")["error"]
    assert "conversion" in converted["hint"], converted


@pytest.mark.parametrize("kind", sorted(METHODS))
@pytest.mark.parametrize("nested", [False, True])
def test_a_quantization_that_is_not_loaded_is_named(model: Path, command: Command, kind: str, nested: bool) -> None:
    stated = {"quantization_config": METHODS[kind]}
    configure(model, **({"text_config": stated} if nested else stated))
    assert_refused(command, METHODS[kind].get("quant_method", "does not name"))


def test_modelopt_says_so_in_a_file_of_its_own(model: Path, command: Command) -> None:
    (model / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": "FP8"}}))
    assert_refused(command, "modelopt")


def test_weights_in_eight_bit_floats_without_a_word_in_the_config_are_named(model: Path, command: Command) -> None:
    path = model / "model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    at, body = 0, b""
    for name, tensor in header.items():
        if name == "__metadata__":
            continue
        begin, end = tensor["data_offsets"]
        part = data[8 + length + begin : 8 + length + end]
        if name.endswith("q_proj.weight"):
            part, tensor["dtype"] = part[: len(part) // 4], "F8_E4M3"
        tensor["data_offsets"], at, body = [at, at + len(part)], at + len(part), body + part
    written = json.dumps(header).encode()
    path.write_bytes(len(written).to_bytes(8, "little") + written + body)
    assert_refused(command, "F8_E4M3")


def add_tensors(model: Path, **shapes: tuple[int, ...]) -> None:
    """Add words without a bit set to the weights, by name of the layer's tensor."""
    path = str(model / "model.safetensors")
    weights = mx.load(path)
    assert isinstance(weights, dict)
    added = {f"model.layers.0.mlp.up_proj.{name}": mx.zeros(shape, mx.uint32) for name, shape in shapes.items()}
    mx.eval(weights)
    mx.save_safetensors(path, {**weights, **added}, metadata={"format": "pt"})


@pytest.mark.parametrize("method", ["awq", "gptq"])
@pytest.mark.parametrize(
    ("shapes", "loads"),
    [
        ({"qweight": (64, 8), "scales": (2, 64)}, True),
        ({"qweight": (8, 64), "scales": (2, 64)}, False),
        ({"qweight": (64, 8), "scales": (2, 64), "g_idx": (64,)}, False),
    ],
    ids=["outputs", "inputs", "reordered inputs"],
)
def test_four_bits_are_read_only_where_a_word_is_of_several_outputs(
    model: Path, command: Command, method: str, shapes: dict[str, tuple[int, ...]], loads: bool
) -> None:
    configure(model, quantization_config={"quant_method": method, "bits": 4})
    add_tensors(model, **shapes)
    if loads:
        assert command("list", "./model")["data"]["models"][0]["runtime_compatible"]
    else:
        assert_refused(command, f"Quantized by {method} in a packing that mlx-lm does not load")


def test_what_mlx_has_quantized_runs_whatever_else_the_config_says(model: Path, command: Command) -> None:
    command("convert", "./model", "./small", "--quantize", "4")
    config = json.loads((model.parent / "small" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes"}
    (model.parent / "small" / "config.json").write_text(json.dumps(config))
    assert command("run", "./small", "hi", "--max-tokens", "2")["status"] == "success"


@pytest.mark.parametrize("section", ["text_config", "llm_config", "language_config"])
def test_figures_are_read_from_the_section_of_the_language_model(model: Path, command: Command, section: str) -> None:
    config = json.loads((model / "config.json").read_text())
    before = command("show", "./model")["data"]
    kept = {key: config.pop(key) for key in ("model_type", "eos_token_id")}
    (model / "config.json").write_text(json.dumps({**kept, "vision_config": {"a": 1}, section: config}))
    after = command("show", "./model")["data"]
    for name in ("vocab_size", "hidden_size", "num_attention_heads", "num_key_value_heads", "num_hidden_layers"):
        assert after["metadata"][name] == before["metadata"][name] is not None, name
    assert after["model"]["context_length"] == before["model"]["context_length"]
    assert after["memory"]["cache_bytes_per_1k_tokens"] == before["memory"]["cache_bytes_per_1k_tokens"] > 0


@pytest.mark.parametrize("metadata", [{"format": "pt"}, None])
def test_an_encoder_as_its_makers_publish_it_makes_the_same_vectors(
    command: Command, tmp_path: Path, metadata: dict[str, str] | None
) -> None:
    tiny_embedding.build_bert(tmp_path / "model")
    asked = ("embed", "./model", "one sentence")
    expected = command(*asked, MLXK2_ENABLE_ALPHA_FEATURES="1")["data"]["records"][0]["embedding"]
    path = str(tmp_path / "model" / "model.safetensors")
    weights = mx.load(path)
    assert isinstance(weights, dict)
    mx.eval(weights)
    mx.save_safetensors(path, weights, metadata=metadata)
    (tmp_path / "model" / "pytorch_model.bin").write_bytes(b"PK\3\4")
    listed = command("list", "./model")["data"]["models"][0]
    assert (listed["framework"], listed["runtime_compatible"]) == ("PyTorch", True)
    assert command(*asked, MLXK2_ENABLE_ALPHA_FEATURES="1")["data"]["records"][0]["embedding"] == expected
