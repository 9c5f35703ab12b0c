"""The memory budget: whether a model fits, in bytes.

    needed = W + K * C + R          fits when needed <= budget

``W`` is the size of the weight files, ``K`` the KV cache of one token, ``C`` the tokens of context, ``R`` a reserve for
activations and buffers. The budget is a share of the memory available to MLX (``BUDGET_SHARE``). Readings come from the
``MemoryProbe`` port; whether a verdict is an error or a warning is the policy's decision.
"""

import enum
from collections.abc import Mapping

import attrs

BUDGET_SHARE = 0.70
"""The share of the memory available to MLX that models may take."""

CACHE_SHARE = 0.20
"""The share that KV caches may take beside the weights: those of running sequences, and the prefix cache.

The remainder is for activations and for other processes.
"""

RESERVE_BYTES = 256 * 1024 * 1024
"""Activations, tokenizer and allocator slack; far above what a small model needs, small against a large one."""

DEFAULT_CONTEXT_TOKENS = 4096
"""Tokens of context an estimate includes by default: a long chat."""


def expected_context(window: int | None) -> int:
    """Return the tokens of context of an estimate: a long chat, or the model's context window when that is shorter."""
    return min(DEFAULT_CONTEXT_TOKENS, window or DEFAULT_CONTEXT_TOKENS)


WEIGHT_SUFFIXES = (".safetensors", ".gguf", ".bin", ".npz")


@attrs.frozen
class MemoryReading:
    """The machine's memory, in bytes."""

    total: int
    """Installed, or the limit of the control group when that is lower."""
    available: int
    """Usable right now without swapping."""
    accelerator_limit: int | None = None
    """The most an accelerator may take of unified memory, where one exists."""

    @property
    def budget(self) -> int:
        """Bytes that all models may take together."""
        return int(self._ceiling * BUDGET_SHARE)

    @property
    def cache_budget(self) -> int:
        """Bytes that all KV caches may take together."""
        return int(self._ceiling * CACHE_SHARE)

    @property
    def _ceiling(self) -> int:
        return self.total if self.accelerator_limit is None else min(self.total, self.accelerator_limit)


class MemoryFit(enum.Enum):
    """How a model relates to the budget."""

    FITS = "fits"
    TIGHT = "tight"
    """Within the budget, but more than is available now."""
    EXCEEDS = "exceeds"
    UNKNOWN = "unknown"


@attrs.frozen
class MemoryVerdict:
    """The estimate for one model on one machine, in bytes."""

    fit: MemoryFit
    weights: int
    cache_per_token: int
    needed: int
    budget: int | None


def judge_memory(
    reading: MemoryReading | None, weights: int, cache_per_token: int = 0, context_tokens: int = 0
) -> MemoryVerdict:
    """Estimate whether a model fits.

    Args:
        reading: The machine's memory; None when it could not be read, and the verdict is then UNKNOWN.
        weights: Size of the weight files, bytes.
        cache_per_token: KV cache of one token, bytes.
        context_tokens: Tokens of context to hold.
    """
    needed = weights + cache_per_token * context_tokens + RESERVE_BYTES
    if reading is None:
        return MemoryVerdict(MemoryFit.UNKNOWN, weights, cache_per_token, needed, None)
    if needed > reading.budget:
        fit = MemoryFit.EXCEEDS
    elif needed > reading.available:
        fit = MemoryFit.TIGHT
    else:
        fit = MemoryFit.FITS
    return MemoryVerdict(fit, weights, cache_per_token, needed, reading.budget)


_TEXT_SECTIONS = ("text_config", "llm_config", "language_config", "thinker_config", "decoder_config")


def text_section(config: Mapping[str, object]) -> Mapping[str, object]:
    """Return a config with what it states about its language model, which models of several parts keep in a section."""
    for name in _TEXT_SECTIONS:
        nested = config.get(name)
        if isinstance(nested, Mapping) and nested:
            own = {key: value for key, value in config.items() if key not in _TEXT_SECTIONS}
            return {**own, **text_section(nested)}
    return config


def own_text_section(config: Mapping[str, object]) -> Mapping[str, object]:
    """Return what a config states about its language model itself, without what it states about all parts."""
    for name in _TEXT_SECTIONS:
        nested = config.get(name)
        if isinstance(nested, Mapping) and nested:
            return own_text_section(nested)
    return config


def cache_bytes_per_token(config: Mapping[str, object] | None) -> int:
    """Return the KV cache of one token, from a model's ``config.json``, bytes.

    Two tensors (keys, values) in 16 bits, for every layer and every key-value head. Models that attend to a window, or
    keep a state in place of a cache, need less: this is an upper bound. 0 when the config does not state it.
    """
    values = text_section(config or {})
    layers, heads = _count(values, "num_hidden_layers", "n_layer"), _count(values, "num_attention_heads", "n_head")
    kv_heads = _count(values, "num_key_value_heads") or heads
    hidden = _count(values, "hidden_size", "n_embd")
    head_dim = _count(values, "head_dim") or (hidden // heads if heads else 0)
    return 2 * 2 * layers * kv_heads * head_dim


def _count(values: Mapping[str, object], *names: str) -> int:
    """Return the first positive integer among some keys, else 0."""
    found = (values.get(name) for name in names)
    return next(
        (number for number in found if isinstance(number, int) and not isinstance(number, bool) and number > 0), 0
    )
