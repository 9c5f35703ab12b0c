"""Tiny embedding models with random weights: an encoder, a decoder that pools its last token, and a ColBERT."""

import functools
import json
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from mlxk.domain.models.model import ModelHandle, Origin

WINDOW = 64
TEXT = (
    "a man is eating food and a piece of bread the girl is carrying baby cheetah runs behind its prey hello world",
) * 3


def build_bert(directory: Path, seed: int = 0, **config: Any) -> ModelHandle:
    """Write a BERT of two layers that averages its tokens.

    Args:
        directory: Where; made if need be.
        seed: Of the weights.
        config: Entries of config.json that differ.
    """
    from mlx_vlm.models.bert import Model, ModelConfig

    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = _word_pieces()
    settings: dict[str, Any] = {
        "model_type": "bert",
        "architectures": ["BertModel"],
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "vocab_size": tokenizer.get_vocab_size(),
        "max_position_embeddings": WINDOW,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
        **config,
    }
    mx.random.seed(seed)
    save(directory, Model(ModelConfig.from_dict(settings)), settings)
    tokenizer.save(str(directory / "tokenizer.json"))
    special = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    _write(
        directory / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer", **special, "model_max_length": WINDOW}
    )
    _write(directory / "modules.json", [])
    (directory / "1_Pooling").mkdir(exist_ok=True)
    _write(directory / "1_Pooling" / "config.json", {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True})
    return ModelHandle(str(directory), str(directory), Origin.WORKSPACE)


def build_qwen3(directory: Path, seed: int = 0) -> ModelHandle:
    """Write a Qwen3 of two layers that takes its last token, as Qwen3-Embedding does."""
    from mlx_vlm.models.qwen3_embedding import Model, ModelConfig

    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = _byte_pairs()
    settings = qwen3_config(tokenizer, WINDOW * 4)
    mx.random.seed(seed)
    save(directory, Model(ModelConfig.from_dict(settings)), settings)
    tokenizer.save(str(directory / "tokenizer.json"))
    end = "<|endoftext|>"
    _write(
        directory / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": end, "pad_token": end},
    )
    return ModelHandle(str(directory), str(directory), Origin.WORKSPACE)


def build_colbert(directory: Path, seed: int = 0, **rules: Any) -> ModelHandle:
    """Write an LFM2 of a convolution and an attention that makes a vector of each token, as PyLate saves one.

    Args:
        directory: Where; made if need be.
        seed: Of the weights.
        rules: Entries of config_sentence_transformers.json that differ.
    """
    from mlx_vlm.models.lfm2_colbert import Model, ModelConfig

    tokenizer = Tokenizer.from_str(_word_pieces().to_str())
    tokenizer.add_special_tokens(["[Q] ", "[D] "])
    settings: dict[str, Any] = {
        "model_type": "lfm2",
        "architectures": ["Lfm2Model"],
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": WINDOW,
        "vocab_size": tokenizer.get_vocab_size(),
        "norm_eps": 1e-5,
        "conv_bias": False,
        "conv_L_cache": 3,
        "block_dim": 32,
        "block_ff_dim": 64,
        "block_multiple_of": 32,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": False,
        "layer_types": ["conv", "full_attention"],
    }
    mx.random.seed(seed)
    model = Model(ModelConfig.from_dict({**settings, "embedding_dim": 16}))
    save(directory, model, settings)
    weights: dict[str, Any] = mx.load(str(directory / "model.safetensors"))  # type: ignore[assignment]
    (directory / "1_Dense").mkdir(exist_ok=True)
    mx.save_safetensors(
        str(directory / "1_Dense" / "model.safetensors"), {"linear.weight": weights.pop("projection.weight")}
    )
    mx.save_safetensors(str(directory / "model.safetensors"), weights, metadata={"format": "mlx"})
    _write(directory / "1_Dense" / "config.json", {"in_features": 32, "out_features": 16, "bias": False})
    kinds = (("Transformer", ""), ("Dense", "1_Dense"))
    _write(directory / "modules.json", [{"type": f"pylate.models.{kind}", "path": folder} for kind, folder in kinds])
    stated = {"query_prefix": "[Q] ", "document_prefix": "[D] ", "query_length": 16, "document_length": 24, **rules}
    _write(directory / "config_sentence_transformers.json", stated)
    tokenizer.save(str(directory / "tokenizer.json"))
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "mask_token": "[MASK]"}
    _write(directory / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **special})
    return ModelHandle(str(directory), str(directory), Origin.WORKSPACE)


def qwen3_config(tokenizer: Tokenizer, window: int) -> dict[str, Any]:
    """Return the config of a Qwen3 of two layers."""
    return {
        "model_type": "qwen3",
        "architectures": ["Qwen3ForCausalLM"],
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "rms_norm_eps": 1e-6,
        "vocab_size": tokenizer.get_vocab_size(),
        "max_position_embeddings": window,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
    }


def save(directory: Path, model: Any, settings: dict[str, Any], spread: float = 0.5) -> None:
    """Write random weights of a standard deviation for a model, and its config."""
    directory.mkdir(parents=True, exist_ok=True)
    weights = {
        name: mx.random.normal(value.shape) * spread if value.ndim > 1 else value
        for name, value in tree_flatten(model.parameters())
    }
    mx.save_safetensors(str(directory / "model.safetensors"), weights, metadata={"format": "mlx"})
    _write(directory / "config.json", settings)


@functools.cache
def _word_pieces() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(
        TEXT, trainers.WordPieceTrainer(vocab_size=200, special_tokens=special, show_progress=False)
    )
    marks = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=marks)
    return tokenizer


@functools.cache
def _byte_pairs() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    end = "<|endoftext|>"
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=[end], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, tokenizer.token_to_id(end))]
    )
    return tokenizer


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))
