"""Loading an embedding model from a directory, on the owner thread: weights, tokenizer, pooling and prefixes."""

import os
import re
from collections.abc import Mapping
from typing import Any

import mlx.nn as nn
from mlx_vlm import embedding_loader, encoder_loader
from mlx_vlm.models.idefics3.processing_idefics3 import Idefics3Processor
from mlx_vlm.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
from mlx_vlm.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from mlxk.adapters.mlx.embedding.encoding import (
    MODES,
    EmbeddingModel,
    InputNetwork,
    Prompts,
    TextEncoder,
    prompts_of,
    stated_modes,
)
from mlxk.adapters.mlx.embedding.images import FAMILIES, GemmaImages, ImageNetwork
from mlxk.adapters.mlx.embedding.networks import ColbertNetwork, ColbertRules, TextNetwork
from mlxk.adapters.mlx.loading.load_errors import translated
from mlxk.adapters.mlx.loading.model_files import (
    json_in,
    loading_directory,
    object_in,
    offline,
    quietly,
    read_config,
    refuse_untrusted_code,
    weight_bytes,
)
from mlxk.adapters.mlx.loading.widening import widen
from mlxk.adapters.mlx.prompting.detokenizer import disable_word_cache
from mlxk.domain.errors import IncompatibleModelError, UnhealthyModelError
from mlxk.domain.models.footprint import WeightForm
from mlxk.domain.models.model import ModelHandle
from mlxk.domain.models.snapshot import PREPROCESSOR_CONFIG, PROCESSOR_CONFIG

_EMBEDDING_NAMES = {"qwen3_vl": "qwen3_vl_embedding"}
"""mlx-vlm's embedding model for architectures whose name it does not have."""

PROCESSORS = {
    "qwen3_vl_embedding": Qwen3VLProcessor,
    "colqwen2_5": Qwen2_5_VLProcessor,
    "colidefics3": Idefics3Processor,
}
"""mlx-vlm's processors by architecture; a model's files may name classes that mlx-vlm does not have."""

_UNSET_LENGTH = 10**9
"""Tokenizers without a known window have a larger ``model_max_length``."""

_DEFAULT_WINDOW = 512

_SENTENCE_CONFIGS = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
"""Files of sentence-transformers with ``max_seq_length``, by all names they have had."""

_MATRYOSHKA = ("matryoshka_dimensions", "matryoshka_dims")
"""Config entries that list the lengths to which vectors may be truncated."""

_SHORTENABLE_ARCHITECTURES = frozenset(
    {
        "qwen3",
        "qwen3_embedding",
        "qwen3_vl",
        "qwen3_vl_embedding",
        "gemma3_text",
        "gemma3_embedding",
        "embedding_gemma2",
    }
)
_SHORTENABLE_NAMES = re.compile(r"mxbai-embed-(large|2d)|nomic-embed-text-v1\.5|arctic-embed-.*v(1\.5|2)")
"""Names of models with Matryoshka training whose config does not state it."""

_VOCABULARY_FILES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "spiece.model",
)
"""Without any of these files transformers builds a tokenizer without a vocabulary."""

_MODES_OF_NETWORKS = frozenset({"cls", "mean", "max", "lasttoken"})
"""Pooling modes that mlx-vlm's networks have themselves."""

_FIRST_TOKEN = re.compile(r"\bbge\b|\bmxbai\b")
"""Names of families that pool by the first token; conversions often lack the pooling config."""


def load_embedding_model(handle: ModelHandle, form: WeightForm = WeightForm.STORED) -> EmbeddingModel:
    """Load a model.

    Args:
        handle: The model.
        form: How to hold its weights.

    Raises:
        UntrustedModelCodeError: Loading would execute code that came with it.
        UnhealthyModelError: Files are missing or damaged.
        IncompatibleModelError: mlx-vlm does not support the architecture or the pooling.
        BackendNotInstalledError: A package that this architecture needs is not installed.
        ExecutionError: Loading failed for another reason, such as lack of memory.
    """
    refuse_untrusted_code(handle)
    config = read_config(handle)
    require_vocabulary(handle)
    family = _EMBEDDING_NAMES.get(_architecture(config), _architecture(config))
    with translated(handle, "has an architecture that makes no vectors"), offline(), quietly():
        if family in FAMILIES:
            network, inputs = _load_with_images(handle, config, family)
        else:
            network, inputs = _load_text(handle, config)
        size = widen(network, form) if form.widened else weight_bytes(handle.directory)
    return EmbeddingModel(handle, size, inputs, _is_shortenable(handle, config), _lengths(config))


