"""Loading a text model from a directory: weights, tokenizer, generation_config, and derived values."""

import os
import threading
from collections.abc import Mapping
from typing import Any, TypeGuard

import attrs
from mlx_lm import utils

from mlxk.adapters.mlx.loading.load_errors import translated
from mlxk.adapters.mlx.loading.loaded_model import LoadedModel, LoadedTokenizer, identity_of
from mlxk.adapters.mlx.loading.model_files_check import object_in, require_regular
from mlxk.adapters.mlx.loading.weights_on_disk import loading_directory, weight_files
from mlxk.adapters.mlx.prompting.detokenizer import TokenDecoder, disable_word_cache, unwrapped
from mlxk.adapters.mlx.prompting.grammar import GrammarCompiler
from mlxk.adapters.mlx.prompting.templates import PromptRenderer
from mlxk.domain.errors import (
    MlxkError,
    UnhealthyModelError,
    UntrustedModelCodeError,
    ValidationError,
)
from mlxk.domain.formats.family_formats import detect_syntaxes
from mlxk.domain.generation.settings import GenerationSettings
from mlxk.domain.models.detection import context_length
from mlxk.domain.models.file_formats import Document
from mlxk.domain.models.footprint import cache_bytes_per_token
from mlxk.domain.models.model import ModelHandle
from mlxk.domain.models.snapshot import (
    DEFAULT_TEMPLATE,
    PROCESSOR_CONFIG,
    TEMPLATE_DOCUMENT,
    TOKENIZER_CONFIG,
    chat_templates,
    is_template_file,
)
from mlxk.domain.models.weights import is_litter

_SETTINGS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def generation_defaults(config: Mapping[str, Any]) -> GenerationSettings:
    """Return the sampling settings of a generation_config without invalid values."""
    stated = _stated(config)
    return GenerationSettings(**{name: value for name, value in stated.items() if _valid(name, value)})


