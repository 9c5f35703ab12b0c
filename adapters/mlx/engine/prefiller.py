"""Prefills of sequences: started from the prefix cache, computed in chunks, and stored in the prefix cache."""

import functools
from collections.abc import Iterable

import attrs
import mlx.core as mx

from mlxk.adapters.mlx.chunk_policy import SINGLE_CHUNK_CPU, SINGLE_CHUNK_GPU, SMALLEST_CHUNK, ChunkPolicy
from mlxk.adapters.mlx.engine.prefill import Prefill, advance_together, make_cache, quantize_cache, usable_options
from mlxk.adapters.mlx.engine.prefix_cache import NO_MATCH
from mlxk.adapters.mlx.engine.proposers import HiddenStateRecorder
from mlxk.adapters.mlx.engine.quantized_cache import cache_bytes
from mlxk.adapters.mlx.engine.sequence import Sequence
from mlxk.adapters.mlx.engine.working_memory import WorkingMemory
from mlxk.adapters.mlx.loading.drafter import LoadedDrafter
from mlxk.application.ports.system import Clock, EventLog
from mlxk.domain.generation.settings import EngineOptions

_USUAL_CACHE_NOTE = (
    "This model keeps its usual cache of keys and values: it cannot have the kind that the server prefers."
)
_OTHER_GROUPS_NOTE = (
    "Keys and values are quantized in groups of another size: the server's does not divide this model's."
)

_QUANTIZED_NOTE = "Of this prompt a kept beginning was used that was quantized while memory was short."


@attrs.define
class EngineCounters:
    """Totals since the engine started; written on the owner thread, readable from any."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    ended: int = 0
    failed: int = 0
    peak_bytes: int = 0
    """Peak memory of all arrays up to the last prefill chunk, at which MLX's own peak counter was reset."""


