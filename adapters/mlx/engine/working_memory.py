"""Memory while sequences are computed: what gives way when it is short.

Nothing is decided once and for all: what is free is read anew for each decision. When it is too little, prefixes are
evicted; then queued sequences wait; then chunks of prompts get smaller; and a prompt is refused only when it is alone
and not even the smallest chunk of it fits, since the system would end the process.
"""

from collections.abc import Callable

import attrs
import mlx.core as mx

from mlxk.adapters.mlx.chunk_policy import SMALLEST_CHUNK
from mlxk.adapters.mlx.engine.prefix_cache import PrefixCache
from mlxk.adapters.mlx.memory import return_freed_memory
from mlxk.domain.errors import InsufficientMemoryError

_NEGLIGIBLE_BYTES = 32 * 1024**2
"""What needs less than this is computed without asking the system what is free."""


@attrs.define
class MemoryDecisions:
    """What lack of memory has decided since the engine started; written on the owner thread, readable from any."""

    waits: int = 0
    """Sequences that had to wait though fewer than the most were running."""
    evictions: int = 0
    """Prefixes that made room for sequences."""
    smaller_chunks: int = 0
    """Chunks of prompts that were smaller than they would have been."""
    refusals: int = 0
    """Sequences that were ended, since nothing else was left."""


class WorkingMemory:
    """Decides with what is free now; used on the owner thread only.

    Args:
        free_bytes: Returns what the machine has free; None where that is unknown. More would end the process.
        prefixes: The prefix cache, which makes room.
    """

    def __init__(self, free_bytes: Callable[[], int | None], prefixes: PrefixCache) -> None:
        self._free_bytes = free_bytes
        self.prefixes = prefixes
        self.decisions = MemoryDecisions()

    def evict(self, max_bytes: int) -> None:
        """Evict prefixes down to a size."""
        before = len(self.prefixes)
        self.prefixes.shrink(max(0, max_bytes))
        self.decisions.evictions += before - len(self.prefixes)

    def room(self, needed: int) -> int | None:
        """Return what is free after making room for so many bytes, as far as possible; None when nothing limits it."""
        if needed < _NEGLIGIBLE_BYTES:
            return None
        free = self._free()
        if free is None or free >= needed:
            return free
        self.evict(self.prefixes.size_bytes - (needed - free))
        mx.clear_cache()
        return_freed_memory()
        return self._free()

    def fitting(self, tokens: int, each: float, *, alone: bool) -> int:
        """Return how many of so many tokens of a prompt can be computed at once.

        Args:
            tokens: At least one.
            each: Bytes that each of them takes.
            alone: Whether no other sequence runs whose end would free memory.

        Raises:
            InsufficientMemoryError: Not even a few fit, and there is nothing to wait for.
        """
        free = self.room(int(tokens * each))
        if free is None or free >= tokens * each:
            return tokens
        fitting, least = int(free / each), min(tokens, SMALLEST_CHUNK)
        if fitting < least and alone and self._free_bytes() is not None:
            self.decisions.refusals += 1
            raise InsufficientMemoryError(
                "There is no memory left for this prompt.",
                hint="Send a shorter prompt, or use a smaller model.",
                detail={"needed_bytes": int(least * each), "free_bytes": free},
            )
        self.decisions.smaller_chunks += 1
        return max(fitting, least)

    def _free(self) -> int | None:
        known = (self._free_bytes(), _working_set_left())
        return min((each for each in known if each is not None), default=None)


def _working_set_left() -> int | None:
    """Return what is left of the memory that a GPU uses without becoming slow; None where there is no such limit."""
    if not mx.metal.is_available():
        return None
    return int(mx.device_info()["max_recommended_working_set_size"]) - mx.get_active_memory()
