"""The queue of sequences that have not started: when each is admitted.

Admission is first in, first out. A sequence starts when fewer than ``max_rows`` run and its estimated KV cache fits
beside the running ones and into what the machine has free, the prefix cache making room; with nothing running the next
one always starts. The estimate is the model's measured size of a token, or an upper bound from its config.
"""

from collections import deque

from mlxk.adapters.mlx.engine.sequence import Sequence
from mlxk.adapters.mlx.engine.working_memory import WorkingMemory

_EXPECTED_GENERATED_TOKENS = 512
"""Upper bound of the generated tokens in the estimate; few sequences use all they are allowed."""


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

    def put_back(self, sequence: Sequence) -> None:
        """Have a sequence that was running be the next one to start."""
        self._queue.appendleft(sequence)

    def admit(self, running: int, used_bytes: int, growth: int, prefilling: list[Sequence]) -> list[Sequence]:
        """Return the sequences that start now.

        Args:
            running: Sequences that have started.
            used_bytes: The size of the caches of all batches.
            growth: What these will take soon, bytes.
            prefilling: Sequences whose prompts are computed.
        """
        admitted: list[Sequence] = []
        while self._queue and running + len(admitted) < self._max_rows:
            first = self._queue[0]
            fits = self.make_room(used_bytes, [*prefilling, *admitted, first])
            fits = fits and self._memory.has_room(_estimated_cache_bytes(first) + growth)
            if running + len(admitted) and not fits:
                self._memory.decisions.waits += first is not self._waited
                self._waited = first
                break
            admitted.append(self._queue.popleft())
        return admitted

    def make_room(self, used_bytes: int, prefilling: list[Sequence]) -> bool:
        """Evict as many prefixes as the caches of batches and of prefilling sequences need; return whether all fits."""
        if self._budget is None:
            return True
        needed = used_bytes + sum(map(_estimated_cache_bytes, prefilling))
        self._memory.evict(self._budget - needed)
        return needed <= self._budget


def _estimated_cache_bytes(sequence: Sequence) -> int:
    """Return the estimated size of a sequence's KV cache, bytes; 0 when neither measured nor in the config."""
    expected = min(sequence.limits.max_tokens, len(sequence.generated) + _EXPECTED_GENERATED_TOKENS)
    tokens = len(sequence.prompt) + expected
    return int(tokens * (sequence.model.bytes_per_token or sequence.model.model.cache_bytes_per_token))
