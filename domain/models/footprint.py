"""The memory that a model needs, and whether it fits into this machine's, in bytes.

    needed = W + K * C + R          fits when needed <= budget

``W`` is the size of the weight files, ``K`` the KV cache of one token, ``C`` the tokens of context, ``R`` a reserve for
activations and buffers. The budget is a share of the memory available to MLX (``BUDGET_SHARE``). Readings come from the
``MemoryProbe`` port; the policy decides whether a verdict is an error or a warning.

Without an accelerator, 16-bit numbers are emulated. This makes quantized layers many times slower than 32-bit numbers;
other layers too, where the machine has a BLAS for 32-bit matrices. Where it pays and memory allows, weights are
therefore widened to 32 bits, which doubles 16-bit numbers in ``W`` and in ``K``. With such a BLAS and much free memory,
quantized layers are unpacked as well.
"""

import enum
from collections.abc import Mapping

import attrs

from mlxk.domain.models.kv_cache import CacheShape
from mlxk.domain.models.snapshot import text_section

BUDGET_SHARE = 0.70
"""Share of the memory available to MLX that models may take."""

CACHE_SHARE = 0.20
"""Share of that memory for KV caches besides the weights: those of running sequences, and the prefix cache.

The remainder is for activations and for other processes.
"""

RESERVE_BYTES = 256 * 1024 * 1024
"""Activations, tokenizer and allocator slack: far above the need of a small model, little beside a large one."""

DEFAULT_CONTEXT_TOKENS = 4096
"""Tokens of context in an estimate by default: a long chat."""


def expected_context(window: int | None) -> int:
    """Return the tokens of context for an estimate: the default, or the context window when that is shorter."""
    return min(DEFAULT_CONTEXT_TOKENS, window or DEFAULT_CONTEXT_TOKENS)


WEIGHT_SUFFIXES = (".safetensors", ".gguf", ".bin", ".npz")

UNPACKED_SHARE = 0.5
"""Share of the free memory that a model with unpacked layers may take."""


class WeightForm(enum.Enum):
    """The form of weights in memory; values are the words for logs."""

    STORED = "its own type"
    WIDE = "float32"
    """16-bit numbers, also the scales of quantized layers, widened to 32 bits."""
    PLAIN = "float32, unpacked"
    """Quantized layers unpacked to 32 bits, too."""

    @property
    def widened(self) -> bool:
        """Whether no 16-bit numbers are left."""
        return self is not WeightForm.STORED


class Widening(enum.Enum):
    """When 16-bit weights are widened to 32 bits."""

    NEVER = "never"
    WHERE_FREE = "where free"
    """Where it pays, and the model fits into the memory that is free now."""
    WITHIN_BUDGET = "within budget"
    """For all models that fit into the budget."""


@attrs.frozen
class Matrices:
    """How 32-bit matrices are multiplied."""

    on_cpu: bool = False
    """Whether the CPU multiplies them, for lack of an accelerator."""
    library: str | None = None
    """Name and version of this machine's BLAS; None without one."""
    wanted: bool = True
    """Whether a BLAS is used where there is one."""

    @property
    def are_fast(self) -> bool:
        """Whether the CPU multiplies them with a BLAS."""
        return self.on_cpu and self.library is not None

    @property
    def could_be_faster(self) -> bool:
        """Whether installing a BLAS would help."""
        return self.on_cpu and self.wanted and self.library is None


@attrs.frozen
class MemoryReading:
    """The machine's memory, in bytes."""

    total: int
    """Installed memory, or the limit of the control group when that is lower."""
    available: int
    """Memory that can be allocated now without swapping."""
    accelerator_limit: int | None = None
    """Most unified memory that an accelerator may use; None without one."""
    widening: Widening = Widening.NEVER
    """When to widen 16-bit weights; useful only without an accelerator."""
    swap_used: int | None = None
    """Swapped-out memory; None where the system does not report it."""

    @property
    def budget(self) -> int:
        """Memory for all models together."""
        return int(self._ceiling * BUDGET_SHARE)

    @property
    def cache_budget(self) -> int:
        """Memory for all KV caches together."""
        return int(self._ceiling * CACHE_SHARE)

    @property
    def _ceiling(self) -> int:
        return self.total if self.accelerator_limit is None else min(self.total, self.accelerator_limit)


class MemoryFit(enum.Enum):
    """Whether a model fits into the budget."""

    FITS = "fits"
    TIGHT = "tight"
    """Within the budget, but above the memory available now."""
    EXCEEDS = "exceeds"
    UNKNOWN = "unknown"


@attrs.frozen
class MemoryVerdict:
    """The estimate for one model on one machine, in bytes."""

    fit: MemoryFit
    weights: int
    """Size of the weights in memory."""
    cache_per_token: int
    """KV cache of one token."""
    needed: int
    """Weights, KV cache of the expected context, and reserve."""
    budget: int | None
    """The machine's budget for models; None when unknown."""
    form: WeightForm = WeightForm.STORED
    """The form of the weights in memory; the sizes are of this form."""
    widening_bytes: int = 0
    """Bytes that widening adds to the weights; where the model does not fit widened, bytes that it would add."""
    matrices: Matrices = Matrices()
    """How matrices are multiplied on the machine."""


def judge_memory(
    reading: MemoryReading | None,
    weights: int,
    cache_per_token: int = 0,
    context_tokens: int = 0,
    half_bytes: int | None = None,
    plain_bytes: int | None = None,
) -> MemoryVerdict:
    """Estimate whether a model fits, in the fastest form of weights for which the machine has memory.

    Args:
        reading: The machine's memory; None when it could not be read, and the verdict is then UNKNOWN.
        weights: Size of the weight files, bytes.
        cache_per_token: KV cache of one token in 16 bits, bytes.
        context_tokens: Tokens of context to hold.
        half_bytes: Bytes of the weights that are 16-bit numbers; None when unknown, so that nothing is widened.
        plain_bytes: Size of the weights with quantized layers unpacked; None where unpacking is not faster.
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
    """Return whether ``needed`` bytes fit into a machine's memory."""
    if reading is None or needed > reading.budget:
        return MemoryFit.UNKNOWN if reading is None else MemoryFit.EXCEEDS
    return MemoryFit.TIGHT if needed > reading.available else MemoryFit.FITS


def cache_bytes_per_token(config: Mapping[str, object] | None) -> int:
    """Return the KV cache of one token by a model's ``config.json``, bytes; 0 when the config does not state its shape.

    Counts keys and values in 16 bits for every layer and key-value head. This is an upper bound: models with sliding
    windows or recurrent states need less.
    """
    return cache_shape(config).bytes_per_token


def cache_shape(config: Mapping[str, object] | None) -> CacheShape:
    """Return the shape of a model's KV cache by its ``config.json``."""
    values = text_section(config or {})
    layers, heads = _count(values, "num_hidden_layers", "n_layer"), _count(values, "num_attention_heads", "n_head")
    hidden = _count(values, "hidden_size", "n_embd")
    head_size = _count(values, "head_dim") or (hidden // heads if heads else 0)
    return CacheShape(layers, _count(values, "num_key_value_heads") or heads, head_size)


def _count(values: Mapping[str, object], *names: str) -> int:
    """Return the first value of some fields that is a positive integer, else 0."""
    stated = (values.get(name) for name in names)
    return next((value for value in stated if type(value) is int and value > 0), 0)
