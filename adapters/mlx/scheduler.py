"""Who computes next.

One turn is one decoding step of every running batch, then at most one piece of one prompt. The fairness rule:

- **Running answers are never starved.** Between two of their tokens lies at most one piece of a prompt, of
  ``PIECE_SHARED`` tokens.
- **Prompts alternate.** Odd turns go to the prompt with the fewest tokens left, even turns to the one that waited
  longest. So a short prompt behind long ones is served within two pieces, and a long one, however many short ones
  keep coming, gets at least every other piece: it loses no more than the work of the short ones, and never more than half.
- **Alone is fast.** A prompt that shares the machine with nobody is computed in pieces of ``PIECE_ALONE`` tokens.
- **First come, first admitted.** At most ``max_rows`` answers run or compute their prompt; the others queue in order.

When a batch fails as a whole, its rows begin again, each from its own tokens in a batch of its own: the one at fault
fails by itself, and the others go on with what they had.
"""

from collections import deque
from collections.abc import Callable

import attrs
import mlx.core as mx

from mlxk.adapters.mlx.batch import NOT_FINITE, DecodeBatch, Row, Sampled
from mlxk.adapters.mlx.prefill import Prefill
from mlxk.adapters.mlx.residency import Resident
from mlxk.application.ports.event_log import EventLog
from mlxk.domain.errors import ExecutionError, MlxkError
from mlxk.domain.generation import FinishReason

PIECE_SHARED = 128
"""Tokens of a prompt computed at once while others wait or decode."""

PIECE_ALONE = 512
"""Tokens of a prompt computed at once when nobody else is there."""

_STEPS_BETWEEN_CLEANING = 512
"""Decoding steps after which buffers MLX keeps for reuse are given back."""


@attrs.define(eq=False)
class Job:
    """One answer to compute and what it runs on."""

    row: Row
    residents: tuple[Resident, ...]
    on_start: Callable[[], None]
    """Called once, when it no longer queues."""
    alone: bool = False
    prefill: Prefill | None = None
    batch: DecodeBatch | None = None


