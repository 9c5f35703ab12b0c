"""The scheduler: alternates decoding steps and prefill chunks (continuous batching with chunked prefill).

One step is one decoding step of every running batch, then some prefill chunks; ``chunk_policy`` states the fairness
rule and chooses the chunks. Requests are admitted between chunks, not only between steps, and a sequence that finished
prefill starts to decode at once.

When a step of a batch fails, each of its sequences is computed again from its own tokens, in a batch of its own: the
faulty sequence fails alone, and the others continue after the tokens they had generated.
"""

from collections.abc import Callable, Iterable
from typing import Any
from weakref import WeakKeyDictionary

import mlx.core as mx

from mlxk.adapters.mlx.chunk_policy import PassCosts
from mlxk.adapters.mlx.engine.admission import AdmissionQueue
from mlxk.adapters.mlx.engine.batch import Batch, DecodeBatch, Sampled, SpeculativeBatch
from mlxk.adapters.mlx.engine.prefill import Prefill, give_up
from mlxk.adapters.mlx.engine.prefiller import EngineCounters, Prefiller
from mlxk.adapters.mlx.engine.proposers import Drafter, DraftModel, DraftRecord, DraftTrial, Proposer
from mlxk.adapters.mlx.engine.sampling import NOT_FINITE
from mlxk.adapters.mlx.engine.sequence import Sequence
from mlxk.adapters.mlx.engine.working_memory import WorkingMemory
from mlxk.adapters.mlx.library_imports import failed, is_compile_failure
from mlxk.adapters.mlx.loading.text_model import PooledModel
from mlxk.adapters.mlx.memory import return_freed_memory
from mlxk.application.ports.system import Clock, EventLog
from mlxk.domain.errors import ExecutionError, MlxkError
from mlxk.domain.generation.request import FinishReason

_STEPS_BETWEEN_TRIMS = 512
"""Steps after which the buffers that MLX keeps for reuse are freed."""

_STEPS_BETWEEN_MEMORY_CHECKS = 16
"""Steps between two checks that the caches of running sequences can grow."""

_UNMERGEABLE_NOTE = "Computed outside the common batch because this model's cache cannot be shared."

Outcome = FinishReason | MlxkError


