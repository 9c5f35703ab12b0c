"""Engine options of one completion: adapter, speculative decoding, and the size of the KV cache.

Sampling settings and limits are in ``domain.generation.request``.
"""

import attrs

from mlxk.domain.errors import ValidationError
from mlxk.domain.models.model import ModelHandle

MAX_DRAFT_TOKENS = 16
"""Most tokens that a draft model proposes at a time; more are rarely accepted."""

KV_BITS = (2, 4, 8)
"""Sizes of quantized keys and values, bits."""

MIN_KV_SIZE = 16
"""Fewest tokens of a rotating KV cache."""


@attrs.frozen
class EngineOptions:
    """Trade-offs between memory, speed and exactness. The defaults change nothing."""

    adapter: str | None = None
    """Absolute directory of a LoRA adapter to apply to the model."""
    draft_model: ModelHandle | None = None
    """A small model with the same vocabulary, for speculative decoding; it does not change the text."""
    draft_tokens: int = 3
    """Tokens proposed at a time."""
    kv_bits: int | None = None
    """Bits of a quantized KV cache; None does not quantize it."""
    max_kv_size: int | None = None
    """Tokens of a rotating KV cache, which keeps the first few and the last ones; None keeps all."""

    @property
    def batchable(self) -> bool:
        """Whether the sequence can share a batch with others."""
        return self.draft_model is None and self.kv_bits is None and self.max_kv_size is None

    def validate(self) -> None:
        """Check ranges and combinations.

        Raises:
            ValidationError: Names each field out of range, or the options that exclude each other.
        """
        faults = []
        if not 1 <= self.draft_tokens <= MAX_DRAFT_TOKENS:
            faults.append(f"draft_tokens must be at least 1 and at most {MAX_DRAFT_TOKENS} (got {self.draft_tokens})")
        if self.kv_bits is not None and self.kv_bits not in KV_BITS:
            faults.append(f"kv_bits must be one of {', '.join(map(str, KV_BITS))} (got {self.kv_bits})")
        if self.max_kv_size is not None and self.max_kv_size < MIN_KV_SIZE:
            faults.append(f"max_kv_size must be at least {MIN_KV_SIZE} (got {self.max_kv_size})")
        if self.max_kv_size is not None and self.kv_bits is not None:
            faults.append("max_kv_size and kv_bits exclude each other")
        if self.max_kv_size is not None and self.draft_model is not None:
            faults.append("max_kv_size and draft_model exclude each other")
        if faults:
            raise ValidationError("; ".join(faults))
