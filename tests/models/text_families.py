"""Tiny models of architectures without media that mlx-vlm alone knows; as those of ``vision_families``."""

import importlib
import json
from pathlib import Path
from typing import Any

from models.tiny_vision import write_model
from models.vision_families import TEXT, shrunk

from mlxk.domain.models.model import ModelHandle

WRITING: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
"""What each one's config says beyond small sizes; the page of the families names them."""

_MARKS = ("<|object_ref_start|>", "<|object_ref_end|>", "<|quad_end|>")
"""What HRM-Text's prompts are opened with."""


def build_writing(directory: Path, family: str, seed: int = 3, **config: Any) -> ModelHandle:
    """Write a model and return its handle.

    Args:
        directory: Where; made if need be.
        family: One of ``WRITING``, or another one.
        seed: Of the weights.
        config: Entries of config.json that differ.
    """
    sizes = shrunk(importlib.import_module(f"mlx_vlm.models.{family}").ModelConfig, TEXT)
    settings = {**sizes, **WRITING.get(family, {}), **config}
    described = {"config": settings, "files": {}, "mark": "", "special": _MARKS, "tokens": {}}
    return write_model(directory, described, seed, model_type=family)
