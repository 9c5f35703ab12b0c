"""Tiny models of real architectures, made in milliseconds: random fp32 weights, a trained tokenizer, a chat template.

The weights are drawn wide, so that logits differ clearly and greedy answers vary with their prompts.
"""

import functools
import importlib
import json
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from mlxk.adapters.mlx import library_imports  # noqa: F401 - imports mlx-lm without its side effects
from mlxk.domain.models.model import ModelHandle, Origin

VOCABULARY = 512
"""Tokens at most; the corpus gives a few less."""
CORPUS = (
    "The quick brown fox jumps over the lazy dog. Hello world! How are you today? Count: 1, 2, 3, 4, 5. "
    'Die Sonne scheint über München; grüße aus der Küche. {"name": "value", "list": [1, 2, 3]} 日本語 🙂\n'
) * 3
TEMPLATE = (
    "{%- for message in messages -%}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor -%}"
    "{%- if add_generation_prompt -%}<|im_start|>assistant\n{%- endif -%}"
)

_SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-6,
    "norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    # Two layers with a sliding window of 32 tokens, then one that sees everything.
    "gemma3_text": {
        "num_hidden_layers": 3,
        "sliding_window": 32,
        "sliding_window_pattern": 3,
        "query_pre_attn_scalar": 16,
    },
    # A short convolution with a state that cannot be trimmed, and attention.
    "lfm2": {
        "layer_types": ["conv", "full_attention"],
        "conv_bias": False,
        "conv_L_cache": 3,
        "block_dim": 64,
        "block_multiple_of": 32,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": False,
    },
    # A recurrent state only.
    "mamba2": {
        "num_heads": 8,
        "head_dim": 16,
        "intermediate_size": 128,
        "state_size": 16,
        "layer_norm_epsilon": 1e-5,
        "conv_kernel": 4,
        "n_groups": 1,
        "use_bias": False,
        "use_conv_bias": True,
        "time_step_limit": [0.0, 100.0],
        "time_step_rank": "auto",
    },
}
"""What each architecture's config says beyond the common shape."""


def build(
    directory: Path, architecture: str = "llama", seed: int = 0, reasoning: bool = False, **config: Any
) -> ModelHandle:
    """Write a model and return its handle.

    Args:
        directory: Where; made if need be.
        architecture: One of ``ARCHITECTURES``, or another one of mlx-lm of which ``config`` says the rest.
        seed: Of the weights.
        reasoning: Whether the vocabulary has the tags of a model that reasons.
        config: Entries of config.json that differ.
    """
    from mlx_lm.utils import save_model

    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(reasoning)
    ends = [tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")]
    vocabulary = {"vocab_size": tokenizer.get_vocab_size()}
    settings = {
        **_SHAPE,
        **vocabulary,
        **ARCHITECTURES.get(architecture, {}),
        "model_type": architecture,
        "eos_token_id": ends[0],
        **config,
    }
    if "text_config" in settings:
        settings["text_config"] = {**settings["text_config"], **vocabulary}
    module = importlib.import_module(f"mlx_lm.models.{architecture}")
    mx.random.seed(seed)
    network = module.Model(module.ModelArgs.from_dict(settings))
    network.update(tree_map(lambda weight: (weight * 2).astype(mx.float32), network.parameters()))
    mx.eval(network.parameters())
    save_model(directory, network)
    _write(directory / "config.json", settings)
    _write(directory / "generation_config.json", {"eos_token_id": ends, "temperature": 0.7, "top_p": 0.9})
    tokenizer.save(str(directory / "tokenizer.json"))
    _write(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "clean_up_tokenization_spaces": False,
            "model_max_length": settings["max_position_embeddings"],
            "chat_template": TEMPLATE,
        },
    )
    return ModelHandle(str(directory), str(directory), Origin.WORKSPACE)


ADAPTED_LAYERS = {"lora": ["self_attn.q_proj", "mlp.up_proj"], "dora": ["self_attn.v_proj"]}


def write_adapter(directory: Path, handle: ModelHandle, kind: str = "lora", seed: int = 1) -> Path:
    """Write an adapter with random weights, as mlx-lm trains them.

    Args:
        directory: Where; made.
        handle: The model.
        kind: ``lora``, ``dora`` or ``full``.
        seed: Of the weights.
    """
    import mlx_lm
    from mlx.utils import tree_flatten
    from mlx_lm.tuner.utils import linear_to_lora_layers

    network, _ = mlx_lm.load(handle.directory)
    parameters = {"rank": 4, "scale": 6.0, "dropout": 0.0, "keys": ADAPTED_LAYERS.get(kind, [])}
    directory.mkdir()
    config = {"model": handle.directory, "fine_tune_type": kind, "num_layers": 2, "lora_parameters": parameters}
    mx.random.seed(seed)
    if kind == "full":
        changed = {"model.layers.1.mlp.up_proj.weight": network.layers[1].mlp.up_proj.weight * 1.7}
    else:
        linear_to_lora_layers(network, 2, parameters, use_dora=kind == "dora")
        leaves = [(name, each) for name, each in tree_flatten(network.parameters()) if "lora_" in name]
        changed = {name: mx.random.normal(each.shape) * 0.4 for name, each in leaves}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    mx.save_safetensors(str(directory / "adapters.safetensors"), changed)
    return directory


@functools.cache
def _tokenizer(reasoning: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 2,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([CORPUS], trainer)
    # Added but not special, so that decoding keeps them.
    tags = ("<think>", "</think>") if reasoning else ("<fim>", "</fim>")
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in tags])
    return tokenizer


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2))
