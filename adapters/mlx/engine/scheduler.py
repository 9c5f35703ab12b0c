"""Who computes next.

One turn is one decoding step of every running batch, then some pieces of prompts. The fairness rule:

- **Running answers and waiting prompts share by heads.** Between two tokens of a running answer one piece of
  ``PIECE_SHARED`` prompt tokens is computed, or as many as there are waiting prompts to a running answer, but never
  more than ``MOST_PIECES``. A piece takes a rest of up to ``SMALL_REST`` tokens along: by itself it would cost nearly
  as much as a piece, since reading the weights is what small pieces cost.
- **Prompts alternate.** A piece goes to the prompt with the fewest tokens left, unless the last one went past the
  prompt that came first: then it goes there. So a short prompt behind long ones is served with the next piece but one
  at the latest, and a long one, however many short ones keep coming, gets at least every other piece: it loses no more
  than the work of the short ones, and never more than half.
- **Newcomers are seen between pieces**, not only between turns, and whoever is ready to answer begins at once.
- **Alone is fast.** A prompt that shares the machine with nobody is computed in pieces of ``PIECE_ALONE`` tokens.
- **First come, first admitted**, see ``admission``.

When a batch fails as a whole, its rows begin again, each from its own tokens in a batch of its own: the one at fault
fails by itself, and the others go on with what they had.
"""

from collections.abc import Callable, Iterable

import attrs
import mlx.core as mx

from mlxk.adapters.mlx.engine import malloc
from mlxk.adapters.mlx.engine.admission import AdmissionQueue
from mlxk.adapters.mlx.engine.batch import Batch, DecodeBatch, Row, Sampled
from mlxk.adapters.mlx.engine.jobs import Job
from mlxk.adapters.mlx.engine.kv_cache import make_cache, quantize
from mlxk.adapters.mlx.engine.logprobs import token_logprob
from mlxk.adapters.mlx.engine.model_pool import PooledModel
from mlxk.adapters.mlx.engine.prefill import Prefill
from mlxk.adapters.mlx.engine.prefix_cache import PrefixCache
from mlxk.adapters.mlx.engine.sampling import NOT_FINITE
from mlxk.adapters.mlx.exception_summary import ExceptionSummary
from mlxk.application.ports.event_log import EventLog
from mlxk.domain.errors import ExecutionError, MlxkError
from mlxk.domain.generation.engine_options import EngineOptions
from mlxk.domain.generation.request import FinishReason

PIECE_SHARED = 64
"""Prompt tokens computed at once while others wait or decode."""

SMALL_REST = PIECE_SHARED // 2
"""Prompt tokens that are computed with the piece before them."""

PIECE_ALONE = 256
"""Prompt tokens computed at once when nobody else is there; fixed, so that a lone answer is the same each time."""

MOST_PIECES = 8
"""Pieces computed in one turn."""

_TURNS_BETWEEN_CLEANING = 512
"""Turns after which the buffers that MLX keeps for reuse are given back."""

Outcome = FinishReason | MlxkError