class Scheduler:
    """Computes sequences; used on the owner thread only.

    Args:
        log: Receives failures.
        clock: Times the steps and chunks.
        admission: The queue of sequences that have not started.
        memory: Grants memory; has the prefix cache.
        counters: Updated by every step.
        release: Returns the model leases of a sequence that has ended.
    """

    def __init__(
        self,
        log: EventLog,
        clock: Clock,
        admission: AdmissionQueue,
        memory: WorkingMemory,
        counters: EngineCounters,
        release: Callable[[tuple[PooledModel, ...]], None],
    ) -> None:
        self._log = log
        self._clock = clock
        self._admission = admission
        self._memory, self._prefixes = memory, memory.prefixes
        self._counters = counters
        self._prefiller = Prefiller(log, clock, memory, counters)
        self._release = release
        self._prefilling: list[Sequence] = []
        self._decoding: dict[Sequence, Batch] = {}
        self._batches: list[Batch] = []
        self._draft_records: WeakKeyDictionary[PooledModel, dict[str, DraftRecord]] = WeakKeyDictionary()
        self._steps = 0
        self._step_began: float | None = None
        """Time of the batch's last tokens, moved forward by the time that prefill chunks have taken since; None when
        the next step's duration must not be recorded."""

    @property
    def running(self) -> int:
        """Sequences that have started and not ended."""
        return len(self._prefilling) + len(self._decoding)

    @property
    def _used_bytes(self) -> int:
        return sum(batch.size_bytes for batch in self._batches)

    def shared_chunk(self, costs: PassCosts) -> int:
        """Return the size of a prefill chunk beside other sequences, tokens."""
        return self._prefiller.policy.shared_chunk(costs)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence."""
        self._admission.add(sequence)

    def cancel(self, sequence: Sequence) -> None:
        """End a sequence in any state; does nothing when it has ended already."""
        if sequence in self._prefilling or sequence in self._decoding or self._admission.remove(sequence):
            self._end(sequence, FinishReason.CANCELLED)

    def step(self, interrupted: Callable[[], bool]) -> bool:
        """Do one step; return whether anything is left to do.

        Args:
            interrupted: Returns whether work was posted to the owner thread, so that the step should end soon.
        """
        self._steps += 1
        for batch in list(self._batches):
            self._decode(batch, batch.step)
        self._check_memory()
        growth = sum(batch.growth_bytes for batch in self._batches) if self._admission.waiting else 0
        self._prefilling += self._admission.admit(self.running, self._used_bytes, growth, self._prefilling)
        self._end_drafts()
        if self._prefilling:
            # Finished tokens must not wait for a prefill chunk.
            for batch in list(self._batches):
                self._decode(batch, batch.collect)
            self._prefill(interrupted)
        busy = self.running > 0 or self._admission.waiting > 0
        trims = self._steps % _STEPS_BETWEEN_TRIMS == 0
        if trims or not busy:
            mx.clear_cache()
        if trims:
            return_freed_memory()
        return busy

    def end_all(self, error: MlxkError | None = None) -> None:
        """End every sequence, as cancelled or with an error."""
        sequences = [*self._admission.remove_all(), *self._prefilling, *self._decoding]
        if error is not None:
            # The fault may be in a batch, so none is used again.
            self._batches.clear()
            self._decoding.clear()
        for sequence in sequences:
            self._end(sequence, error or FinishReason.CANCELLED)

    def _check_memory(self) -> None:
        """Make room for growing caches: evict prefixes, preempt the youngest sequences, or fail the only one."""
        self._memory.poll_swap()
        if self._steps % _STEPS_BETWEEN_MEMORY_CHECKS or not self._decoding:
            return
        self._admission.make_room(self._used_bytes, self._prefilling)
        while self._decoding and not self._memory.can_grow(growth := sum(each.growth_bytes for each in self._batches)):
            youngest = self._prefilling[-1] if self._prefilling else next(reversed(self._decoding))
            if self.running > 1:
                self._preempt(youngest)
            elif self._memory.can_refuse:
                self._end(youngest, self._memory.refusal("There is no memory left for this answer.", growth))
            else:
                break

    def _preempt(self, sequence: Sequence) -> None:
        """Put a running sequence back into the queue and free its cache, which is computed again from its tokens."""
        batch = self._decoding.get(sequence)
        if batch is None:
            self._prefilling.remove(sequence)
            sequence.prefill = None
        else:
            self._decode(batch, batch.collect)
            if self._decoding.get(sequence) is not batch:
                return  # the collected token ended it, or its batch failed
            del self._decoding[sequence]
            batch.remove([sequence])
            if not batch.sequences:
                self._batches.remove(batch)
            self._step_began = None
        self._admission.put_back(sequence)
        self._memory.decisions.step_backs += 1
        mx.clear_cache()
        return_freed_memory()

    def _prefill(self, interrupted: Callable[[], bool]) -> None:
        began = self._clock.monotonic()
        self._prefiller.policy.begin_turn(
            len(self._prefilling),
            ((batch.sequences[0].costs, len(batch.sequences)) for batch in self._batches),
        )
        ready: list[Sequence] = []
        while True:
            waiting = [each for each in self._prefilling if each not in ready]
            sequence = self._prefiller.policy.choose(waiting, ready=bool(ready))
            if sequence is None:
                break
            ready += self._compute(sequence, [each for each in waiting if each is not sequence])
            if interrupted():
                break
        for kind in dict.fromkeys(each.batch_kind for each in ready):
            self._start_decoding([each for each in ready if each.batch_kind == kind])
        if self._step_began is not None:
            self._step_began += self._clock.monotonic() - began

    def _compute(self, sequence: Sequence, others: list[Sequence]) -> list[Sequence]:
        """Compute a chunk of a prompt, or several prompts in one pass; return the sequences that finished prefill."""
        if not self._begin_prefill(sequence):
            return []
        candidates = self._prefiller.policy.together(sequence, others) if sequence.shares_passes else []
        group = [each for each in candidates if self._begin_prefill(each) and each.shares_passes]
        if len(group) > 1 and self._prefiller.advance_together(group):
            return group
        if (prefill := sequence.prefill) is None:
            return []
        try:
            self._prefiller.advance(sequence, prefill, alone=self.running == 1)
        except Exception as error:  # noqa: BLE001 - boundary: one prompt's failure must not harm other sequences
            give_up(sequence.model.model.network, error)
            self._end(sequence, _failure(error))
            return []
        return [] if prefill.remaining else [sequence]

    def _begin_prefill(self, sequence: Sequence) -> bool:
        """Begin a prefill unless it has begun; return False when that failed, which ends the sequence."""
        try:
            if sequence.prefill is None:
                required = sequence.engine_options.draft_required
                drafted = self._may_draft(sequence) and (required or self._record(sequence).tries())
                self._prefiller.begin(sequence, self._prefilling, drafted=drafted)
        except Exception as error:  # noqa: BLE001 - boundary: one prompt's failure must not harm other sequences
            self._end(sequence, _failure(error))
        return sequence.prefill is not None

    def _start_decoding(self, sequences: list[Sequence]) -> None:
        drafted = [each for each in sequences if each.prefill and each.prefill.is_drafted and self._may_draft(each)]
        for sequence in sequences:
            self._prefilling.remove(sequence)
            sequence.end_prefill()
        together = [each for each in sequences if not each.must_decode_alone and each not in drafted]
        if together:
            self._add(self._shared_batch(together[0]), together)
        for sequence in sequences:
            if sequence not in together:
                if not sequence.alone and sequence.engine_options.batchable and sequence not in drafted:
                    sequence.notes.append(_UNMERGEABLE_NOTE)
                self._add(self._own_batch(sequence, drafts=sequence in drafted), [sequence])

    def _own_batch(self, sequence: Sequence, *, drafts: bool) -> Batch:
        """Return a batch for a single sequence that finished prefill."""
        network, options = sequence.model.model.network, sequence.engine_options
        proposer = _proposer(sequence) if drafts else None
        if proposer is None:
            return DecodeBatch(network, alone=True)
        trial = None if options.draft_required else DraftTrial(self._record(sequence))
        return SpeculativeBatch(network, proposer, options.draft_tokens or proposer.usual_width, trial)

    def _record(self, sequence: Sequence) -> DraftRecord:
        records = self._draft_records.setdefault(sequence.model, {})
        return records.setdefault(sequence.models[1].model.identity, DraftRecord())

    def _may_draft(self, sequence: Sequence) -> bool:
        """Whether to use the draft model; a default one only while no other sequence of the target model runs."""
        if sequence.engine_options.draft_required or not sequence.drafted:
            return sequence.drafted
        others = (each for each in (*self._prefilling, *self._decoding) if each is not sequence)
        return not sequence.alone and all(each.model is not sequence.model for each in others)

    def _end_drafts(self) -> None:
        """Stop using default draft models that do not pay, or whose sequence is no longer the only one of its model."""
        for batch in [each for each in self._batches if isinstance(each, SpeculativeBatch)]:
            if batch.trial is not None and not (batch.trial.pays and self._may_draft(batch.sequences[0])):
                self._stop_drafting(batch)
        for sequence in self._prefilling:
            if sequence.prefill is not None and not self._may_draft(sequence):
                sequence.prefill.end_draft()  # the draft model's prefill would only delay it

    def _stop_drafting(self, batch: SpeculativeBatch) -> None:
        """Move the sequence of a batch into the shared batch of its model, without its draft model."""
        (sequence,), tokens = batch.sequences, batch.sequences[0].tokens
        sequence.prefill = Prefill(batch.network, tokens, batch.extract(sequence), len(tokens) - 1)
        sequence.renew_context()
        batch.remove([sequence])
        self._batches.remove(batch)
        del self._decoding[sequence]
        self._prefilling.append(sequence)
        self._start_decoding([sequence])

    def _add(self, batch: Batch, sequences: list[Sequence]) -> None:
        if batch not in self._batches:
            self._batches.append(batch)
        self._step_began = None
        prefills = [sequence.prefill for sequence in sequences if sequence.prefill is not None]
        for sequence in sequences:
            sequence.prefill = None
            self._decoding[sequence] = batch
        try:
            batch.add(sequences, [each.cache for each in prefills], [each.tokens[-1] for each in prefills])
        except Exception as error:  # noqa: BLE001 - boundary: a failed merge leaves the batch half changed
            self._rebuild(batch, error)

    def _shared_batch(self, sequence: Sequence) -> Batch:
        shared = (each for each in self._batches if not each.alone)
        fitting = (each for each in shared if any(other.batch_kind == sequence.batch_kind for other in each.sequences))
        return next(fitting, None) or DecodeBatch(sequence.model.model.network)

    def _decode(self, batch: Batch, work: Callable[[], list[Sampled]]) -> None:
        try:
            sampled = work()
        except Exception as error:  # noqa: BLE001 - boundary: the batch is rebuilt
            self._rebuild(batch, error)
            return
        self._counters.generated_tokens += len(sampled)
        if sampled and isinstance(batch, DecodeBatch):
            self._observe_step(batch)
        outcomes: dict[Sequence, Outcome] = {}
        for each in sampled:
            if each.sequence not in outcomes and (outcome := _accept(each)) is not None:
                outcomes[each.sequence] = outcome
        if outcomes:
            self._remove(batch, outcomes)
            for sequence, outcome in outcomes.items():
                self._end(sequence, outcome)

    def _observe_step(self, batch: Batch) -> None:
        """Record the duration of a step, where only this batch and prefill chunks were computed since the last one."""
        now = self._clock.monotonic()
        if self._step_began is not None:
            batch.sequences[0].costs.observe_step(len(batch.sequences), now - self._step_began)
        self._step_began = now if len(self._batches) == 1 else None

    def _remove(self, batch: Batch, sequences: Iterable[Sequence]) -> None:
        """Remove sequences from a batch; the caches of those without an error go to the prefix cache."""
        sequences = list(sequences)
        for sequence in sequences:
            if sequence.error is None:
                cache = batch.extract(sequence)
                self._prefixes.put(sequence.cache_identity, sequence.cache_tokens, cache, exact=sequence.exact)
        batch.remove(sequences)
        self._step_began = None
        if not batch.sequences:
            self._batches.remove(batch)
        self._admission.make_room(self._used_bytes, self._prefilling)

    def _rebuild(self, batch: Batch, error: Exception) -> None:
        """Compute every sequence of a failed batch again, each alone; its second failure ends a sequence."""
        self._log.warning("a batch failed and is rebuilt", rows=len(batch.sequences), error=type(error).__name__)
        give_up(batch.network, error)
        if is_compile_failure(error):
            mx.disable_compile()  # the sequences are computed again without compiled kernels
        self._batches.remove(batch)
        for sequence in [each for each, its_batch in self._decoding.items() if its_batch is batch]:
            del self._decoding[sequence]
            sequence.failures += 1
            if sequence.failures > 1:
                self._end(sequence, _failure(error))
            else:
                sequence.alone = True
                self._prefilling.append(sequence)

    def _end(self, sequence: Sequence, outcome: Outcome) -> None:
        if sequence in self._prefilling:
            self._prefilling.remove(sequence)
        batch = self._decoding.get(sequence)
        if batch is not None and sequence in batch.sequences:
            self._remove(batch, [sequence])
        self._decoding.pop(sequence, None)
        if isinstance(outcome, FinishReason):
            try:
                sequence.finish(outcome)
            except Exception as error:  # noqa: BLE001 - boundary: the stream must get a final event in any case
                outcome = _failure(error)
        if isinstance(outcome, MlxkError):
            sequence.fail(outcome)
            self._counters.failed += 1
        self._counters.ended += 1
        self._release(sequence.models)
        sequence.release_arrays()


def _proposer(sequence: Sequence) -> Proposer | None:
    """Return the proposer of a sequence that finished prefill; None where no draft model or drafter took part in it."""
    prefill = sequence.prefill
    if prefill is None:
        return None
    if prefill.recorder is not None:
        drafter: Any = sequence.models[1].model
        return Drafter(prefill.recorder, drafter)
    if prefill.draft is None:
        return None
    return DraftModel(prefill.network, prefill.draft.network, prefill.draft.cache, prefill.tokens[-1])


def _accept(sampled: Sampled) -> Outcome | None:
    sequence = sampled.sequence
    if sampled.token == NOT_FINITE and sequence.error is None:
        sequence.error = ExecutionError("The model's output was not a number, so the answer cannot go on.")
    if sequence.error is not None:
        return _failure(sequence.error)
    try:
        return sequence.accept(sampled.token, sampled.logprobs)
    except Exception as error:  # noqa: BLE001 - boundary: a failure in one sequence's text ends that sequence
        return _failure(error)


def _failure(error: Exception) -> MlxkError:
    if isinstance(error, MlxkError):
        # Without traceback, whose frames hold arrays, which must not leave the owner thread.
        error.__cause__ = error.__context__ = None
        return error.with_traceback(None)
    return failed(error, "Generation")