def unusable_settings(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the sampling settings with invalid values."""
    return tuple(name for name, value in _stated(config).items() if not _valid(name, value))


def _stated(config: Mapping[str, Any]) -> dict[str, Any]:
    stated = {name: config[name] for name in _SETTINGS if config.get(name) is not None}
    return stated | {"temperature": 0.0} if config.get("do_sample") is False else stated


def _valid(name: str, value: object) -> bool:
    kind = int if name == "top_k" else (int, float)
    if isinstance(value, bool) or not isinstance(value, kind):
        return False
    try:
        GenerationSettings(**{name: value}).validate()  # type: ignore[arg-type]
    except MlxkError:
        return False
    return True


_MAX_TEMPLATE_CHARACTERS = 1024 * 1024

_UNSET_MODEL_MAX_LENGTH = 10**9
"""Tokenizers without a known context length state a huge number."""


def load_model(handle: ModelHandle, adapter: str | None = None) -> LoadedModel:
    """Load a model; must run on the owner thread.

    Args:
        handle: The model.
        adapter: Absolute directory of a LoRA adapter to apply.

    Raises:
        UntrustedModelCodeError: Loading would execute code that came with it.
        UnhealthyModelError: Files are missing or damaged.
        IncompatibleModelError: mlx-lm does not support the architecture.
        BackendNotInstalledError: A package that this architecture needs is not installed.
        ExecutionError: Loading failed for another reason, such as lack of memory.
    """
    require_regular(handle)
    config = read_config(handle)
    with translated(handle, "has an architecture mlx-lm does not know"):
        network, tokenizer = _load(handle, config, adapter)
    return assemble(handle, identity_of(handle, adapter), network, tokenizer, config)


def assemble(
    handle: ModelHandle,
    identity: str,
    network: Any,  # noqa: ANN401
    tokenizer: Any,  # noqa: ANN401
    config: Mapping[str, Any],
) -> LoadedModel:
    """Build the model from a library's network and tokenizer and from its files.

    Args:
        handle: The model.
        identity: See ``LoadedModel.identity``.
        network: Computes logits, shape [B, L, V], from tokens, shape [B, L], and a cache.
        tokenizer: mlx-lm's wrapper.
        config: Of the model.
    """
    parts = assemble_tokenizer(handle, identity, tokenizer, config)
    vocabulary = tokenizer.get_vocab()
    end_tokens = frozenset(tokenizer.eos_token_ids)

    def turn_ends() -> frozenset[int]:
        with parts.lock:
            return end_tokens | parts.renderer.turn_ends

    defaults, ignored = _sampling(handle)
    return LoadedModel(
        **attrs.asdict(parts, recurse=False),
        network=network,
        reasoning=parts.renderer.reasoning,
        call_syntaxes=detect_syntaxes(parts.renderer.template, vocabulary),
        vocabulary_hash=hash(frozenset(vocabulary.items())),
        head_size=_head_size(_text_config(config)),
        end_tokens=end_tokens,
        turn_ends=turn_ends,
        grammars=GrammarCompiler(tokenizer, turn_ends),
        defaults=defaults,
        ignored_settings=ignored,
        weight_bytes=weight_bytes(handle.directory),
        cache_bytes_per_token=cache_bytes_per_token(config),
    )


def assemble_tokenizer(
    handle: ModelHandle,
    identity: str,
    tokenizer: Any,  # noqa: ANN401
    config: Mapping[str, Any],
) -> LoadedTokenizer:
    """Build the part of a model that renders and tokenizes; see ``assemble``."""
    context = _context_length(config, tokenizer)
    # ``build_sequence`` refuses longer prompts; the tokenizer would warn on standard error.
    unwrapped(tokenizer).model_max_length = _UNSET_MODEL_MAX_LENGTH
    return LoadedTokenizer(
        handle=handle,
        identity=identity,
        tokenizer=tokenizer,
        lock=threading.Lock(),
        renderer=PromptRenderer(tokenizer, context),
        decoder=TokenDecoder(tokenizer),
        context_length=context,
        vocabulary_size=_positive_integer(_text_config(config).get("vocab_size")),
    )


def _sampling(handle: ModelHandle) -> tuple[GenerationSettings, tuple[str, ...]]:
    """Return the settings of the model's generation_config, and the names of invalid ones."""
    name = "generation_config.json"
    stated = object_in(handle, name)
    if stated is None:
        return GenerationSettings(), ("*",) if os.path.exists(os.path.join(handle.directory, name)) else ()
    return generation_defaults(stated), unusable_settings(stated)


def weight_bytes(directory: str) -> int:
    """Return the size of the weight files, bytes; 0 without any."""
    return sum(os.stat(path).st_size for path in weight_files(directory))


def _load(handle: ModelHandle, config: Mapping[str, Any], adapter: str | None) -> tuple[Any, Any]:
    with loading_directory(handle) as directory:
        network, loaded = utils.load_model(directory, trust_remote_code=False)
    if adapter is not None:
        network = _adapted(network, adapter)
    return network, load_tokenizer(handle, loaded.get("eos_token_id", config.get("eos_token_id")))


def load_tokenizer(handle: ModelHandle, end_tokens: int | list[int] | None) -> Any:  # noqa: ANN401
    """Load a model's tokenizer, in mlx-lm's wrapper.

    Args:
        handle: The model.
        end_tokens: The end-of-sequence tokens of its config.
    """
    options: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    with loading_directory(handle) as directory:
        tokenizer = utils.load_tokenizer(directory, options, eos_token_ids=end_tokens)
        found = getattr(unwrapped(tokenizer), "chat_template", None)
        templates = _templates_elsewhere(handle, found)
        if templates is not None and templates != found:
            options["chat_template"] = templates
            tokenizer = utils.load_tokenizer(directory, options, eos_token_ids=end_tokens)
        if templates != found:
            unwrapped(tokenizer).chat_template = templates
    disable_word_cache(tokenizer)
    return tokenizer


def has_default_template(found: object) -> TypeGuard[str | dict[str, str]]:
    """Whether what a library has found as chat templates renders a conversation without tools."""
    return (isinstance(found, str) and bool(found.strip())) or (isinstance(found, dict) and DEFAULT_TEMPLATE in found)


def _templates_elsewhere(handle: ModelHandle, found: object) -> str | dict[str, str] | None:
    """Return the chat templates of a model: those that the tokenizer's loader found, where one of them is the default.

    Processors keep theirs in files that tokenizers do not read.
    """
    if has_default_template(found):
        return found
    texts = {}
    for name, path in require_regular(handle):
        if is_template_file(name) and not is_litter(name):
            with open(path, encoding="utf-8", errors="replace") as file:
                texts[name] = file.read(_MAX_TEMPLATE_CHARACTERS)
    documents = (Document(object_in(handle, name)) for name in (TOKENIZER_CONFIG, TEMPLATE_DOCUMENT, PROCESSOR_CONFIG))
    templates = chat_templates(texts, *documents)
    return templates.get(DEFAULT_TEMPLATE) if len(templates) < 2 else templates


def _adapted(network: Any, adapter: str) -> Any:  # noqa: ANN401
    try:
        network = utils.load_adapters(network, adapter)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ValidationError(
            f"adapter: the adapter in '{adapter}' does not fit this model ({type(error).__name__})."
        ) from error
    network.eval()
    return network


def read_config(handle: ModelHandle) -> Mapping[str, Any]:
    """Return a model's config.json.

    Raises:
        UnhealthyModelError: It is missing or cannot be read.
        UntrustedModelCodeError: Loading would execute code that came with the model.
    """
    config = object_in(handle, "config.json")
    if not config:
        raise UnhealthyModelError(f"'{handle.name}' has no readable config.json.", hint="Download the model again.")
    if config.get("model_file"):
        raise UntrustedModelCodeError(
            f"'{handle.name}' wants to run code of its own (config.json: model_file); it is never executed."
        )
    return config


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    nested = config.get("text_config")
    return {**config, **nested} if isinstance(nested, dict) else config


def _context_length(config: Mapping[str, Any], tokenizer: object) -> int | None:
    length = context_length(dict(config))
    if length is None:
        length = _positive_integer(getattr(tokenizer, "model_max_length", None))
    return length if length is not None and length < _UNSET_MODEL_MAX_LENGTH else None


def _head_size(config: Mapping[str, Any]) -> int | None:
    stated = _positive_integer(config.get("head_dim"))
    width, heads = _positive_integer(config.get("hidden_size")), _positive_integer(config.get("num_attention_heads"))
    return stated or (width // heads if width and heads else None)


def _positive_integer(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
