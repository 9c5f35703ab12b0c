"""Loading a text model from a directory, and the loaded model with its state in the model pool."""

import contextlib
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import mlx.core as mx
from mlx import nn
from mlx_lm import utils
from mlx_lm.models import gemma2

from mlxk.adapters.mlx.chunk_policy import PassCosts
from mlxk.adapters.mlx.loading.load_errors import translated
from mlxk.adapters.mlx.loading.model_files import (
    identity_of,
    loading_directory,
    object_in,
    read_config,
    require_regular,
    weight_bytes,
)
from mlxk.adapters.mlx.loading.plain_kernels import run_without_metal
from mlxk.adapters.mlx.loading.widening import widen
from mlxk.adapters.mlx.prompting.detokenizer import TokenDecoder, disable_word_cache, unwrapped
from mlxk.adapters.mlx.prompting.grammar import GrammarCompiler
from mlxk.adapters.mlx.prompting.templates import PromptRenderer
from mlxk.domain.errors import MlxkError
from mlxk.domain.formats.family_formats import CallSyntax, detect_syntaxes
from mlxk.domain.formats.reasoning import ReasoningFormat
from mlxk.domain.generation.settings import GenerationSettings
from mlxk.domain.models.detection import context_length
from mlxk.domain.models.file_formats import Document
from mlxk.domain.models.footprint import WeightForm, cache_bytes_per_token
from mlxk.domain.models.model import ModelHandle
from mlxk.domain.models.snapshot import (
    DEFAULT_TEMPLATE,
    PROCESSOR_CONFIG,
    TEMPLATE_DOCUMENT,
    TOKENIZER_CONFIG,
    chat_templates,
    has_default_template,
    is_litter,
    is_template_file,
)

_ALONE = frozenset({"afm7", "gpt_bigcode", "minimax_m3_vl", "phi3small"})
"""Architectures that are not batched: mlx-lm counts positions, or blocks of keys, as if there were no padding."""

_CACHE_STEP = 256
"""Tokens by which mlx-lm's KV caches grow at a time."""


@attrs.frozen(eq=False)
class LoadedTokenizer:
    """A loaded tokenizer with values derived from the model's files; used on any thread."""

    handle: ModelHandle
    identity: str
    """Changes with the files, so that KV caches computed from other files are never reused."""
    tokenizer: Any
    """mlx-lm's wrapper of the Hugging Face tokenizer; used under ``lock``."""
    lock: threading.Lock
    renderer: PromptRenderer
    """Uses the tokenizer; used under ``lock``."""
    decoder: TokenDecoder
    context_length: int | None
    """Tokens; None if unknown."""
    vocabulary_size: int | None
    """Rows of the embedding; None if the config does not state it."""


@attrs.frozen(eq=False)
class LoadedModel(LoadedTokenizer):
    """A loaded model. The network is used on the owner thread only, everything else on any thread."""

    network: Any
    reasoning: ReasoningFormat | None
    """None if the model does not mark its reasoning."""
    call_syntaxes: tuple[CallSyntax, ...]
    """Syntaxes of its tool calls; empty if neither template nor vocabulary shows one."""
    vocabulary_hash: int
    """Equal for models with the same vocabulary."""
    head_size: int | None
    """Dimensions of one attention head; None if the config does not state it."""
    end_tokens: frozenset[int]
    """End-of-sequence tokens from its files, which end raw text."""
    turn_ends: Callable[[], frozenset[int]]
    """Returns ``end_tokens`` and the tokens with which the chat template ends a turn; acquires ``lock``."""
    message_ends: Callable[[], frozenset[int]]
    """Returns ``end_tokens`` and the tokens with which the chat template ends a message of any role; acquires
    ``lock``."""
    grammars: GrammarCompiler
    defaults: GenerationSettings
    """The settings of the model's generation_config."""
    ignored_settings: tuple[str, ...]
    """Names of settings in its generation_config with invalid values, or ``*`` for an invalid file."""
    weight_bytes: int
    cache_bytes_per_token: int
    """Maximum size of a token in the KV cache, from the config; 0 if unknown."""
    vision: Any = None
    """A ``vision.loader.VisionProcessor`` for a vision-language model, None for others."""
    shares_batches: bool = True
    """Whether its sequences can be computed in one batch."""
    encodes_prompts: bool = False
    """Whether an encoder reads its prompts, so that they do not count towards the decoder's context window."""

    @property
    def name(self) -> str:
        """The model's name."""
        return self.handle.name


