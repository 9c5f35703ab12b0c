"""Tiny vision models, of real architectures, made in milliseconds: random fp32 weights, a chat template.

Everything else is as in ``tiny_models``; the weights are drawn wide here, too, so that an answer depends on the image.
"""

import copy
import json
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map_with_path
from models.sentencepiece_tokenizer import PieceTokenizer
from models.vision_tokenizer import tokenizer_with

from mlxk.adapters.mlx import library_imports  # noqa: F401 - imports mlx-lm without its side effects
from mlxk.domain.models.model import ModelHandle, Origin

"""Tokens at most."""

CLIP_MARK = "{%- elif part.type == 'video' -%}CLIP"
"""What the templates have of architectures with tokens for video."""

TEMPLATE = (
    "{%- for message in messages -%}<|im_start|>{{ message.role }}\n"
    "{%- if message.content is string -%}{{ message.content }}{%- else -%}{%- for part in message.content -%}"
    "{%- if part.type == 'image' -%}IMAGE{%- elif part.type == 'audio' -%}SOUND"
    "{%- elif part.type == 'text' -%}{{ part.text }}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}<|im_end|>\n{% endfor -%}"
    "{%- if add_generation_prompt -%}<|im_start|>assistant\n{%- endif -%}"
)

_PIXELS: dict[str, Any] = {
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
    "rescale_factor": 1 / 255,
}
_TEXT: dict[str, Any] = {
    "head_dim": 16,
    "hidden_size": 64,
    "intermediate_size": 128,
    "max_position_embeddings": 4096,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}
_EYE: dict[str, Any] = {
    "hidden_size": 32,
    "image_size": 64,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_channels": 3,
    "num_hidden_layers": 2,
    "patch_size": 16,
}
_QWEN = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_end_token_id": "<|vision_end|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_token_id": "<|vision_pad|>",
}
_GEMMA4 = {
    "audio_token": "<|audio|>",
    "boa_token": "<|audio>",
    "boi_token": "<|image>",
    "eoa_token": "<audio|>",
    "eoi_token": "<image|>",
    "image_token": "<|image|>",
    "video_token": "<|video|>",
}
_GEMMA3 = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}


