"""The admission queue: sequences that have not started, and when each may start.

Admission is first in, first out. A sequence starts when fewer than ``max_rows`` run and its estimated KV cache fits
into the cache budget and the machine's free memory; the prefix cache is shrunk for it. When nothing runs, the next
sequence always starts. The estimate uses the measured cache bytes a token of the model, or an upper bound from its
config.
"""

from collections import deque

from mlxk.adapters.mlx.engine.sequence import Sequence
from mlxk.adapters.mlx.engine.working_memory import WorkingMemory

_EXPECTED_GENERATED_TOKENS = 512
"""Upper bound of the generated tokens in the estimate; few sequences reach their limit."""


class AdmissionQueue:
    """The queue of sequences that have not started; used on the owner thread only.

    Args:
        max_rows: Sequences that run at the same time.
        cache_budget_bytes: Limit of the running sequences' KV caches and the prefix cache together; None: no limit.
        memory: Says whether memory is free, and shrinks the prefix cache.
    """

    def __init__(self, max_rows: int, cache_budget_bytes: int | None, memory: WorkingMemory) -> None:
        self._max_rows = max_rows
        self._budget = cache_budget_bytes
        self._memory = memory
        self._queue: deque[Sequence] = deque()
        self._counted: Sequence | None = None
        """The last sequence that was counted as waiting for memory; each is counted once."""

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

    def put_back(self, sequence: Sequence) -> None:
        """Put a preempted sequence at the front of the queue."""
        self._queue.appendleft(sequence)

    def admit(self, running: int, used_bytes: int, growth: int, prefilling: list[Sequence]) -> list[Sequence]:
        """Return the sequences that start now.

        Args:
            running: Sequences that have started.
            used_bytes: Size of the KV caches of all batches.
            growth: Bytes by which these will grow next.
            prefilling: Sequences in prefill.
        """
        admitted: list[Sequence] = []
        while self._queue and running + len(admitted) < self._max_rows:
            first = self._queue[0]
            fits = self.make_room(used_bytes, [*prefilling, *admitted, first])
            fits = fits and self._memory.can_admit(_estimated_cache_bytes(first) + growth)
            if running + len(admitted) and not fits:
                self._memory.decisions.waits += first is not self._counted
                self._counted = first
                break
            admitted.append(self._queue.popleft())
        return admitted

    def make_room(self, used_bytes: int, prefilling: list[Sequence]) -> bool:
        """Shrink the prefix cache until all KV caches fit into the budget; return whether they do.

        Args:
            used_bytes: Size of the KV caches of all batches.
            prefilling: Sequences in prefill, whose caches are estimated.
        """
        if self._budget is None:
            return True
        needed = used_bytes + sum(map(_estimated_cache_bytes, prefilling))
        self._memory.evict(self._budget - needed)
        return needed <= self._budget


def _estimated_cache_bytes(sequence: Sequence) -> int:
    """Return the estimated size of a sequence's KV cache, bytes; 0 when neither measurement nor config tells it."""
    expected = min(sequence.limits.max_tokens, len(sequence.generated) + _EXPECTED_GENERATED_TOKENS)
    tokens = len(sequence.prompt) + expected
    return int(tokens * (sequence.model.bytes_per_token or sequence.model.model.cache_bytes_per_token))
