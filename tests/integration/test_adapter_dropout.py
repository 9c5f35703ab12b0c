"""LoRA adapters that were trained with dropout."""

import json
from pathlib import Path

import mlx.core as mx
import pytest
from doubles.event_log import InMemoryEventLog
from models.answers import loaded, read
from models.tiny_models import build

from mlxk.adapters.mlx.text_generator import MlxTextGenerator
from mlxk.adapters.system import SystemClock
from mlxk.domain.generation.request import GenerationRequest
from mlxk.domain.generation.settings import EngineOptions, GenerationSettings
from mlxk.domain.models.model import ModelHandle

pytestmark = pytest.mark.mlx


def write_adapter(directory: Path, handle: ModelHandle, dropout: float) -> str:
    network, _ = loaded(handle)
    inputs, outputs = network.layers[0].self_attn.q_proj.weight.shape[::-1]
    directory.mkdir()
    parameters = {"rank": 2, "scale": 5.0, "dropout": dropout, "keys": ["self_attn.q_proj"]}
    config = {"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": parameters}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    ones = {"lora_a": mx.ones((inputs, 2)), "lora_b": mx.ones((2, outputs))}
    weights = {f"model.layers.{layer}.self_attn.q_proj.{name}": ones[name] for layer in range(2) for name in ones}
    mx.save_safetensors(str(directory / "adapters.safetensors"), weights)
    return str(directory)


def test_dropout_that_an_adapter_was_trained_with_changes_no_answer(tmp_path: Path) -> None:
    handle = build(tmp_path / "llama", head_dim=32)
    settings = GenerationSettings(temperature=0.0, max_tokens=24, logprobs=0, ignore_eos=True)
    engine = MlxTextGenerator(InMemoryEventLog(), SystemClock())
    adapters = [write_adapter(tmp_path / f"dropout-{dropout}", handle, dropout) for dropout in (0.0, 0.9)]
    requests = [
        GenerationRequest(handle, "The quick brown fox", settings, engine_options=EngineOptions(adapter=adapter))
        for adapter in adapters
    ]
    plain, dropped = (read(engine.submit(request)).tokens for request in requests)
    assert dropped == plain
    engine.close()