def _load_with_images(handle: ModelHandle, config: Mapping[str, Any], family: str) -> tuple[nn.Module, InputNetwork]:
    with loading_directory(handle) as directory:
        network = encoder_loader.load_encoder_model(directory, model_remapping=_EMBEDDING_NAMES, config=dict(config))
        processor = PROCESSORS[family].from_pretrained(str(directory), trust_remote_code=False)
    disable_word_cache(processor)
    tokenizer = processor.tokenizer
    prompts = _prompts(handle, config)
    window = window_of(handle, config, tokenizer)
    return network, ImageNetwork(network, processor, FAMILIES[family], prompts, window, len(tokenizer))


def _load_text(handle: ModelHandle, config: Mapping[str, Any]) -> tuple[nn.Module, InputNetwork]:
    network, tokenizer = _load(handle)
    modes = _pooling(handle, config)
    _require_known_modules(handle, network)
    if hasattr(network, "projection"):
        rules = ColbertRules.of(_sentence_transformers(handle))
        prompts, window = _prompts(handle, config), window_of(handle, config, tokenizer)
        return network, ColbertNetwork(network, tokenizer, prompts, rules, window, _vocabulary(config, tokenizer))
    pooling = _place_pooling(handle, network, modes)
    images = _gemma_images(handle, config) if getattr(network, "vision_tower", None) is not None else None
    encoder = _encoder(handle, config, tokenizer, "lasttoken" in (modes or ()), takes_images=images is not None)
    return network, TextNetwork(handle.name, network, encoder, pooling, images)


def _gemma_images(handle: ModelHandle, config: Mapping[str, Any]) -> GemmaImages:
    stated = (object_in(handle, PROCESSOR_CONFIG) or {}).get("image_processor")
    return GemmaImages(config, stated if isinstance(stated, dict) else object_in(handle, PREPROCESSOR_CONFIG) or {})


def require_vocabulary(handle: ModelHandle) -> None:
    """Refuse a model without a vocabulary file.

    Raises:
        UnhealthyModelError: It has none.
    """
    if not any(os.path.exists(os.path.join(handle.directory, name)) for name in _VOCABULARY_FILES):
        raise UnhealthyModelError(f"'{handle.name}' lacks its tokenizer.", hint="Download the model again.")


def _load(handle: ModelHandle) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    with loading_directory(handle) as directory:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        disable_word_cache(tokenizer)
        return embedding_loader.load_embedding_model(directory), tokenizer


def _encoder(
    handle: ModelHandle,
    config: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    last: bool,
    *,
    takes_images: bool,
) -> TextEncoder:
    return TextEncoder(
        tokenizer,
        _prompts(handle, config),
        window_of(handle, config, tokenizer),
        _vocabulary(config, tokenizer),
        tokenizer.eos_token_id if last else None,
        takes_images=takes_images,
    )


def _sentence_transformers(handle: ModelHandle) -> Mapping[str, Any]:
    return object_in(handle, "config_sentence_transformers.json") or {}


def _prompts(handle: ModelHandle, config: Mapping[str, Any]) -> Prompts:
    stated = _sentence_transformers(handle).get("prompts")
    return prompts_of(handle.name, _architecture(config), stated if isinstance(stated, dict) else {})