def _qwen(kind: str) -> dict[str, Any]:
    eye = {"depth": 2, "in_channels": 3, "model_type": kind, "num_heads": 2, "spatial_merge_size": 2}
    eye |= {"temporal_patch_size": 2, "patch_size": 16 if kind == "qwen3_vl" else 14}
    wide = {"hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 64}
    if kind == "qwen2_vl":
        eye |= {"embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2, "spatial_patch_size": 14}
    elif kind == "qwen2_5_vl":
        eye |= wide | {"fullatt_block_indexes": [1], "in_chans": 3, "spatial_patch_size": 14}
        eye |= {"tokens_per_second": 2, "window_size": 112}
    else:
        eye |= wide | {"deepstack_visual_indexes": [0], "num_position_embeddings": 64}
    text = {**_TEXT, "rope_scaling": {"mrope_section": [2, 3, 3], "type": "mrope"}}
    side = eye["patch_size"] * 2
    pixels = {
        **_PIXELS,
        "image_processor_type": "Qwen2VLImageProcessor",
        "max_pixels": 64 * side**2,
        "merge_size": 2,
        "min_pixels": 4 * side**2,
        "patch_size": eye["patch_size"],
        "processor_class": f"{kind}Processor",
        "temporal_patch_size": 2,
    }
    config = {"text_config": {**text, "model_type": "qwen3_vl_text"}} if kind == "qwen3_vl" else text
    return {
        "config": {**config, "vision_config": eye},
        "files": {"preprocessor_config.json": pixels, "video_preprocessor_config.json": pixels},
        "clip": "<|vision_start|><|video_pad|><|vision_end|>",
        "mark": "<|vision_start|><|image_pad|><|vision_end|>",
        "tokens": _QWEN,
    }


def _splitting(kind: str) -> dict[str, Any]:
    return {
        "config": {
            "scale_factor": 2,
            "text_config": {**_TEXT, "model_type": "llama"},
            "vision_config": {**_EYE, "layer_norm_eps": 1e-6, "model_type": f"{kind}_vision"},
        },
        "files": {
            "preprocessor_config.json": {
                **_PIXELS,
                "do_image_splitting": False,
                "do_pad": True,
                "image_processor_type": "Idefics3ImageProcessor",
                "max_image_size": {"longest_edge": 64},
                "size": {"longest_edge": 64},
            },
            "processor_config.json": {"image_seq_len": 4, "processor_class": "Idefics3Processor"},
        },
        "mark": "<image>",
        "special": ["<fake_token_around_image>", "<global-img>", "<end_of_utterance>"],
        "tokens": {"image_token_id": "<image>", "image_token_index": "<image>"},
    }


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "qwen2_vl": _qwen("qwen2_vl"),
    "qwen2_5_vl": _qwen("qwen2_5_vl"),
    "qwen3_vl": _qwen("qwen3_vl"),
    "pixtral": {
        "config": {
            "text_config": {**_TEXT, "model_type": "mistral"},
            "vision_config": {**_EYE, "head_dim": 16, "model_type": "pixtral", "rope_theta": 10000.0},
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "full",
        },
        "files": {
            "preprocessor_config.json": {
                **_PIXELS,
                "image_processor_type": "PixtralImageProcessor",
                "patch_size": {"height": 16, "width": 16},
                "size": {"longest_edge": 64},
            },
            "processor_config.json": {
                "image_break_token": "[IMG_BREAK]",
                "image_end_token": "[IMG_END]",
                "image_token": "[IMG]",
                "patch_size": 16,
                "processor_class": "PixtralProcessor",
            },
        },
        "mark": "[IMG]",
        "special": ["[IMG_BREAK]", "[IMG_END]"],
        "tokens": {"image_token_index": "[IMG]"},
    },
    "gemma3": {
        "config": {
            "hidden_size": 64,
            "mm_tokens_per_image": 4,
            "text_config": {
                **_TEXT,
                "mm_tokens_per_image": 4,
                "model_type": "gemma3_text",
                "query_pre_attn_scalar": 16,
                "rope_local_base_freq": 10000.0,
                "sliding_window": 64,
                "sliding_window_pattern": 2,
            },
            "vision_config": {**_EYE, "image_size": 56, "model_type": "siglip_vision_model", "patch_size": 14},
        },
        "files": {
            "preprocessor_config.json": {
                **_PIXELS,
                "image_processor_type": "Gemma3ImageProcessor",
                "image_seq_length": 4,
                "size": {"height": 56, "width": 56},
            },
            "processor_config.json": {"image_seq_length": 4, "processor_class": "Gemma3Processor"},
        },
        "mark": "<start_of_image>",
        "named": _GEMMA3,
        "tokens": {
            "boi_token_index": "<start_of_image>",
            "eoi_token_index": "<end_of_image>",
            "image_token_index": "<image_soft_token>",
        },
    },
    "gemma4": {
        "config": {
            "audio_config": {
                "hidden_size": 32,
                "num_attention_heads": 2,
                "num_hidden_layers": 1,
                "output_proj_dims": 32,
                "subsampling_conv_channels": [8, 4],
                "use_clipped_linears": False,
            },
            "hidden_size": 64,
            "text_config": {
                **_TEXT,
                "global_head_dim": 16,
                "hidden_size_per_layer_input": 16,
                "layer_types": ["sliding_attention", "full_attention"],
                "model_type": "gemma4_text",
                "num_key_value_heads": 1,
                "num_kv_shared_layers": 0,
                "sliding_window": 64,
                "use_double_wide_mlp": False,
                "vocab_size_per_layer_input": 0,
            },
            "tie_word_embeddings": True,
            "vision_config": {
                **_EYE,
                "default_output_length": 4,
                "global_head_dim": 16,
                "head_dim": 16,
                "model_type": "gemma4_vision",
                "num_key_value_heads": 2,
                "pooling_kernel_size": 2,
                "position_embedding_size": 64,
            },
            "vision_soft_tokens_per_image": 4,
        },
        "files": {
            "processor_config.json": {
                "audio_seq_length": 750,
                "image_processor": {"max_soft_tokens": 4, "patch_size": 16, "pooling_kernel_size": 2},
                "processor_class": "Gemma4Processor",
            }
        },
        "mark": "<|image|>",
        "named": _GEMMA4,
        "sound": "<|audio|>",
        "tokens": {
            "audio_token_id": "<|audio|>",
            "boa_token_id": "<|audio>",
            "boi_token_id": "<|image>",
            "eoa_token_id": "<audio|>",
            "eoi_token_id": "<image|>",
            "image_token_id": "<|image|>",
            "video_token_id": "<|video|>",
        },
    },
    "mllama": {
        "config": {
            "text_config": {
                **_TEXT,
                "cross_attention_layers": [1],
                "model_type": "mllama_text_model",
                "num_hidden_layers": 3,
                "tie_word_embeddings": False,
            },
            "vision_config": {
                **_EYE,
                "image_size": 28,
                "intermediate_layers_indices": [0, 1],
                "max_num_tiles": 4,
                "model_type": "mllama_vision_model",
                "norm_eps": 1e-5,
                "num_global_layers": 1,
                "patch_size": 14,
                "vision_output_dim": 96,
            },
        },
        "files": {
            "preprocessor_config.json": {
                **_PIXELS,
                "do_pad": True,
                "image_processor_type": "MllamaImageProcessor",
                "max_image_tiles": 4,
                "size": {"height": 28, "width": 28},
            },
            "processor_config.json": {"processor_class": "MllamaProcessor"},
        },
        "mark": "<|image|>",
        "tokenizer": {"bos_token": "<|endoftext|>"},
        "tokens": {"image_token_index": "<|image|>"},
    },
    "smolvlm": _splitting("smolvlm"),
    "idefics3": _splitting("idefics3"),
}
"""What each architecture's files say, and by which tokens it marks images and sounds."""


def _template(wanted: dict[str, Any]) -> str:
    text = TEMPLATE.replace("{%- elif part.type == 'text'", CLIP_MARK + "{%- elif part.type == 'text'")
    text = text.replace("CLIP", wanted["clip"]) if "clip" in wanted else TEMPLATE
    text = text.replace("part.type == 'image'", f"part.type == '{wanted.get('part', 'image')}'")
    return text.replace("IMAGE", wanted["mark"]).replace("SOUND", wanted.get("sound", ""))


def build(
    directory: Path, architecture: str = "qwen2_vl", seed: int = 0, *, words: tuple[str, ...] = (), **config: Any
) -> ModelHandle:
    """Write a model of one of ``ARCHITECTURES``; ``words`` are one token each, ``config`` are entries that differ."""
    wanted = ARCHITECTURES[architecture]
    named = {**wanted, "special": (*wanted.get("special", ()), *words)}
    return write_model(directory, named, seed, model_type=architecture, **config)


def write_model(directory: Path, wanted: dict[str, Any], seed: int, **config: Any) -> ModelHandle:
    """Write a model as an entry of ``ARCHITECTURES`` describes it; arguments as those of ``build``."""
    directory.mkdir(parents=True, exist_ok=True)
    names = [*wanted["tokens"].values(), *wanted.get("named", {}).values(), *wanted.get("special", ())]
    special = tuple(name for name in dict.fromkeys(names) if name not in wanted.get("ids", {}))
    tokenizer: Any = tokenizer_with(special, tuple(wanted.get("ids", {}).items()), wraps=wanted.get("wraps", False))
    if wanted.get("pieces"):
        tokenizer = PieceTokenizer(special)
    ends = [tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")]
    settings: dict[str, Any] = {
        **copy.deepcopy(wanted["config"]),
        **{name: tokenizer.token_to_id(token) for name, token in wanted["tokens"].items()},
        "eos_token_id": ends[0],
        "pad_token_id": ends[1],
        **config,
    }
    size = max(tokenizer.get_vocab().values()) + 1 + wanted.get("added", 0)
    _state_vocabulary(settings, size)
    if "added" in wanted:
        settings["image_token_id"] = size
    named = wanted.get("named", {})
    _write(directory / "config.json", settings)
    _write(directory / "generation_config.json", {"eos_token_id": ends, "temperature": 0.7, "top_p": 0.9})
    tokenizer.save(str(directory / "tokenizer.json"))
    _write(
        directory / "tokenizer_config.json",
        {
            **({"chat_template": _template(wanted)} if wanted.get("template", True) else {}),
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|im_end|>",
            "model_max_length": 4096,
            "pad_token": "<|endoftext|>",
            "tokenizer_class": "PreTrainedTokenizerFast",
            **wanted.get("tokenizer", {}),
            **named,
            **({"extra_special_tokens": named} if named else {}),
        },
    )
    for name, content in wanted["files"].items():
        _write(directory / name, content)
    _weigh(directory, settings, seed, filled=wanted.get("filled", False))
    return ModelHandle(str(directory), str(directory), Origin.WORKSPACE)


def _state_vocabulary(settings: dict[str, Any], size: int) -> None:
    """Let every part of a config know how many tokens there are: mlx-vlm's own detokenizers fail at one more."""
    for section in (settings, settings.get("text_config", settings), settings.get("decoder", settings)):
        section["vocab_size"] = size
        if "vocab_size_per_layer_input" in section:
            section["vocab_size_per_layer_input"] = size


def _weigh(directory: Path, settings: dict[str, Any], seed: int, *, filled: bool) -> None:
    """Draw the weights; ``filled`` has tables that an architecture begins with zeros drawn as well."""
    from mlx_vlm.utils import get_model_and_args, update_module_configs

    stated = {"audio_config": {}, "text_config": {}, "vision_config": {}, **json.loads(json.dumps(settings))}
    architecture, _ = get_model_and_args(stated)
    parts = ["text", "vision", "perceiver", "projector", "audio"]
    config = update_module_configs(architecture.ModelConfig.from_dict(stated), architecture, stated, parts)
    mx.random.seed(seed)
    model = architecture.Model(config)
    model.update(tree_map_with_path(_drawn if filled else _widened, model.parameters()))
    mx.eval(model.parameters())
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(directory / "model.safetensors"), weights, metadata={"format": "mlx"})


def _drawn(name: str, weight: Any) -> Any:
    empty = weight.ndim > 1 and mx.issubdtype(weight.dtype, mx.floating) and not weight.any()
    return _widened(name, mx.random.normal(weight.shape) * 0.3 if empty else weight)


def _widened(name: str, weight: Any) -> Any:
    if name.endswith("_gate"):
        return mx.ones(weight.shape)  # closed gates would hide the images
    return (weight * 2).astype(mx.float32) if mx.issubdtype(weight.dtype, mx.floating) else weight


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2))
