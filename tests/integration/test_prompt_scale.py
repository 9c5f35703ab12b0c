"""Gemma 3n, whose prompts mlx-vlm embeds on another scale than its answers: mlxk's are those of mlx-lm's network."""

import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx import nn
from mlx_vlm.models.gemma3n import vision
from models.answers import read
from models.pictures import about
from models.tiny_vision import write_model

from mlxk.adapters.mlx.text_generator import MlxTextGenerator
from mlxk.domain.generation.conversation import Conversation, Message, Role
from mlxk.domain.generation.request import GenerationRequest
from mlxk.domain.generation.settings import GenerationSettings
from mlxk.domain.models.model import ModelHandle, Origin

pytestmark = pytest.mark.mlx
NAMED = {
    "audio_token": "<audio_soft_token>",
    "boa_token": "<start_of_audio>",
    "boi_token": "<start_of_image>",
    "eoa_token": "<end_of_audio>",
    "eoi_token": "<end_of_image>",
    "image_token": "<image_soft_token>",
}
TEXT = {
    "model_type": "gemma3n_text",
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "intermediate_size": [128] * 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "laurel_rank": 8,
    "hidden_size_per_layer_input": 16,
    "vocab_size_per_layer_input": 0,
    "sliding_window": 64,
    "layer_types": ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"],
    "num_kv_shared_layers": 0,
    "altup_num_inputs": 4,
    "activation_sparsity_pattern": [0.0] * 4,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "rope_local_base_freq": 10000.0,
    "query_pre_attn_scalar": 16,
    "altup_coef_clip": 120.0,
    "altup_correct_scale": True,
    "altup_active_idx": 0,
    "final_logit_softcapping": 30.0,
    "rope_scaling": None,
}
SOUND = {
    "hidden_size": 32,
    "conf_num_attention_heads": 2,
    "conf_num_hidden_layers": 1,
    "sscp_conv_channel_size": [8, 4],
    "vocab_size": 4,
    "vocab_offset": 100_004,
}
PIXELS = {"image_processor_type": "SiglipImageProcessor", "size": {"height": 256, "width": 256}}


class Blind(nn.Module):  # type: ignore[misc]
    """The first block of the encoder, which has its full size whatever the config says, and is not asked here."""

    def __init__(self, _: object) -> None:
        super().__init__()
        self.blocks = [[vision.EdgeResidual(exp_kernel_size=3, in_chs=4, out_chs=4, stride=1, expand_ratio=1)]]


def model(directory: Path) -> ModelHandle:
    eye = {"model_type": "gemma3n_vision", "vocab_size": 4, "vocab_offset": 100_000}
    wanted: dict[str, Any] = {
        "config": {"hidden_size": 64, "text_config": TEXT, "vision_config": eye, "audio_config": SOUND},
        "files": {"preprocessor_config.json": PIXELS, "processor_config.json": {"processor_class": "Gemma3nProcessor"}},
        "mark": "<image_soft_token>",
        "named": NAMED,
        "tokens": {"image_token_id": "<image_soft_token>", "audio_token_id": "<audio_soft_token>"},
    }
    return write_model(directory, wanted, 3, model_type="gemma3n")


def as_mlx_lm_has_it(handle: ModelHandle, directory: Path) -> ModelHandle:
    """Write the same model with the tensors' names of mlx-lm."""
    shutil.copytree(handle.directory, directory)
    weights = mx.load(str(directory / "model.safetensors"))
    named = {
        f"model.{name.replace('language_model.model.', 'language_model.')}": each for name, each in weights.items()
    }
    mx.save_safetensors(str(directory / "model.safetensors"), named, metadata={"format": "mlx"})
    return ModelHandle(str(directory), str(directory), Origin.WORKSPACE)


def test_answers_are_those_of_mlx_lms_network(
    tmp_path: Path, engine: MlxTextGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vision, "VisionTower", Blind)
    handle, words = model(tmp_path / "mlx-vlm"), "The quick brown fox jumps over the lazy dog. "
    turns = Conversation(
        (Message(Role.USER, words + "Who?"), Message(Role.ASSISTANT, "A fox."), Message(Role.USER, "Why?"))
    )
    prompts = (about("Hello world!"), turns, about(words * 4 + "Why?"))
    settings = GenerationSettings(temperature=0, max_tokens=20, logprobs=0)
    found = {}
    for backend, each in (("mlx-vlm", handle), ("mlx-lm", as_mlx_lm_has_it(handle, tmp_path / "mlx-lm"))):
        asked = [GenerationRequest(each, prompt, settings, backends=(backend,)) for prompt in prompts]
        found[backend] = [read(engine.submit(request)).tokens for request in asked]
        engine.unload()
    assert found["mlx-vlm"] == found["mlx-lm"]
    assert len(set(found["mlx-vlm"])) == 3