@attrs.define(eq=False)
class PooledModel:
    """An entry of the model pool: a loaded model with its reference count and measurements."""

    model: LoadedModel
    used_at: float
    held: contextlib.ExitStack = attrs.field(factory=contextlib.ExitStack)
    """Closed when the model is unloaded."""
    leases: int = 0
    keep_alive_seconds: float | None = None
    """Idle time after which it is unloaded; None: never."""
    form: WeightForm = WeightForm.STORED
    """How its weights are held."""
    adapts: "PooledModel | None" = None
    """The base model whose arrays it shares, if it is a model with an adapter."""
    bytes_per_token: float = 0.0
    """Measured size of a token in the KV cache; 0 before the first measurement."""
    tokens_per_second: float | None = None
    """Decoding speed of the last completed sequence; None before the first one."""
    chunk_bytes_per_token: float = 0.0
    """Measured memory of the last prefill chunk, for each of its tokens; 0 before the first one."""
    costs: PassCosts = attrs.field(factory=PassCosts)
    """Measured durations of decoding steps and prefill chunks."""

    def measure_speed(self, tokens: int, seconds: float) -> None:
        """Record the decoding speed of a sequence, without its first token, which prefill computes."""
        if tokens > 1 and seconds > 0:
            self.tokens_per_second = (tokens - 1) / seconds

    def measure_cache(self, size_bytes: int, tokens: int) -> None:
        """Record the size of a KV cache; a short one counts as one step of ``_CACHE_STEP`` tokens."""
        self.bytes_per_token = size_bytes / max(tokens, _CACHE_STEP)


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
"""Tokenizers without a known context length have a larger ``model_max_length``."""


