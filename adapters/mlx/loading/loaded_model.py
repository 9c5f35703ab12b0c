"""A loaded text or vision model with values derived from its files, and its reference count in the pool."""

import contextlib
import os
import threading
from collections.abc import Callable
from typing import Any

import attrs

from mlxk.adapters.mlx.loading.weights_on_disk import weight_files
from mlxk.adapters.mlx.prompting.detokenizer import TokenDecoder
from mlxk.adapters.mlx.prompting.grammar import GrammarCompiler
from mlxk.adapters.mlx.prompting.templates import PromptRenderer
from mlxk.domain.errors import ValidationError
from mlxk.domain.formats.family_formats import CallSyntax
from mlxk.domain.formats.reasoning import ReasoningFormat
from mlxk.domain.generation.settings import GenerationSettings
from mlxk.domain.models.model import ModelHandle

_CACHE_STEP = 256
"""Tokens by which mlx-lm's KV caches grow."""


@attrs.frozen(eq=False)
class LoadedTokenizer:
    """A loaded tokenizer with values derived from its files; used on any thread."""

    handle: ModelHandle
    identity: str
    """Changes with the files, so that KV caches of other files are never used for this model."""
    tokenizer: Any
    """mlx-lm's wrapper of the Hugging Face tokenizer; used under ``lock``."""
    lock: threading.Lock
    renderer: PromptRenderer
    """Uses the tokenizer; used under ``lock``."""
    decoder: TokenDecoder
    context_length: int | None
    """Tokens; None when the config does not state it."""
    vocabulary_size: int | None
    """Rows of the embedding; None when the config does not state it."""


@attrs.frozen(eq=False)
class LoadedModel(LoadedTokenizer):
    """A loaded model. The network is used on the owner thread only, everything else on any thread."""

    network: Any
    reasoning: ReasoningFormat | None
    """None when it does not mark its reasoning."""
    call_syntaxes: tuple[CallSyntax, ...]
    """How it writes tool calls; none when neither its template nor its vocabulary tells."""
    vocabulary_hash: int
    """Equal for models with the same vocabulary."""
    head_size: int | None
    """Dimensions of one attention head; None when the config does not state it."""
    end_tokens: frozenset[int]
    """By its files; what raw text ends with."""
    turn_ends: Callable[[], frozenset[int]]
    """Returns these and the tokens with which the chat template ends a turn; waits for ``lock``."""
    grammars: GrammarCompiler
    defaults: GenerationSettings
    """The settings of the model's generation_config."""
    ignored_settings: tuple[str, ...]
    """Names of its settings with invalid values, or ``*`` for an invalid file."""
    weight_bytes: int
    cache_bytes_per_token: int
    """Maximum size of a token in the KV cache, from the config; 0 when it does not state it."""
    vision: Any = None
    """A ``vision.loader.VisionProcessor`` for a vision-language model, None for others."""

    @property
    def name(self) -> str:
        """The model's name."""
        return self.handle.name


@attrs.define(eq=False)
class PooledModel:
    """A loaded model with its reference count."""

    model: LoadedModel
    used_at: float
    held: contextlib.ExitStack = attrs.field(factory=contextlib.ExitStack)
    """Closed when the model is unloaded."""
    leases: int = 0
    keep_alive_seconds: float | None = None
    """Idle time after which it is unloaded; None: never."""
    bytes_per_token: float = 0.0
    """Measured size of a token in the KV cache; 0 before anything was computed."""
    tokens_per_second: float | None = None
    """Speed of the sequence that ended last; None before there was one."""

    def measure_speed(self, tokens: int, seconds: float) -> None:
        """Remember how fast a sequence was; the first of its tokens belongs to the prompt's time."""
        if tokens > 1 and seconds > 0:
            self.tokens_per_second = (tokens - 1) / seconds

    def measure_cache(self, cache: list[Any], tokens: int) -> None:
        """Measure the size of a token; caches grow in steps, so that short ones are counted as one step."""
        self.bytes_per_token = sum(layer.nbytes for layer in cache) / max(tokens, _CACHE_STEP)


def identity_of(handle: ModelHandle, adapter: str | None = None) -> str:
    """Return a key of a model, its adapter and the state of their files.

    Raises:
        ValidationError: The directory holds no adapter.
    """
    if adapter is not None and not os.path.isfile(os.path.join(adapter, "adapter_config.json")):
        raise ValidationError(f"adapter: there is no LoRA adapter in '{adapter}' (no adapter_config.json).")
    parts = [handle.directory, handle.revision or "", adapter or ""]
    for directory in filter(None, (handle.directory, adapter)):
        for path in [os.path.join(directory, "config.json"), *weight_files(directory)]:
            with_stat = os.stat(path) if os.path.exists(path) else None
            parts.append(f"{with_stat.st_mtime_ns}:{with_stat.st_size}" if with_stat else "-")
    return "|".join(parts)
