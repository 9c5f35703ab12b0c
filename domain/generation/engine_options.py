"""How an answer is computed: what trades memory, speed and exactness against each other.

What is generated and when it stops is ``domain.generation.request``'s.
"""

import attrs

from mlxk.domain.errors import ValidationError
from mlxk.domain.models.model import ModelHandle

MAX_DRAFT_TOKENS = 16
"""Tokens a draft model may propose at a time; more are hardly ever confirmed."""

KV_BITS = (2, 4, 8)
"""Sizes in which keys and values can be kept, bits."""

MIN_KV_SIZE = 16
"""Tokens a bounded cache remembers at least."""


@attrs.frozen
class EngineOptions:
    """How an answer is computed: what trades memory, speed and exactness. The defaults change nothing."""

    adapter: str | None = None
    """Absolute directory of a LoRA adapter to apply to the model."""
    draft_model: ModelHandle | None = None
    """A small model with the same vocabulary that proposes tokens for the model to confirm; the text stays the same."""
    draft_tokens: int = 3
    """Tokens proposed at a time."""
    kv_bits: int | None = None
    """Keep keys and values in so many bits; None keeps them as they are."""
    max_kv_size: int | None = None
    """Remember only the first few and the last so many tokens; None remembers all."""

    @property
    def batchable(self) -> bool:
        """Whether answers computed so can share steps with others."""
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