def _vocabulary(config: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> int:
    stated = _text_config(config).get("vocab_size")
    return stated if isinstance(stated, int) else len(tokenizer)


def _modules(handle: ModelHandle) -> list[tuple[str, str]]:
    """Return the class name and the folder of each module in sentence-transformers' ``modules.json``."""
    listed = json_in(handle, "modules.json")
    entries = [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
    return [(str(each.get("type", "")).rpartition(".")[2], str(each.get("path", ""))) for each in entries]


def _require_known_modules(handle: ModelHandle, network: nn.Module) -> None:
    """Refuse a model with modules that would not be computed, so that its vectors would differ from the original's.

    Raises:
        IncompatibleModelError: Names the module.
    """
    known = {"Transformer", "Pooling", "Normalize", "Dropout"}
    if hasattr(network, "dense") or hasattr(network, "projection"):
        known.add("Dense")
    for kind, folder in _modules(handle):
        if kind not in known:
            raise IncompatibleModelError(
                f"The vectors of '{handle.name}' pass through the module {kind} ({folder or 'modules.json'}), "
                "which is not supported for its architecture."
            )


def _pooling(handle: ModelHandle, config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return the pooling modes; None for the architecture's default.

    Raises:
        IncompatibleModelError: A mode is not supported, or the prefix is excluded from pooling.
    """
    folder = next((folder for kind, folder in _modules(handle) if kind == "Pooling" and folder), "1_Pooling")
    file = f"{folder}/config.json"
    stated = object_in(handle, file)
    if not stated:
        bert = _architecture(config) == "bert" and _FIRST_TOKEN.search(handle.short_name.lower())
        return ("cls",) if bert else None
    if stated.get("include_prompt") is False:
        raise IncompatibleModelError(
            f"'{handle.name}' leaves its prefix out of the vector (include_prompt in {file}), which is not supported."
        )
    modes = stated_modes(stated)
    unknown = [mode for mode in modes if mode not in MODES]
    if unknown:
        raise IncompatibleModelError(
            f"'{handle.name}' pools its vectors by {', '.join(unknown)} ({file}), which is not supported; "
            f"supported are {', '.join(MODES)}."
        )
    return modes


def _place_pooling(handle: ModelHandle, network: nn.Module, modes: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """Configure the network's own pooling; return the modes to pool by outside of it, None if it pools itself.

    Raises:
        IncompatibleModelError: The network has layers after its pooling and does not support the modes.
    """
    if modes is None:
        return None
    if len(modes) == 1 and modes[0] in _MODES_OF_NETWORKS:
        network.pooling_config = {"pooling_mode": modes[0]}
        return None
    if hasattr(network, "dense"):
        raise IncompatibleModelError(
            f"'{handle.name}' has layers after its pooling by {', '.join(modes)}, which is not supported."
        )
    network.pooling_config = {"pooling_mode": "mean"}
    return modes


def window_of(handle: ModelHandle, config: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the context window: the smallest limit in the model's files, at which its authors truncate texts."""
    positions = _text_config(config).get("max_position_embeddings")
    limits = [int(tokenizer.model_max_length)] if tokenizer.model_max_length < _UNSET_LENGTH else []
    if isinstance(positions, int) and positions > 0:
        # RoBERTa's positions begin after the padding token.
        offset = int(config.get("pad_token_id") or 0) + 1 if "roberta" in _architecture(config) else 0
        limits.append(positions - offset)
    for name in _SENTENCE_CONFIGS:
        stated = (object_in(handle, name) or {}).get("max_seq_length")
        if isinstance(stated, int) and not isinstance(stated, bool) and stated > 0:
            limits.append(stated)
            break
    return min(limits, default=_DEFAULT_WINDOW)


def _lengths(config: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the lengths to which vectors may be truncated, from the config."""
    stated = next((config[key] for key in _MATRYOSHKA if isinstance(config.get(key), list)), ())
    return tuple(each for each in stated if isinstance(each, int))


def _is_shortenable(handle: ModelHandle, config: Mapping[str, Any]) -> bool:
    return (
        any(config.get(key) for key in (*_MATRYOSHKA, "is_matryoshka"))
        or _architecture(config) in _SHORTENABLE_ARCHITECTURES
        or _SHORTENABLE_NAMES.search(handle.short_name.lower()) is not None
    )


def _architecture(config: Mapping[str, Any]) -> str:
    return str(config.get("model_type", "")).lower().replace("-", "_")


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    nested = config.get("text_config")
    return {**config, **nested} if isinstance(nested, dict) else config