def load_model(handle: ModelHandle, form: WeightForm = WeightForm.STORED) -> LoadedModel:
    """Load a model; must run on the owner thread.

    Args:
        handle: The model.
        form: How to hold its weights.

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
        network, tokenizer = _load(handle, config)
        widened_bytes = widen(network, form) if form.widened else None
    return assemble(handle, identity_of(handle), network, tokenizer, config, widened_bytes=widened_bytes)


def assemble(
    handle: ModelHandle,
    identity: str,
    network: Any,  # noqa: ANN401
    tokenizer: Any,  # noqa: ANN401
    config: Mapping[str, Any],
    *,
    widened_bytes: int | None = None,
) -> LoadedModel:
    """Build a loaded model from a library's network and tokenizer and the model's files.

    Args:
        handle: The model.
        identity: See ``LoadedModel.identity``.
        network: Computes logits, shape [B, L, V], from tokens, shape [B, L], and a cache.
        tokenizer: mlx-lm's wrapper.
        config: The model's config.
        widened_bytes: Size of its weights in memory if they are widened; None if they are not.
    """
    parts = assemble_tokenizer(handle, identity, tokenizer, config)
    vocabulary = tokenizer.get_vocab()
    end_tokens = frozenset(tokenizer.eos_token_ids)

    def turn_ends() -> frozenset[int]:
        with parts.lock:
            return end_tokens | parts.renderer.turn_ends

    def message_ends() -> frozenset[int]:
        with parts.lock:
            return end_tokens | parts.renderer.message_ends

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
        message_ends=message_ends,
        grammars=GrammarCompiler(tokenizer, turn_ends),
        defaults=defaults,
        ignored_settings=ignored,
        weight_bytes=weight_bytes(handle.directory) if widened_bytes is None else widened_bytes,
        cache_bytes_per_token=cache_bytes_per_token(config) * (1 if widened_bytes is None else 2),
        shares_batches=config.get("model_type") not in _ALONE,
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
    """Return ``LoadedModel.defaults`` and ``LoadedModel.ignored_settings``."""
    name = "generation_config.json"
    stated = object_in(handle, name)
    if stated is None:
        return GenerationSettings(), ("*",) if os.path.exists(os.path.join(handle.directory, name)) else ()
    return generation_defaults(stated), unusable_settings(stated)


def _load(handle: ModelHandle, config: Mapping[str, Any]) -> tuple[Any, Any]:
    with loading_directory(handle) as directory:
        network, loaded = utils.load_model(directory, trust_remote_code=False)
    mend_attention(network)
    run_without_metal(network)
    return network, load_tokenizer(handle, loaded.get("eos_token_id", config.get("eos_token_id")))


@attrs.frozen(eq=False)
class _Unpacked:
    """Wraps a quantized KV cache for attention that cannot compute with quantized keys and values."""

    packed: Any

    @property
    def offset(self) -> Any:  # noqa: ANN401 - a number, or an array for a batch
        return self.packed.offset

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, ...]:
        form = {"group_size": self.packed.group_size, "bits": self.packed.bits}
        return tuple(mx.dequantize(*each, **form) for each in self.packed.update_and_fetch(keys, values))


class _CappedAttention(gemma2.Attention):  # type: ignore[misc] # MLX has no types for it
    """Attention of Gemma 2 for batches and quantized caches.

    mlx-lm's broadcasts a batch's mask along the wrong axis of its grouped heads, and cannot read quantized keys.
    """

    def __call__(self, states: mx.array, mask: mx.array | None = None, cache: Any = None) -> mx.array:  # noqa: ANN401
        if mask is not None and mask.ndim == 4 and self.repeats > 1:
            mask = mask[:, :, None]
        output: mx.array = super().__call__(states, mask, _Unpacked(cache) if hasattr(cache, "bits") else cache)
        return output


def mend_attention(network: nn.Module) -> None:
    """Replace attention of mlx-lm that is wrong in batches or with a quantized KV cache."""
    for module in network.modules():
        if type(module) is gemma2.Attention:
            module.__class__ = _CappedAttention


def load_tokenizer(handle: ModelHandle, end_tokens: int | list[int] | None) -> Any:  # noqa: ANN401
    """Load a model's tokenizer, in mlx-lm's wrapper.

    Args:
        handle: The model.
        end_tokens: End-of-sequence tokens from its config.
    """
    options: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    with loading_directory(handle) as directory:
        tokenizer = utils.load_tokenizer(directory, options, eos_token_ids=end_tokens)
        loaded = getattr(unwrapped(tokenizer), "chat_template", None)
        templates = _all_templates(handle, loaded)
        if templates != loaded:
            options["chat_template"] = templates
            tokenizer = utils.load_tokenizer(directory, options, eos_token_ids=end_tokens)
            unwrapped(tokenizer).chat_template = templates
    disable_word_cache(tokenizer)
    return tokenizer


def _all_templates(handle: ModelHandle, loaded: object) -> str | dict[str, str] | None:
    """Return the tokenizer's chat templates if they have a default, or else those of all files of the model.

    Processors have templates in files that tokenizers do not read.
    """
    if has_default_template(loaded):
        return loaded
    texts = {}
    for name, path in require_regular(handle):
        if is_template_file(name) and not is_litter(name):
            with open(path, encoding="utf-8", errors="replace") as file:
                texts[name] = file.read(_MAX_TEMPLATE_CHARACTERS)
    documents = (Document(object_in(handle, name)) for name in (TOKENIZER_CONFIG, TEMPLATE_DOCUMENT, PROCESSOR_CONFIG))
    templates = chat_templates(texts, *documents)
    return templates.get(DEFAULT_TEMPLATE) if len(templates) < 2 else templates


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    nested = config.get("text_config")
    return {**config, **nested} if isinstance(nested, dict) else config


def _context_length(config: Mapping[str, Any], tokenizer: object) -> int | None:
    length = context_length(dict(config))
    if length is None:
        length = _positive_integer(getattr(tokenizer, "model_max_length", None))
    return length if length is not None and length < _UNSET_MODEL_MAX_LENGTH else None


def _head_size(config: Mapping[str, Any]) -> int | None:
    size = _positive_integer(config.get("head_dim"))
    width, heads = _positive_integer(config.get("hidden_size")), _positive_integer(config.get("num_attention_heads"))
    return size or (width // heads if width and heads else None)


def _positive_integer(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
