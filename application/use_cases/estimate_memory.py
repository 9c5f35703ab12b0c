"""Estimate whether a model fits into this machine's memory."""

import attrs

from mlxk.application.ports.memory_probe import MemoryProbe
from mlxk.domain.models.memory import MemoryVerdict, cache_bytes_per_token, judge_memory
from mlxk.domain.models.model import ModelDetails

DEFAULT_CONTEXT_TOKENS = 4096
"""Tokens of context the estimate holds when nobody says how many: a long chat."""

WEIGHT_SUFFIXES = (".safetensors", ".gguf", ".bin", ".npz")


@attrs.frozen
class EstimateMemory:
    """Judges a model against the memory of this moment."""

    memory: MemoryProbe

    def __call__(self, details: ModelDetails, context_tokens: int | None = None) -> MemoryVerdict:
        """Return the estimate.

        Args:
            details: The model.
            context_tokens: Tokens of context to hold; when None, a long chat or the model's own window if shorter.
        """
        window = details.description.context_length or DEFAULT_CONTEXT_TOKENS
        tokens = min(DEFAULT_CONTEXT_TOKENS, window) if context_tokens is None else context_tokens
        weights = sum(entry.size_bytes for entry in details.files if entry.path.endswith(WEIGHT_SUFFIXES))
        return judge_memory(self.memory.read(), weights, cache_bytes_per_token(details.config), tokens)