@attrs.define
class EngineCounters:
    """Counters; written on the owner thread, readable from any."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    ended: int = 0
    failed: int = 0


class Scheduler:
    """Runs jobs; used on the owner thread only.

    Args:
        log: Hears of failures.
        admission: Who may start.
        prefixes: What was computed before.
        tally: Counts.
        release: Takes back the models of a job that has ended.
    """

    def __init__(
        self,
        log: EventLog,
        admission: AdmissionQueue,
        prefixes: PrefixCache,
        tally: EngineCounters,
        release: Callable[[tuple[PooledModel, ...]], None],
    ) -> None:
        self._log = log
        self._admission = admission
        self._prefixes = prefixes
        self._tally = tally
        self._release = release
        self._prefills: list[Job] = []
        self._decoding: dict[Row, Job] = {}
        self._batches: list[Batch] = []
        self._turns = 0
        self._first_served = True
        """Whether the last piece went to the prompt that came first."""

    @property
    def running(self) -> int:
        """Answers being computed."""
        return len(self._prefills) + len(self._decoding)

    def add(self, job: Job) -> None:
        """Queue a job."""
        self._admission.queue(job)

    def cancel(self, job: Job) -> None:
        """End a job wherever it is; does nothing when it has ended already."""
        if job in self._prefills or job.row in self._decoding or self._admission.withdraw(job):
            self._end(job, FinishReason.CANCELLED)

    def turn(self, interrupted: Callable[[], bool]) -> bool:
        """Do one turn; return whether there is anything left to do.

        Args:
            interrupted: Whether someone wants something, so that the turn had better end soon.
        """
        self._turns += 1
        for batch in list(self._batches):
            self._decode(batch, batch.step)
        self._prefills += self._admission.admit(self.running, self._batches, self._prefills)
        if self._prefills:
            # No token waits for a piece of somebody's prompt.
            for batch in list(self._batches):
                self._decode(batch, batch.collect)
            self._compute_prompts(interrupted)
        busy = self.running > 0 or self._admission.waiting > 0
        cleaning = self._turns % _TURNS_BETWEEN_CLEANING == 0
        if cleaning or not busy:
            mx.clear_cache()
        if cleaning:
            malloc.give_back()
        return busy

    def end_all(self, error: MlxkError | None = None) -> None:
        """End every job, cancelled or failed."""
        jobs = [*self._admission.withdraw_all(), *self._prefills, *self._decoding.values()]
        if error is not None:
            # What is wrong may be in a batch, so none is looked at again.
            self._batches.clear()
            for job in jobs:
                job.batch = None
        for job in jobs:
            self._end(job, error or FinishReason.CANCELLED)

    def _compute_prompts(self, interrupted: Callable[[], bool]) -> None:
        alone = len(self._prefills) == 1 and not self._decoding
        pieces = min(MOST_PIECES, -(-len(self._prefills) // max(1, len(self._decoding))))
        left = PIECE_ALONE if alone else PIECE_SHARED * pieces
        ready: list[Job] = []
        while left > 0 and (waiting := [job for job in self._prefills if job not in ready]):
            job = min(waiting, key=lambda each: each.tokens_left) if self._first_served else waiting[0]
            if ready and job.tokens_left > left:
                # Whoever is ready does not wait for a piece of somebody else's prompt.
                break
            self._first_served = job is waiting[0]
            try:
                prefill = job.prefill or self._begin(job)
                piece = left if alone else min(left, PIECE_SHARED)
                left -= self._advance(job, prefill, piece if job.tokens_left > piece + SMALL_REST else job.tokens_left)
            except Exception as error:  # noqa: BLE001 - a door: whatever this prompt raised must not harm the others
                self._end(job, _failure(error))
                continue
            if prefill.remaining == 0:
                ready.append(job)
            if interrupted():
                break
        for resident in {job.resident: None for job in ready}:
            self._start_decoding([job for job in ready if job.resident is resident])

    def _begin(self, job: Job) -> Prefill:
        model, tokens = job.resident.model, job.tokens
        found = self._prefixes.find(job.identity, tokens)
        cache = (
            found.cache if found.cache is not None else make_cache(model.network, job.engine_options, model.head_size)
        )
        if job.media is not None:
            job.prefill = job.media.prefill(tokens, cache, found.tokens)
        else:
            job.prefill = Prefill(model.network, tokens, cache, found.tokens, found.parting)
        if len(job.residents) > 1:
            draft = job.residents[1].model.network
            job.prefill.draft = Prefill(draft, tokens, make_cache(draft, EngineOptions(), None))
        job.row.prepare()
        job.answer.started(found.tokens)
        self._tally.cached_tokens += found.tokens
        return job.prefill

    def _advance(self, job: Job, prefill: Prefill, most: int) -> int:
        """Compute up to so many tokens of a prompt; return how many."""
        done = 0
        while done < most and prefill.remaining > 0:
            done += prefill.advance(most - done)
            self._settle(job, prefill)
            if prefill.position == prefill.parting:
                prefill.keep(self._prefixes, job.identity)
        self._tally.prompt_tokens += done
        if prefill.remaining == 0:
            self._settle(job, prefill)
            prefill.keep(self._prefixes, job.identity)
            job.resident.learn(prefill.cache, prefill.position)
        return done

    def _settle(self, job: Job, prefill: Prefill) -> None:
        if job.engine_options.kv_bits is not None:
            quantize(prefill.cache, job.engine_options.kv_bits, job.resident.model.head_size)

    def _start_decoding(self, jobs: list[Job]) -> None:
        for job in jobs:
            self._prefills.remove(job)
            job.row.cached = job.tokens[:-1]
        together = [job for job in jobs if not job.must_be_alone]
        if together:
            self._join(self._shared_batch(together[0].resident), together)
        for job in jobs:
            if job not in together:
                job.answer.notes += job.why_alone
                self._join(job.own_batch(), [job])

    def _join(self, batch: Batch, jobs: list[Job]) -> None:
        if batch not in self._batches:
            self._batches.append(batch)
        prefills = [job.prefill for job in jobs if job.prefill is not None]
        for job in jobs:
            job.prefill, job.batch = None, batch
            self._decoding[job.row] = job
        try:
            batch.join(
                [job.row for job in jobs], [each.cache for each in prefills], [each.tokens[-1] for each in prefills]
            )
        except Exception as error:  # noqa: BLE001 - a door: caches that cannot be merged leave the batch half changed
            self._rebuild(batch, error)

    def _shared_batch(self, resident: PooledModel) -> Batch:
        network = resident.model.network
        shared = (batch for batch in self._batches if batch.network is network and not batch.alone)
        return next(shared, None) or DecodeBatch(network)

    def _decode(self, batch: Batch, work: Callable[[], list[Sampled]]) -> None:
        try:
            sampled = work()
        except Exception as error:  # noqa: BLE001 - a door: the batch is rebuilt
            self._rebuild(batch, error)
            return
        self._tally.generated_tokens += len(sampled)
        outcomes: dict[Row, Outcome] = {}
        for each in sampled:
            if each.row not in outcomes and (outcome := self._accept(each)) is not None:
                outcomes[each.row] = outcome
        if outcomes:
            self._leave(batch, outcomes)
            for row, outcome in outcomes.items():
                self._end(self._decoding[row], outcome)

    def _accept(self, sampled: Sampled) -> Outcome | None:
        row = sampled.row
        if sampled.token == NOT_FINITE and row.fault is None:
            row.fault = ExecutionError("The model's output was not a number, so the answer cannot go on.")
        if row.fault is not None:
            return _failure(row.fault)
        try:
            if sampled.ranking is None:
                return row.answer.accept(sampled.token)
            decoder = self._decoding[row].resident.model.decoder
            return row.answer.accept(sampled.token, token_logprob(decoder, sampled.token, sampled.ranking))
        except Exception as error:  # noqa: BLE001 - a door: what goes wrong with one answer's text ends that answer
            return _failure(error)

    def _leave(self, batch: Batch, rows: Iterable[Row]) -> None:
        """Take rows out of a batch; what they computed is kept unless they failed."""
        rows = list(rows)
        for row in rows:
            if row.fault is None:
                self._prefixes.put(self._decoding[row].identity, row.cached, batch.extract(row))
            self._decoding[row].batch = None
        batch.leave(rows)
        if not batch.rows:
            self._batches.remove(batch)
        self._admission.make_room(self._batches, self._prefills)

    def _rebuild(self, batch: Batch, error: Exception) -> None:
        """Start every row of a failed batch anew, each by itself; a row that fails a second time has failed."""
        self._log.warning("a batch failed and is rebuilt", rows=len(batch.rows), error=type(error).__name__)
        self._batches.remove(batch)
        for job in [job for job in self._decoding.values() if job.batch is batch]:
            job.batch = None
            job.row.attempts += 1
            if job.row.attempts > 1:
                self._end(job, _failure(error))
            else:
                del self._decoding[job.row]
                job.alone = True
                self._prefills.append(job)

    def _end(self, job: Job, outcome: Outcome) -> None:
        if job in self._prefills:
            self._prefills.remove(job)
        if job.batch is not None:
            self._leave(job.batch, [job.row])
        self._decoding.pop(job.row, None)
        if isinstance(outcome, FinishReason):
            try:
                job.answer.finish(outcome)
            except Exception as error:  # noqa: BLE001 - a door: the reader waits for an end, whatever happens
                outcome = _failure(error)
        if isinstance(outcome, MlxkError):
            job.answer.fail(outcome)
            self._tally.failed += 1
        self._tally.ended += 1
        self._release(job.residents)
        job.release_arrays()


def _failure(error: Exception) -> MlxkError:
    if isinstance(error, MlxkError):
        # Without the frames it went through: they hold arrays, which must not leave the owner thread.
        error.__cause__ = error.__context__ = None
        return error.with_traceback(None)
    fault = ExceptionSummary.of(error)
    return ExecutionError(f"Generation failed ({fault.kind}).", detail={"where": fault.place})
