"""The scheduler: computes prompts and decoding steps in turns.

One step is one decoding step of every running batch, then some chunks of prompts: ``chunk_policy`` states the rule of
fairness and decides which. Requests are admitted between chunks, not only between steps, and a sequence whose prompt is
computed starts to decode at once.

When a step of a batch fails, its sequences are computed again, each from its own tokens in a batch of its own: the
faulty one fails by itself, and the others continue with the tokens they had generated.
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

_STEPS_BETWEEN_LOOKS = 16
"""Steps after which it is looked whether the caches of running sequences can grow."""

_UNMERGEABLE_NOTE = "Computed outside the common batch because this model's cache cannot be shared."

Outcome = FinishReason | MlxkError


class Scheduler:
    """Computes sequences; used on the owner thread only.

    Args:
        log: Receives failures.
        clock: Measures what steps and chunks take.
        admission: The queue of sequences that have not started.
        memory: Has the prefix cache, and says how much of a prompt fits.
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
        """When the last tokens of the batch came, later by what prompts took since; None when a step is not comparable
        with the ones before it."""

    @property
    def running(self) -> int:
        """Sequences that have started and not ended."""
        return len(self._prefilling) + len(self._decoding)

    @property
    def _used_bytes(self) -> int:
        return sum(batch.size_bytes for batch in self._batches)

    def shared_chunk(self, costs: PassCosts) -> int:
        """Return the tokens of a prompt that are computed at a time beside other sequences."""
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
            interrupted: Whether work was posted to the owner thread, so that the step should end soon.
        """
        self._steps += 1
        for batch in list(self._batches):
            self._decode(batch, batch.step)
        self._look_at_memory()
        growth = sum(batch.growth_bytes for batch in self._batches) if self._admission.waiting else 0
        self._prefilling += self._admission.admit(self.running, self._used_bytes, growth, self._prefilling)
        self._end_drafts()
        if self._prefilling:
            # No finished token waits for a prefill chunk.
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

    def _look_at_memory(self) -> None:
        """Have caches grow only into what is free: prefixes go, the youngest step back, and the last one ends."""
        self._memory.look()
        if self._steps % _STEPS_BETWEEN_LOOKS or not self._decoding:
            return
        self._admission.make_room(self._used_bytes, self._prefilling)
        while self._decoding and not self._memory.lets_grow(growth := sum(each.growth_bytes for each in self._batches)):
            youngest = self._prefilling[-1] if self._prefilling else next(reversed(self._decoding))
            if self.running > 1:
                self._step_back(youngest)
            elif self._memory.can_refuse:
                self._end(youngest, self._memory.refusal("There is no memory left for this answer.", growth))
            else:
                break

    def _step_back(self, sequence: Sequence) -> None:
        """Have a sequence wait, and give its memory back: it is computed again from its prompt and its tokens."""
        batch = self._decoding.get(sequence)
        if batch is None:
            self._prefilling.remove(sequence)
            sequence.prefill = None
        else:
            self._decode(batch, batch.collect)
            if self._decoding.get(sequence) is not batch:
                return  # it ended, or its batch failed
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
        """Compute a chunk of a prompt, or several prompts in one pass; return those that are computed."""
        if not self._has_begun(sequence):
            return []
        candidates = self._prefiller.policy.together(sequence, others) if sequence.shares_passes else []
        group = [each for each in candidates if self._has_begun(each) and each.shares_passes]
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

    def _has_begun(self, sequence: Sequence) -> bool:
        """Begin a prefill unless it has begun; return False when that failed, which ends the sequence."""
        try:
            if sequence.prefill is None:
                asked = sequence.engine_options.draft_required
                drafted = self._drafts(sequence) and (asked or self._record(sequence).tries())
                self._prefiller.begin(sequence, self._prefilling, drafted=drafted)
        except Exception as error:  # noqa: BLE001 - boundary: one prompt's failure must not harm other sequences
            self._end(sequence, _failure(error))
        return sequence.prefill is not None

    def _start_decoding(self, sequences: list[Sequence]) -> None:
        drafted = [sequence for sequence in sequences if sequence.own_draft and self._drafts(sequence)]
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
        """Return a batch for a single sequence whose prompt is computed."""
        network, options = sequence.model.model.network, sequence.engine_options
        proposer = _proposer(sequence) if drafts else None
        if proposer is None:
            return DecodeBatch(network, alone=True)
        trial = None if options.draft_required else DraftTrial(self._record(sequence))
        return SpeculativeBatch(network, proposer, options.draft_tokens or proposer.usual_width, trial)

    def _record(self, sequence: Sequence) -> DraftRecord:
        records = self._draft_records.setdefault(sequence.model, {})
        return records.setdefault(sequence.models[1].model.identity, DraftRecord())

    def _drafts(self, sequence: Sequence) -> bool:
        """Whether a draft model is used: one that is a default, only for a sequence without others of its model."""
        if sequence.engine_options.draft_required or not sequence.drafted:
            return sequence.drafted
        others = (each for each in (*self._prefilling, *self._decoding) if each is not sequence)
        return not sequence.alone and all(each.model is not sequence.model for each in others)

    def _end_drafts(self) -> None:
        """Go on without the draft models that do not pay, and without those of sequences that got company."""
        for batch in [each for each in self._batches if isinstance(each, SpeculativeBatch)]:
            if batch.trial is not None and not (batch.trial.pays and self._drafts(batch.sequences[0])):
                self._stop_drafting(batch)
        for sequence in self._prefilling:
            if sequence.prefill is not None and not self._drafts(sequence):
                sequence.prefill.end_draft()  # whose prompt would only delay it

    def _stop_drafting(self, batch: SpeculativeBatch) -> None:
        """Have the sequence of a batch continue without its draft model, with others of its model if there are any."""
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
        """Note what the tokens that have just come took, where nothing but this batch and prompts was computed."""
        now = self._clock.monotonic()
        if self._step_began is not None:
            batch.sequences[0].costs.observe_step(len(batch.sequences), now - self._step_began)
        self._step_began = now if len(self._batches) == 1 else None

    def _remove(self, batch: Batch, sequences: Iterable[Sequence]) -> None:
        """Remove sequences from a batch; their caches go to the prefix cache unless they failed."""
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
        """Compute every sequence of a failed batch again, each alone; a second failure ends a sequence."""
        self._log.warning("a batch failed and is rebuilt", rows=len(batch.sequences), error=type(error).__name__)
        give_up(batch.network, error)
        if is_compile_failure(error):
            mx.disable_compile()  # the sequences are computed again without
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
            except Exception as error:  # noqa: BLE001 - boundary: a reader must get an end in any case
                outcome = _failure(error)
        if isinstance(outcome, MlxkError):
            sequence.fail(outcome)
            self._counters.failed += 1
        self._counters.ended += 1
        self._release(sequence.models)
        sequence.release_arrays()


def _proposer(sequence: Sequence) -> Proposer | None:
    """Return what proposes tokens to a sequence whose prompt is computed; None where nothing has read the prompt."""
    prefill = sequence.prefill
    if prefill is None:
        return None
    if prefill.reading is not None:
        drafter: Any = sequence.models[1].model
        return Drafter(prefill.reading, drafter)
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
        # Without traceback: its frames hold arrays, which must not leave the owner thread.
        error.__cause__ = error.__context__ = None
        return error.with_traceback(None)
    return failed(error, "Generation")