class Scheduler:
    """Runs jobs; used on the owner thread only.

    Args:
        log: Hears of failures.
        max_rows: Answers that run or compute their prompt at the same time.
        release: Takes back the models of a job that has ended.
    """

    def __init__(self, log: EventLog, max_rows: int, release: Callable[[tuple[Resident, ...]], None]) -> None:
        self._log = log
        self._release = release
        self._max_rows = max_rows
        self._queue: deque[Job] = deque()
        self._prefills: list[Job] = []
        self._decoding: dict[Row, Job] = {}
        self._batches: list[DecodeBatch] = []
        self._turns = 0

    def add(self, job: Job) -> None:
        """Queue a job."""
        self._queue.append(job)

    def cancel(self, row: Row) -> None:
        """End a job wherever it is; does nothing when it has ended already."""
        for job in [*self._queue, *self._prefills, *self._decoding.values()]:
            if job.row is row:
                self._end(job, FinishReason.CANCELLED)
                return

    def turn(self) -> bool:
        """Do one turn; return whether there is anything left to do."""
        self._turns += 1
        for batch in list(self._batches):
            self._decode(batch)
        self._admit()
        self._compute_prompt()
        if self._turns % _STEPS_BETWEEN_CLEANING == 0:
            mx.clear_cache()
        return bool(self._queue or self._prefills or self._decoding)

    def end_all(self, error: MlxkError | None = None) -> None:
        """End every job, cancelled or failed."""
        for job in [*self._queue, *self._prefills, *self._decoding.values()]:
            self._end(job, error or FinishReason.CANCELLED)

    def _admit(self) -> None:
        while self._queue and len(self._prefills) + len(self._decoding) < self._max_rows:
            job = self._queue.popleft()
            job.on_start()
            self._prefills.append(job)

    def _compute_prompt(self) -> None:
        if not self._prefills:
            return
        shared = len(self._prefills) > 1 or bool(self._decoding)
        job = min(self._prefills, key=_tokens_left) if self._turns % 2 else self._prefills[0]
        try:
            prefill = job.prefill or self._begin(job)
            prefill.advance(PIECE_SHARED if shared else PIECE_ALONE)
        except Exception as error:  # noqa: BLE001 - a door: whatever this prompt raised must not harm the others
            self._end(job, _failure(error))
            return
        if prefill.remaining == 0:
            self._prefills.remove(job)
            self._start_decoding(job, prefill)

    def _begin(self, job: Job) -> Prefill:
        from mlx_lm.models.cache import make_prompt_cache

        row, resident = job.row, job.residents[0]
        tokens = [*row.answer.prompt, *row.answer.generated]
        row.cached.clear()
        row.answer.started(0)
        job.prefill = Prefill(row, resident, tokens, make_prompt_cache(resident.model.network))
        return job.prefill

    def _start_decoding(self, job: Job, prefill: Prefill) -> None:
        job.prefill = None
        alone = job.alone or not all(hasattr(cache, "merge") for cache in prefill.cache)
        batch = None if alone else self._shared_batch(prefill.resident)
        if batch is None:
            batch = DecodeBatch(prefill.resident.model.network, alone)
            self._batches.append(batch)
        try:
            batch.join(job.row, prefill.cache, prefill.tokens[-1])
        except Exception as error:  # noqa: BLE001 - a door: a cache that cannot be merged may leave the batch half changed
            self._decoding[job.row] = job
            job.batch = batch
            self._rebuild(batch, error)
            return
        self._decoding[job.row] = job
        job.batch = batch

    def _shared_batch(self, resident: Resident) -> DecodeBatch | None:
        network = resident.model.network
        return next((batch for batch in self._batches if batch.network is network and not batch.alone), None)

    def _decode(self, batch: DecodeBatch) -> None:
        try:
            sampled = batch.step()
        except Exception as error:  # noqa: BLE001 - a door: the batch is rebuilt below
            self._rebuild(batch, error)
            return
        ended = [(each.row, outcome) for each in sampled if (outcome := self._accept(each)) is not None]
        if ended:
            for row, outcome in ended:
                self._end(self._decoding[row], outcome)

    def _accept(self, sampled: Sampled) -> FinishReason | MlxkError | None:
        row = sampled.row
        if row.fault is not None:
            return _failure(row.fault)
        if sampled.token == NOT_FINITE:
            return ExecutionError("The model's output was not a number, so the answer cannot go on.")
        return row.answer.accept(sampled.token)

    def _rebuild(self, batch: DecodeBatch, error: Exception) -> None:
        """Start every row of a failed batch anew, each by itself; a row that fails a second time has failed."""
        self._log.warning("a batch failed and is rebuilt", rows=len(batch), error=type(error).__name__)
        self._batches.remove(batch)
        for job in [job for job in self._decoding.values() if job.batch is batch]:
            del self._decoding[job.row]
            job.batch = None
            job.row.attempts += 1
            if job.row.attempts > 1:
                self._end(job, _failure(error))
            else:
                job.alone = True
                self._prefills.append(job)

    def _end(self, job: Job, outcome: FinishReason | MlxkError) -> None:
        if job in self._queue:
            self._queue.remove(job)
            job.on_start()
        if job in self._prefills:
            self._prefills.remove(job)
        if self._decoding.pop(job.row, None) is not None and job.batch is not None:
            job.batch.leave([job.row])
            if not job.batch.rows:
                self._batches.remove(job.batch)
        if isinstance(outcome, FinishReason):
            job.row.answer.finish(outcome)
        else:
            job.row.answer.fail(outcome)
        self._release(job.residents)


def _tokens_left(job: Job) -> int:
    return job.prefill.remaining if job.prefill else len(job.row.answer.prompt) + len(job.row.answer.generated)


def _failure(error: Exception) -> MlxkError:
    if isinstance(error, MlxkError):
        return error
    return ExecutionError(f"Generation failed ({type(error).__name__}).", detail={"reason": str(error)[:500]})
