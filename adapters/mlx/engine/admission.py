"""Memory of running sequences: when a queued one is admitted, and how much of a prompt is computed at a time.

Admission is first in, first out. A sequence starts when fewer than ``max_rows`` run and its estimated KV cache fits
beside the running ones and into what the machine has free, the prefix cache making room; with nothing running the next
one always starts. The estimate is the model's measured size of a token, or an upper bound from its config.

Nothing is decided once and for all: what is free is read anew for each decision. When it is too little, prefixes are
evicted; then queued sequences wait; then chunks of prompts get smaller; and a prompt is refused only when it is alone
and not even the smallest chunk of it fits, since the system would end the process.
"""

from collections import deque
from collections.abc import Callable

import attrs
import mlx.core as mx

from mlxk.adapters.mlx.chunk_policy import SMALLEST_CHUNK
from mlxk.adapters.mlx.engine.batch import Batch
from mlxk.adapters.mlx.engine.prefix_cache import PrefixCache
from mlxk.adapters.mlx.engine.sequence import Sequence
from mlxk.adapters.mlx.memory import return_freed_memory
from mlxk.domain.errors import InsufficientMemoryError

_EXPECTED_GENERATED_TOKENS = 512
"""Upper bound of the generated tokens in the estimate; few sequences use all they are allowed."""

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

    def fitting(self, sequence: Sequence, tokens: int, *, alone: bool) -> int:
        """Return how many of so many tokens of a prompt can be computed at once.

        Args:
            sequence: Whose prompt it is.
            tokens: At least one.
            alone: Whether no other sequence runs whose end would free memory.

        Raises:
            InsufficientMemoryError: Not even a few fit, and there is nothing to wait for.
        """
        each = sequence.model.chunk_bytes_per_token
        free = self.room(int(tokens * each))
        if free is None or free >= tokens * each:
            return tokens
        fitting, least = int(free / each), min(tokens, SMALLEST_CHUNK)
        if fitting < least and alone and self._free_bytes() is not None:
            self.decisions.refusals += 1
            raise InsufficientMemoryError(
                f"There is no memory left for this prompt, of which {sequence.prefill_position} of"
                f" {len(sequence.prompt)} tokens are computed.",
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


class AdmissionQueue:
    """The queue of sequences that have not started; used on the owner thread only.

    Args:
        max_rows: Sequences that run at the same time.
        cache_budget_bytes: Limit of the running sequences' KV caches and the prefix cache together; None: no limit.
        memory: Makes room.
    """

    def __init__(self, max_rows: int, cache_budget_bytes: int | None, memory: WorkingMemory) -> None:
        self._max_rows = max_rows
        self._budget = cache_budget_bytes
        self._memory = memory
        self._queue: deque[Sequence] = deque()
        self._waited: Sequence | None = None
        """The first of the queue, once it was counted as waiting for memory."""

    @property
    def waiting(self) -> int:
        """Sequences in the queue."""
        return len(self._queue)

    def add(self, sequence: Sequence) -> None:
        """Append a sequence."""
        self._queue.append(sequence)

    def remove(self, sequence: Sequence) -> bool:
        """Remove a sequence from the queue; return whether it was in it."""
        if sequence not in self._queue:
            return False
        self._queue.remove(sequence)
        return True

    def remove_all(self) -> list[Sequence]:
        """Empty the queue and return its sequences."""
        sequences = list(self._queue)
        self._queue.clear()
        return sequences

    def admit(self, running: int, batches: list[Batch], prefilling: list[Sequence]) -> list[Sequence]:
        """Return the sequences that start now."""
        admitted: list[Sequence] = []
        while self._queue and running + len(admitted) < self._max_rows:
            first = self._queue[0]
            fits = self.make_room(batches, [*prefilling, *admitted, first]) and self._is_free(first)
            if running + len(admitted) and not fits:
                self._memory.decisions.waits += first is not self._waited
                self._waited = first
                break
            admitted.append(self._queue.popleft())
        return admitted

    def make_room(self, batches: list[Batch], prefilling: list[Sequence]) -> bool:
        """Evict as many prefixes as the caches of batches and of prefilling sequences need; return whether all fits."""
        if self._budget is None:
            return True
        needed = sum(batch.size_bytes for batch in batches) + sum(map(_estimated_cache_bytes, prefilling))
        self._memory.evict(self._budget - needed)
        return needed <= self._budget

    def _is_free(self, sequence: Sequence) -> bool:
        """Whether the machine has free what a sequence is estimated to need."""
        needed = _estimated_cache_bytes(sequence)
        free = self._memory.room(needed)
        return free is None or free >= needed


def _estimated_cache_bytes(sequence: Sequence) -> int:
    """Return the estimated size of a sequence's KV cache, bytes; 0 when neither measured nor in the config."""
    tokens = len(sequence.prompt) + min(sequence.limits.max_tokens, _EXPECTED_GENERATED_TOKENS)
    return int(tokens * (sequence.model.bytes_per_token or sequence.model.model.cache_bytes_per_token))
