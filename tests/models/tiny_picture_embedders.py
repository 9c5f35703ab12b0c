"""Tiny embedding models for images and texts, of real architectures, with random weights."""

import json
from pathlib import Path
from typing import Any

from models.tiny_vision import ARCHITECTURES, write_model

from mlxk.domain.models.model import ModelHandle

BASES = {"qwen3_vl_embedding": "qwen3_vl", "colqwen2_5": "qwen2_5_vl", "colidefics3": "idefics3"}
"""The architectures, and the vision models that they are made of."""

GEMMA = "embedding_gemma2"
"""Another architecture, of parts of its own."""

DIMENSIONS = {"qwen3_vl_embedding": 64, "colqwen2_5": 16, "colidefics3": 16}


def build_pictured(directory: Path, kind: str, seed: int = 0, **config: Any) -> ModelHandle:
    """Write a model.

    Args:
        directory: Where; made if need be.
        kind: One of ``BASES``, or ``GEMMA``.
        seed: Of the weights.
        config: Entries of config.json that differ.
    """
    if kind == GEMMA:
        return _build_gemma(directory, seed)
    late = {} if kind == "qwen3_vl_embedding" else {"embedding_dim": DIMENSIONS[kind]}
    return write_model(directory, ARCHITECTURES[BASES[kind]], seed, **{"model_type": kind, **late, **config})


def _build_gemma(directory: Path, seed: int) -> ModelHandle:
    text = {
        **ARCHITECTURES["gemma4"]["config"]["text_config"],
        "model_type": "embedding_gemma2_text",
        "embedding_dim": 64,
        "hidden_size_per_layer_input": 16,
        "per_layer_config": {"1": {"head_dim": 16, "num_key_value_heads": 1}},
    }
    handle = write_model(
        directory, ARCHITECTURES["gemma4"], seed, model_type=GEMMA, text_config=text, audio_config=None
    )
    processor = {"image_processor": {"max_soft_tokens": 70, "patch_size": 16, "pooling_kernel_size": 2}}
    (directory / "processor_config.json").write_text(json.dumps(processor))
    return handle