class Prefiller:
    """Computes prompts; used on the owner thread only.

    Args:
        log: Receives failures.
        clock: Times the chunks.
        memory: Limits the size of chunks; has the prefix cache.
        counters: Updated by every chunk.
    """

    def __init__(self, log: EventLog, clock: Clock, memory: WorkingMemory, counters: EngineCounters) -> None:
        self._memory = memory
        self._log = log
        self._clock = clock
        self._prefixes = memory.prefixes
        self._counters = counters

    @functools.cached_property
    def policy(self) -> ChunkPolicy[Sequence]:
        """Decides which prompt is computed next, and how much of it."""
        # Built on the owner thread, since it reads MLX's device.
        cpu = mx.default_device() == mx.Device(mx.cpu)
        return ChunkPolicy(SINGLE_CHUNK_CPU if cpu else SINGLE_CHUNK_GPU)

    def begin(self, sequence: Sequence, waiting: Iterable[Sequence] = (), *, drafted: bool) -> None:
        """Begin the prefill of a sequence with the longest prefix in the prefix cache.

        Args:
            sequence: A sequence without a prefill.
            waiting: Other sequences in prefill; their media may be encoded together with those of this one.
            drafted: Whether to prefill the draft model, too.

        Raises:
            CapabilityError: The model's layers do not support the kind of cache.
        """
        model, tokens = sequence.model.model, sequence.tokens
        options = usable_options(model.network, sequence.engine_options, model.head_size)
        if options != sequence.engine_options:
            sequence.engine_options = options
            if options.kv_bits is None:
                sequence.notes.append(_USUAL_CACHE_NOTE)
                self._log.info("a model keeps its usual cache of keys and values", model=model.name)
            else:
                sequence.notes.append(_OTHER_GROUPS_NOTE)
                self._log.info("keys and values are quantized in groups of another size", model=model.name)
        scored = sequence.scored_alternatives
        match = NO_MATCH if scored is not None else self._prefixes.find(sequence.cache_identity, tokens)
        cache = match.cache
        if cache is None:
            cache = make_cache(model.network, sequence.engine_options, model.head_size)
        if sequence.media is not None:
            others = [each for each in waiting if each.prefill is None and each.model is sequence.model]
            sequence.media.encode_with([each.media for each in others if each.media is not None])
            prefill = sequence.media.prefill(tokens, cache, match.tokens)
        else:
            stops = self._prefixes.stops(match, sequence.boundaries, cache)
            prefill = Prefill(model.network, tokens, cache, match.tokens, stops, alternatives=scored)
        sequence.prefill = prefill
        if drafted:
            self._begin_draft(sequence, prefill)
        sequence.start(match.tokens)
        sequence.exact = match.exact
        if not match.exact:
            sequence.notes.append(_QUANTIZED_NOTE)
            self._log.info("a kept prompt is used that was quantized", model=model.name, tokens=match.tokens)
        self._counters.cached_tokens += match.tokens

    def _begin_draft(self, sequence: Sequence, prefill: Prefill) -> None:
        draft, tokens = sequence.models[1].model, prefill.tokens
        if isinstance(draft, LoadedDrafter):
            prefill.recorder = HiddenStateRecorder(prefill.network, draft.read_modules(prefill.network))
            return
        match = self._prefixes.find(sequence.draft_identity, tokens)
        cache = match.cache or make_cache(draft.network, EngineOptions(), None)
        prefill.draft = Prefill(draft.network, tokens, cache, match.tokens)

    def advance(self, sequence: Sequence, prefill: Prefill, *, alone: bool) -> None:
        """Compute the next chunk of a prompt.

        Args:
            sequence: The sequence.
            prefill: Its prefill.
            alone: Whether no other sequence runs.

        Raises:
            InsufficientMemoryError: Not even the smallest chunk fits, and there is nothing to wait for.
        """
        max_tokens = self._memory.fit_chunk(
            self.policy.tokens(sequence), sequence.model.chunk_bytes_per_token, alone=alone
        )
        self._counters.peak_bytes = max(self._counters.peak_bytes, mx.get_peak_memory())
        mx.reset_peak_memory()
        memory_before = mx.get_active_memory()
        done, began, position = 0, self._clock.monotonic(), prefill.position
        while done < max_tokens and prefill.remaining > 0:
            done += prefill.advance(max_tokens - done)
            _quantize(sequence, prefill)
            if prefill.position in prefill.stops:
                prefill.store(self._prefixes, sequence.cache_identity, exact=sequence.exact)
        seconds = self._clock.monotonic() - began
        self.policy.spend(sequence, done, seconds)
        if done >= SMALLEST_CHUNK:
            sequence.model.chunk_bytes_per_token = max(0, mx.get_peak_memory() - memory_before) / done
        if sequence.media is None and not prefill.is_drafted:
            sequence.costs.observe_chunk(done, position, seconds)
        self._counters.prompt_tokens += done
        if prefill.remaining:
            sequence.report_progress()
        else:
            self._end_prompt(sequence, prefill)

    def advance_together(self, sequences: list[Sequence]) -> bool:
        """Complete several prefills in one pass; return False when that failed: each must then be computed alone."""
        began = self._clock.monotonic()
        prefills = [sequence.prefill for sequence in sequences if sequence.prefill is not None]
        try:
            remaining = sum(prefill.remaining for prefill in prefills)
            computed = advance_together(prefills)
            for sequence, prefill in zip(sequences, prefills, strict=True):
                self._end_prompt(sequence, prefill)
        except Exception as error:  # noqa: BLE001 - boundary: one prompt's failure must not harm other sequences
            self._log.warning("prompts are not computed together", rows=len(sequences), error=type(error).__name__)
            for sequence in sequences:
                sequence.joint_prefill_failed = True
            return False
        self.policy.spend(sequences[0], computed, self._clock.monotonic() - began)
        self._counters.prompt_tokens += remaining
        return True

    def _end_prompt(self, sequence: Sequence, prefill: Prefill) -> None:
        _quantize(sequence, prefill)
        prefill.store(self._prefixes, sequence.cache_identity, exact=sequence.exact)
        if prefill.draft is not None:
            prefill.draft.store(self._prefixes, sequence.draft_identity, exact=True, to_disk=False)
        sequence.model.measure_cache(cache_bytes(prefill.cache), prefill.position)


def _quantize(sequence: Sequence, prefill: Prefill) -> None:
    options = sequence.engine_options
    # A TurboQuant cache quantizes every token itself.
    if options.kv_bits is not None and not options.is_turboquant:
        quantize_cache(prefill.cache, options.kv_bits, options.kv_group_size)
