"""Tiny models of the vision families of mlx-vlm: their own configurations, shrunk.

The dataclasses of a family say which settings there are; those that make a model large get small values here, and an
entry of ``FAMILIES`` says what else differs: the processor's files, the tokens that mark an image, and what the tests
show. Everything else is as in ``tiny_vision``.
"""

import dataclasses
import functools
import importlib
import json
import types
from pathlib import Path
from typing import Any

from models.tiny_vision import ARCHITECTURES, build, write_model

from mlxk.domain.models.model import ModelHandle

TEXT: dict[str, Any] = {
    "d_model": 64,
    "first_k_dense_replace": 1,
    "head_dim": 16,
    "hidden_size": 64,
    "intermediate_size": 128,
    "kv_lora_rank": 16,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_value_head_dim": 16,
    "max_position_embeddings": 4096,
    "moe_intermediate_size": 32,
    "n_group": 1,
    "n_heads": 4,
    "n_kv_heads": 2,
    "n_layers": 2,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "norm_eps": 1e-6,
    "norm_topk_prob": True,
    "num_attention_heads": 4,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "num_local_experts": 4,
    "q_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "routed_scaling_factor": 1.0,
    "shared_expert_intermediate_size": 32,
    "sliding_window": 64,
    "tie_word_embeddings": True,
    "topk_group": 1,
    "v_head_dim": 16,
}
_EYE: dict[str, Any] = {
    "depth": 2,
    "embed_dim": 32,
    "head_dim": 16,
    "hidden_size": 32,
    "image_size": 56,
    "in_channels": 3,
    "intermediate_size": 64,
    "layers": 2,
    "mlp_ratio": 2,
    "num_attention_heads": 2,
    "num_channels": 3,
    "num_heads": 2,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "out_hidden_size": 64,
    "patch_size": 14,
    "projection_dim": 64,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "width": 32,
}
_PIXELS: dict[str, Any] = {
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
    "rescale_factor": 1 / 255,
}


FAMILIES: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
"""What each family's files say beyond that, and what its tests show; the page of the families is made of it.

``whole`` says that the config has no parts, ``library`` are sizes that mlx-vlm's modules have written in, ``filled``
draws the tables that begin with zeros, ``added`` counts the tokens that mlx-vlm's processor adds to the vocabulary,
after which comes the one that marks an image, ``wraps`` has a tokenizer that puts texts between marks, ``pieces``
one of SentencePiece, ``part`` is what a template calls an image, ``sees_only`` takes no prompt without one, and
``like`` names a family with the same language model, by which some tests do without this one.
"""
OMNI: dict[str, Any] = json.loads(Path(__file__).with_name("omni_families.json").read_text())
"""The same of families that hear as well."""

OTHERS: dict[str, Any] = json.loads(Path(__file__).with_name("other_architectures.json").read_text())
"""Why other vision architectures have no tiny model, and what the remaining ones of mlx-vlm make."""


def build_family(directory: Path, family: str, seed: int = 0, **config: Any) -> ModelHandle:
    """Write a model of a family and return its handle.

    Args:
        directory: Where; made if need be.
        family: One of ``FAMILIES``.
        seed: Of the weights.
        config: Entries of config.json that differ.
    """
    if family in ARCHITECTURES:
        return build(directory, family, seed, **config)
    wanted = FAMILIES[family]
    shrink_library(family)
    package = importlib.import_module(f"mlx_vlm.models.{wanted.get('package', family)}")
    if wanted.get("whole"):
        top = shrunk(package.ModelConfig, TEXT)
    else:
        text = {**shrunk(package.TextConfig, TEXT), **wanted.get("text", {})}
        vision = {**shrunk(package.VisionConfig, _EYE), **wanted.get("vision", {})}
        top = {"hidden_size": 64, "vision_config": vision}
        top |= text if wanted.get("flat") else {"text_config": text}
    files = {
        name: {**_PIXELS, **content} if name.endswith("preprocessor_config.json") else content
        for name, content in wanted["files"].items()
    }
    described = {**wanted, "config": {**top, **wanted.get("config", {})}, "files": files}
    return write_model(directory, described, seed, **{"model_type": wanted.get("model_type", family), **config})


@functools.cache
def shrink_library(family: str) -> None:
    """Replace sizes that mlx-vlm's modules of a family have written in, for this process."""
    for path, value in FAMILIES[family].get("library", {}).items():
        module, _, name = path.partition(":")
        holder: Any = importlib.import_module(f"mlx_vlm.models.{module}")
        *outer, last = name.split(".")
        for each in outer:
            holder = getattr(holder, each)
        found = getattr(holder, last)
        if isinstance(found, types.SimpleNamespace):
            vars(found).update(value)
        elif isinstance(value, dict):
            setattr(holder, last, (functools.partialmethod if outer else functools.partial)(found, **value))
        else:
            setattr(holder, last, value)


def shrunk(config: Any, small: dict[str, Any]) -> dict[str, Any]:
    """Return the small values of a dataclass's fields, but for those that are turned off by default."""
    fields = [field for field in dataclasses.fields(config) if field.name in small and field.default is not None]
    named = [field for field in dataclasses.fields(config) if field.name == "model_type" and field.default]
    named = [field for field in named if field.default is not dataclasses.MISSING]
    return {**{field.name: field.default for field in named}, **{field.name: small[field.name] for field in fields}}
