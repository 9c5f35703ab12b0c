"""What a model takes of memory, and whether this machine has it, in bytes.

    needed = W + K * C + R          fits when needed <= budget

``W`` is the size of the weight files, ``K`` the KV cache of one token, ``C`` the tokens of context, ``R`` a reserve for
activations and buffers. The budget is a share of the memory available to MLX (``BUDGET_SHARE``). Readings come from the
``MemoryProbe`` port; whether a verdict is an error or a warning is the policy's decision.

Without an accelerator, numbers of 16 bits are emulated, which makes quantized layers many times slower than numbers of
32 bits, and so other layers where a library of the machine multiplies those. Where it pays and memory allows, weights
are therefore widened: each number of 16 bits takes twice its bytes then, in ``W`` as in ``K``. With such a library and
much free memory, quantized layers are unpacked as well.
"""

import enum
from collections.abc import Mapping

import attrs

from mlxk.domain.models.kv_cache import CacheShape
from mlxk.domain.models.snapshot import text_section

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

UNPACKED_SHARE = 0.5
"""The share of the free memory that a model with unpacked layers may take."""


class WeightForm(enum.Enum):
    """How weights are held in memory; values are the words for logs."""

    STORED = "its own type"
    WIDE = "float32"
    """Numbers of 16 bits, such as the scales of quantized layers, in 32 bits."""
    PLAIN = "float32, unpacked"

    @property
    def widened(self) -> bool:
        """Whether no numbers of 16 bits are left."""
        return self is not WeightForm.STORED


class Widening(enum.Enum):
    """When weights of 16 bits are held in 32 bits."""

    NEVER = "never"
    WHERE_FREE = "where free"
    """Where it pays, and they fit into the memory that is free now."""
    WITHIN_BUDGET = "within budget"
    """For all models that fit into the budget."""


@attrs.frozen
class Matrices:
    """What multiplies matrices of 32 bits."""

    on_cpu: bool = False
    """Whether no accelerator does."""
    library: str | None = None
    """The library of this machine that was made for it, with its version; None without one."""
    wanted: bool = True
    """Whether such a library is used where there is one."""

    @property
    def are_fast(self) -> bool:
        """Whether a CPU multiplies them about as fast as it can."""
        return self.on_cpu and self.library is not None

    @property
    def could_be_faster(self) -> bool:
        """Whether installing such a library would help."""
        return self.on_cpu and self.wanted and self.library is None


@attrs.frozen
class MemoryReading:
    """The machine's memory, in bytes."""

    total: int
    """Installed, or the limit of the control group when that is lower."""
    available: int
    """Usable right now without swapping."""
    accelerator_limit: int | None = None
    """The most an accelerator may take of unified memory, where one exists."""
    widening: Widening = Widening.NEVER
    """For weights of 16 bits; of use only where no accelerator computes."""
    swap_used: int | None = None
    """What the system has moved out of memory; None where it does not say."""

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
    form: WeightForm = WeightForm.STORED
    """How the weights are held; the sizes above are those of this form."""
    widening_bytes: int = 0
    """What the form adds to the weights, or holding 16-bit numbers in 32 bits would add where they do not fit."""
    matrices: Matrices = Matrices()
    """What multiplies matrices on the machine."""


def judge_memory(
    reading: MemoryReading | None,
    weights: int,
    cache_per_token: int = 0,
    context_tokens: int = 0,
    half_bytes: int | None = None,
    plain_bytes: int | None = None,
) -> MemoryVerdict:
    """Estimate whether a model fits, in the form that the machine computes fastest and has the memory for.

    Args:
        reading: The machine's memory; None when it could not be read, and the verdict is then UNKNOWN.
        weights: Size of the weight files, bytes.
        cache_per_token: KV cache of one token in 16 bits, bytes.
        context_tokens: Tokens of context to hold.
        half_bytes: What 16-bit numbers take of the weights; None when unknown, and nothing is widened then.
        plain_bytes: What weights take of which quantized layers are unpacked; None where that is not faster.
    """
    narrow = _judge(reading, weights, cache_per_token, context_tokens)
    if reading is None or half_bytes is None or reading.widening is Widening.NEVER:
        return narrow
    if plain_bytes is not None:
        plain = _judge(reading, plain_bytes, 2 * cache_per_token, context_tokens)
        if plain.fit is MemoryFit.FITS and plain.needed <= reading.available * UNPACKED_SHARE:
            return attrs.evolve(plain, form=WeightForm.PLAIN, widening_bytes=plain_bytes - weights)
    wide = _judge(reading, weights + half_bytes, 2 * cache_per_token, context_tokens)
    allowed = {MemoryFit.FITS} if reading.widening is Widening.WHERE_FREE else {MemoryFit.FITS, MemoryFit.TIGHT}
    if wide.fit not in allowed:
        return attrs.evolve(narrow, widening_bytes=half_bytes)
    return attrs.evolve(wide, form=WeightForm.WIDE, widening_bytes=half_bytes)


def _judge(reading: MemoryReading | None, weights: int, cache_per_token: int, context_tokens: int) -> MemoryVerdict:
    needed = weights + cache_per_token * context_tokens + RESERVE_BYTES
    budget = None if reading is None else reading.budget
    return MemoryVerdict(fit_of(reading, needed), weights, cache_per_token, needed, budget)


def fit_of(reading: MemoryReading | None, needed: int) -> MemoryFit:
    """Return how so many bytes relate to a machine's memory."""
    if reading is None or needed > reading.budget:
        return MemoryFit.UNKNOWN if reading is None else MemoryFit.EXCEEDS
    return MemoryFit.TIGHT if needed > reading.available else MemoryFit.FITS


def cache_bytes_per_token(config: Mapping[str, object] | None) -> int:
    """Return the KV cache of one token, from a model's ``config.json``, bytes.

    Two tensors (keys, values) in 16 bits, for every layer and every key-value head. Models that attend to a window, or
    keep a state in place of a cache, need less: this is an upper bound. 0 when the config does not state it.
    """
    return cache_shape(config).bytes_per_token


def cache_shape(config: Mapping[str, object] | None) -> CacheShape:
    """Return the shape of a model's keys and values, from its ``config.json``."""
    values = text_section(config or {})
    layers, heads = _count(values, "num_hidden_layers", "n_layer"), _count(values, "num_attention_heads", "n_head")
    hidden = _count(values, "hidden_size", "n_embd")
    head_size = _count(values, "head_dim") or (hidden // heads if heads else 0)
    return CacheShape(layers, _count(values, "num_key_value_heads") or heads, head_size)


def _count(values: Mapping[str, object], *names: str) -> int:
    """Return the first positive integer among some keys, else 0."""
    found = (values.get(name) for name in names)
    return next((each for each in found if isinstance(each, int) and not isinstance(each, bool) and each > 0), 0)
