"""Tiny embedding models for images and texts, of real architectures, with random weights."""

from pathlib import Path
from typing import Any

from models.tiny_vision import build

from mlxk.domain.models.model import ModelHandle

BASES = {"qwen3_vl_embedding": "qwen3_vl", "colqwen2_5": "qwen2_5_vl", "colidefics3": "idefics3"}
"""The architectures, and the vision models that they are made of."""

DIMENSIONS = {"qwen3_vl_embedding": 64, "colqwen2_5": 16, "colidefics3": 16}


def build_pictured(directory: Path, kind: str, seed: int = 0, **config: Any) -> ModelHandle:
    """Write a model.

    Args:
        directory: Where; made if need be.
        kind: One of ``BASES``.
        seed: Of the weights.
        config: Entries of config.json that differ.
    """
    late = {} if kind == "qwen3_vl_embedding" else {"embedding_dim": DIMENSIONS[kind]}
    return build(directory, BASES[kind], seed, **{"model_type": kind, **late, **config})
