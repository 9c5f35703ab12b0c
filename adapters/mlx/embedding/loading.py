"""Loading an embedding model from a directory, on the owner thread: weights, tokenizer, pooling and prefixes."""

import os
import re
from collections.abc import Mapping
from typing import Any

import mlx.nn as nn
from mlx_vlm import embedding_loader
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from mlxk.adapters.mlx.embedding.encoding import EmbeddingModel, TextEncoder, prompts_of
from mlxk.adapters.mlx.loading.load_errors import translated
from mlxk.adapters.mlx.loading.model_files_check import object_in
from mlxk.adapters.mlx.loading.text_model import read_config, weight_bytes
from mlxk.adapters.mlx.loading.untrusted_code import offline, refuse_untrusted_code
from mlxk.adapters.mlx.loading.weights_on_disk import loading_directory
from mlxk.adapters.mlx.prompting.detokenizer import disable_word_cache
from mlxk.domain.errors import (
    IncompatibleModelError,
    UnhealthyModelError,
)
from mlxk.domain.models.model import ModelHandle

_UNSET_LENGTH = 10**9
"""Tokenizers without a known window state a huge number."""

_DEFAULT_WINDOW = 512

_SENTENCE_CONFIGS = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
"""Where sentence-transformers keeps the limit, by the names that it has had."""

_SHORTENABLE_ARCHITECTURES = frozenset({"qwen3", "qwen3_embedding", "gemma3_text", "gemma3_embedding"})
_SHORTENABLE_NAMES = re.compile(r"mxbai-embed-(large|2d)|nomic-embed-text-v1\.5|arctic-embed-.*v(1\.5|2)")
"""Names of models with Matryoshka training whose config does not state it."""

_VOCABULARIES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "spiece.model",
)
"""Vocabulary files; without any of them transformers builds a tokenizer without a vocabulary."""

_FIRST_TOKEN = re.compile(r"\bbge\b|\bmxbai\b")
"""Families with pooling by the first token; conversions often lack the file that states it."""


def load_embedding_model(handle: ModelHandle, adapter: str | None = None) -> EmbeddingModel:
    """Load a model.

    Args:
        handle: The model.
        adapter: Not used for embedding models.

    Raises:
        UntrustedModelCodeError: Loading would execute code that came with it.
        UnhealthyModelError: Files are missing or damaged.
        IncompatibleModelError: mlx-vlm does not support the architecture or the pooling.
        BackendNotInstalledError: A package that this architecture needs is not installed.
        ExecutionError: Loading failed for another reason, such as lack of memory.
    """
    refuse_untrusted_code(handle)
    config = read_config(handle)
    if not any(os.path.exists(os.path.join(handle.directory, name)) for name in _VOCABULARIES):
        raise UnhealthyModelError(f"'{handle.name}' lacks its tokenizer.", hint="Download the model again.")
    with translated(handle, "has an architecture that makes no vectors"), offline():
        network, tokenizer = _load(handle)
        pooling = _pooling(handle, config)
        if pooling is not None:
            network.pooling_config = pooling
        encoder = _encoder(handle, config, tokenizer, pooling)
    return EmbeddingModel(handle, weight_bytes(handle.directory), network, encoder, _is_shortenable(handle, config))


def _load(handle: ModelHandle) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    with loading_directory(handle) as directory:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        disable_word_cache(tokenizer)
        return embedding_loader.load_embedding_model(directory), tokenizer


def _encoder(
    handle: ModelHandle,
    config: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    pooling: Mapping[str, Any] | None,
) -> TextEncoder:
    stated = (object_in(handle, "config_sentence_transformers.json") or {}).get("prompts")
    prompts = prompts_of(handle.name, _architecture(config), stated if isinstance(stated, dict) else {})
    last = pooling is not None and (
        "lasttoken" in str(pooling.get("pooling_mode")) or pooling.get("pooling_mode_lasttoken")
    )
    vocabulary = _text_config(config).get("vocab_size")
    return TextEncoder(
        tokenizer,
        prompts,
        _window(handle, config, tokenizer),
        vocabulary if isinstance(vocabulary, int) else len(tokenizer),
        tokenizer.eos_token_id if last else None,
    )


def _pooling(handle: ModelHandle, config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the pooling config; None for the architecture's default."""
    stated = object_in(handle, "1_Pooling/config.json") or {}
    if stated.get("include_prompt") is False:
        raise IncompatibleModelError(f"'{handle.name}' leaves its prefix out of the vector, which is not supported.")
    if not stated and _architecture(config) == "bert" and _FIRST_TOKEN.search(handle.short_name.lower()):
        return {"pooling_mode": "cls"}
    return stated or None


def _window(handle: ModelHandle, config: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the smallest limit that the model states: its makers cut texts there, and so are its vectors defined."""
    positions = _text_config(config).get("max_position_embeddings")
    known = [int(tokenizer.model_max_length)] if tokenizer.model_max_length < _UNSET_LENGTH else []
    if isinstance(positions, int) and positions > 0:
        # RoBERTa's positions begin after the padding token.
        offset = int(config.get("pad_token_id") or 0) + 1 if "roberta" in _architecture(config) else 0
        known.append(positions - offset)
    for name in _SENTENCE_CONFIGS:
        stated = (object_in(handle, name) or {}).get("max_seq_length")
        if isinstance(stated, int) and not isinstance(stated, bool) and stated > 0:
            known.append(stated)
            break
    return min(known, default=_DEFAULT_WINDOW)


def _is_shortenable(handle: ModelHandle, config: Mapping[str, Any]) -> bool:
    stated = any(config.get(key) for key in ("matryoshka_dimensions", "matryoshka_dims", "is_matryoshka"))
    return (
        stated
        or _architecture(config) in _SHORTENABLE_ARCHITECTURES
        or _SHORTENABLE_NAMES.search(handle.short_name.lower()) is not None
    )


def _architecture(config: Mapping[str, Any]) -> str:
    return str(config.get("model_type", "")).lower().replace("-", "_")


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    nested = config.get("text_config")
    return {**config, **nested} if isinstance(nested, dict) else config
