"""Who may start: answers queue in the order they came, for a place and for memory.

An answer starts when fewer than ``max_rows`` run and its estimated cache fits beside what runs. Prefixes kept from
earlier prompts make room first. With nothing running the next one always starts: waiting would not help it. What a
token takes is known of a model once one of its prompts was computed; until then its config says what it takes at most.
"""

from collections import deque
from collections.abc import Sequence

from mlxk.adapters.mlx.engine.batch import Batch
from mlxk.adapters.mlx.engine.jobs import Job
from mlxk.adapters.mlx.engine.prefix_cache import PrefixCache

_EXPECTED_ANSWER_TOKENS = 512
"""Tokens an answer is expected to have at most when its memory is estimated; few use up what they are allowed."""


class AdmissionQueue:
    """The queue; used on the owner thread only.

    Args:
        max_rows: Answers that run at the same time.
        cache_budget_bytes: What running answers and kept prefixes may take together; None: no limit.
        prefixes: What is kept of earlier prompts.
    """

    def __init__(self, max_rows: int, cache_budget_bytes: int | None, prefixes: PrefixCache) -> None:
        self._max_rows = max_rows
        self._budget = cache_budget_bytes
        self._prefixes = prefixes
        self._queue: deque[Job] = deque()

    @property
    def waiting(self) -> int:
        """Answers in the queue."""
        return len(self._queue)

    def queue(self, job: Job) -> None:
        """Put a job at the end of the queue."""
        self._queue.append(job)

    def withdraw(self, job: Job) -> bool:
        """Take a job out of the queue; return whether it was there."""
        if job not in self._queue:
            return False
        self._queue.remove(job)
        return True

    def withdraw_all(self) -> list[Job]:
        """Empty the queue and return what was in it."""
        jobs = list(self._queue)
        self._queue.clear()
        return jobs

    def admit(self, running: int, batches: Sequence[Batch], prefills: Sequence[Job]) -> list[Job]:
        """Return the jobs that start now."""
        admitted: list[Job] = []
        while self._queue and running + len(admitted) < self._max_rows:
            fits = self.make_room(batches, [*prefills, *admitted, self._queue[0]])
            if running + len(admitted) and not fits:
                break
            admitted.append(self._queue.popleft())
        return admitted

    def make_room(self, batches: Sequence[Batch], starting: Sequence[Job]) -> bool:
        """Give up as many prefixes as the caches of answers need; return whether the rest is within the budget.

        Args:
            batches: What decodes.
            starting: Jobs whose caches are not in a batch yet.
        """
        if self._budget is None:
            return True
        taken = sum(batch.size_bytes for batch in batches) + sum(map(_estimate, starting))
        self._prefixes.shrink(max(0, self._budget - taken))
        return taken <= self._budget


def _estimate(job: Job) -> int:
    """Return what the job's cache will take, bytes; 0 when neither the model's config nor its past tells."""
    answer = job.answer
    tokens = len(answer.prompt) + min(answer.limits.max_tokens, _EXPECTED_ANSWER_TOKENS)
    return int(tokens * (job.resident.bytes_per_token or job.resident.model.cache_bytes_per_token))
