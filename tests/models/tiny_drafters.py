"""Tiny drafters of each kind, for the tiny models; and models of which one is always right."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map
from mlx_vlm.speculative.drafters import eagle3, glm_moe_dsa_mtp, qwen3_5_mtp, qwen3_dflash

from mlxk.domain.models.model import ModelHandle, Origin

HYBRID = {
    "model_type": "qwen3_5",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_conv_kernel_dim": 4,
    "full_attention_interval": 2,
    "tie_word_embeddings": True,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 4096,
    "rope_parameters": {
        "type": "default",
        "mrope_section": [2, 1, 1],
        "rope_theta": 10000,
        "partial_rotary_factor": 0.25,
    },
}
"""A model with a recurrent state and attention, as the text section of its config."""


EXPERTS: dict[str, Any] = {
    "index_head_dim": 16,
    "index_n_heads": 4,
    "index_topk": 8,
    "moe_intermediate_size": 32,
    "num_key_value_heads": 4,
    "n_shared_experts": 1,
    "n_routed_experts": 4,
    "routed_scaling_factor": 1.0,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "qk_nope_head_dim": 16,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "norm_topk_prob": True,
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "moe_layer_freq": 1,
    "first_k_dense_replace": 1,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    "attention_bias": False,
    "tie_word_embeddings": False,
}
"""A model of experts, whose attention chooses keys by an indexer; its cache is a list of two for each layer."""

_SILENT = ("o_proj.weight", "out_proj.weight", "down_proj.weight")
"""The ends of what layers add to their input."""


def repeating(handle: ModelHandle) -> ModelHandle:
    """Change a model so that it repeats the last token of its prompt: its layers add nothing."""
    path = str(Path(handle.directory, "model.safetensors"))
    weights: Any = mx.load(path)
    weights = {name: mx.zeros_like(each) if name.endswith(_SILENT) else each for name, each in weights.items()}
    mx.save_safetensors(path, weights, {"format": "mlx"})
    return handle


def build_drafter(
    directory: Path, kind: str, model: ModelHandle, *, right: bool = False, gap: int = 5, **wanted: Any
) -> ModelHandle:
    """Write a drafter for a model.

    Args:
        directory: Where; made.
        kind: ``eagle3``, ``dflash``, ``mtp`` (of Qwen 3.5) or ``glm``, which is MTP, too, and never right.
        model: A model of these tests.
        right: Whether it proposes what a model that repeats itself says; DFlash needs to know the token, see ``gap``.
        gap: The token that DFlash takes for those that it does not know.
        wanted: Entries of config.json that differ.
    """
    stated = json.loads(Path(model.directory, "config.json").read_text())
    text = stated.get("text_config", stated)
    config = {**_CONFIGS[kind](text), **wanted}
    if kind == "dflash":
        config["dflash_config"]["mask_token_id"] = gap
    package: Any = {"eagle3": eagle3, "dflash": qwen3_dflash, "mtp": qwen3_5_mtp, "glm": glm_moe_dsa_mtp}[kind]
    mx.random.seed(11)
    network = package.Model(package.ModelConfig.from_dict(dict(config)))
    network.update(tree_map(lambda each: each * 2 if each.dtype == mx.float32 else each, network.parameters()))
    weights = dict(tree_flatten(network.parameters()))
    if right:
        weights = _echoing(weights, model)
    directory.mkdir()
    mx.save_safetensors(str(directory / "model.safetensors"), weights, {"format": "mlx"})
    (directory / "config.json").write_text(json.dumps(config))
    return ModelHandle(str(directory), str(directory), Origin.WORKSPACE)


def _echoing(weights: dict[str, mx.array], model: ModelHandle) -> dict[str, mx.array]:
    """Have a drafter propose the token that it read last; DFlash proposes the one that it takes for a gap."""
    own: Any = mx.load(str(Path(model.directory, "model.safetensors")))
    embedding = next(each for name, each in own.items() if name.endswith("embed_tokens.weight"))
    size, parts = embedding.shape[1], weights["fc.weight"].shape[1] // embedding.shape[1]
    found = {name: mx.zeros_like(each) if name.endswith(_SILENT) else each for name, each in weights.items()}
    found["fc.weight"] = mx.concatenate([mx.eye(size), *[mx.zeros((size, size))] * (parts - 1)], axis=1)
    if "lm_head.weight" in found:
        found["lm_head.weight"] = embedding
    return found


def _eagle3(text: dict[str, Any]) -> dict[str, Any]:
    names = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size")
    layer = {"model_type": "llama", "num_hidden_layers": 1, **{name: text[name] for name in names}}
    return {
        "speculators_model_type": "eagle3",
        "transformer_layer_config": layer,
        "draft_vocab_size": text["vocab_size"],
        "target_hidden_size": text["hidden_size"],
        "eagle_aux_hidden_state_layer_ids": [1, 2, 2],
        "block_size": 4,
    }


def _dflash(text: dict[str, Any]) -> dict[str, Any]:
    names = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size")
    settings = {"target_layer_ids": [0, 1], "num_target_layers": 2}
    return {
        "model_type": "qwen3",
        "architectures": ["DFlashDraftModel"],
        "num_hidden_layers": 1,
        "block_size": 5,
        "dflash_config": settings,
        **{name: text[name] for name in names},
    }


def _mtp(text: dict[str, Any]) -> dict[str, Any]:
    return {"model_type": "qwen3_5_mtp", "block_size": 4, "text_config": {**text, "mtp_num_hidden_layers": 1}}


def _glm(text: dict[str, Any]) -> dict[str, Any]:
    return {"model_type": "glm_moe_dsa_mtp", "block_size": 3, "text_config": text}


_CONFIGS = {"eagle3": _eagle3, "dflash": _dflash, "mtp": _mtp, "glm": _glm}
