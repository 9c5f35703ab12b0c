"""Decoding batches: sequences of one model that step together, or one sequence with speculative decoding.

A batch owns the merged KV cache and the tokens in flight. A step starts computing the next token of every sequence
before it waits for the previous one, so that the host works while the device computes.

Shapes: B sequences, V tokens in the vocabulary; logits [B, V], or [L, V] of L positions; tokens in flight [B].
"""

import copy
from abc import abstractmethod
from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol

import mlx.core as mx

from mlxk.adapters.mlx.engine.proposers import DraftTrial, Proposer, can_rewind
from mlxk.adapters.mlx.engine.quantized_cache import cache_bytes, growth_bytes, kept_state
from mlxk.adapters.mlx.engine.sampling import (
    NOT_FINITE,
    BatchSampler,
    LogprobArrays,
    TopLogprobs,
    exact_logits,
    materialize_logprobs,
    materialize_tokens,
    top_logprobs,
)
from mlxk.adapters.mlx.engine.sequence import Sequence


class Sampled(NamedTuple):
    """One sampled token; a named tuple, which is cheap to create for every token."""

    sequence: Sequence
    token: int
    """``NOT_FINITE`` when the logits were unusable."""
    logprobs: TopLogprobs | None = None


class Batch(Protocol):
    """Sequences that step together."""

    network: Any
    alone: bool
    """Whether the batch holds a single sequence and accepts no other."""
    sequences: list[Sequence]
    _cache: list[Any]

    @property
    @abstractmethod
    def size_bytes(self) -> int:
        """Size of the KV cache."""

    @property
    def growth_bytes(self) -> int:
        """By how many bytes the KV cache grows next."""
        tokens = max((len(each.cache_tokens) for each in self.sequences), default=0)
        further = max((each.limits.max_tokens - len(each.generated) for each in self.sequences), default=0)
        return growth_bytes(self._cache, tokens, further)

    @abstractmethod
    def add(self, sequences: list[Sequence], caches: list[list[Any]], last_tokens: list[int]) -> None:
        """Add sequences whose prompts are computed except for their last tokens; the batch then owns the caches."""

    @abstractmethod
    def remove(self, sequences: Iterable[Sequence]) -> None:
        """Remove sequences."""

    @abstractmethod
    def extract(self, sequence: Sequence) -> list[Any]:
        """Return the cache of one sequence."""

    @abstractmethod
    def step(self) -> list[Sampled]:
        """Start computing the next tokens and return the previous ones, those of a sequence in order."""

    @abstractmethod
    def collect(self) -> list[Sampled]:
        """Wait for the tokens in flight and return them now instead of with the next step."""


class DecodeBatch(Batch):
    """Sequences of one model that step together.

    Args:
        network: The model.
        alone: Holds one sequence and keeps the cache unmerged: for caches that cannot be merged, and for sequences that
            must not share a batch.
    """

    def __init__(self, network: Any, alone: bool = False) -> None:  # noqa: ANN401
        self.network = network
        self.alone = alone
        self.sequences: list[Sequence] = []
        self._cache: list[Any] = []
        self._merged = False
        self._tokens: Any = None
        """Tokens in flight, shape [B]."""
        self._log_normalizer: Any = None
        """Log-normalizer of the logits of ``_tokens``, shape [B, 1]; not finite when the logits were unusable."""
        self._collected: list[int] | None = None
        """Values of ``_tokens`` once ``collect`` has returned them; None before."""
        self._logprobs: dict[Sequence, LogprobArrays] = {}
        self._sampler: BatchSampler | None = None

    @property
    def size_bytes(self) -> int:
        """Size of the KV cache, padding included."""
        return cache_bytes(self._cache)

    def add(self, sequences: list[Sequence], caches: list[list[Any]], last_tokens: list[int]) -> None:
        """Add at least one sequence; each cache is a list of layers."""
        tokens, log_normalizer = mx.array(last_tokens, dtype=mx.uint32), mx.zeros((len(sequences), 1))
        if not self.sequences and len(sequences) == 1:
            self._cache, self._merged = caches[0], False
        else:
            added = [layers[0].merge(list(layers)) for layers in zip(*caches, strict=True)]
            if not self.sequences:
                self._cache = added
            else:
                if not self._merged:
                    self._cache = [layer.merge([layer]) for layer in self._cache]
                for layer, added_layer in zip(self._cache, added, strict=True):
                    layer.extend(added_layer)
            self._merged = True
        if self.sequences:
            tokens = mx.concatenate([self._tokens, tokens])
            log_normalizer = mx.concatenate([self._log_normalizer, log_normalizer])
        self._tokens, self._log_normalizer = tokens, log_normalizer
        if self._collected is not None:
            self._collected += last_tokens
        for sequence in sequences:
            sequence.primed = False
        self.sequences.extend(sequences)
        self._sampler = None

    def remove(self, sequences: Iterable[Sequence]) -> None:
        """Remove sequences."""
        removed = set(sequences)
        keep = [index for index, sequence in enumerate(self.sequences) if sequence not in removed]
        if len(keep) == len(self.sequences):
            return
        self.sequences = [self.sequences[index] for index in keep]
        for sequence in removed:
            self._logprobs.pop(sequence, None)
        self._sampler = None
        if not keep:
            self._cache, self._tokens, self._log_normalizer = [], None, None
            self._collected, self._merged = None, False
            return
        for layer in self._cache:
            layer.filter(keep)
        indices = mx.array(keep)
        self._tokens, self._log_normalizer = self._tokens[indices], self._log_normalizer[indices]
        if self._collected is not None:
            self._collected = [self._collected[index] for index in keep]

    def extract(self, sequence: Sequence) -> list[Any]:
        """Return the cache of one sequence."""
        if not self._merged:
            return self._cache
        index = self.sequences.index(sequence)
        return [layer.extract(index) for layer in self._cache]

    def step(self) -> list[Sampled]:
        """Start the next token of every sequence and return the previous one, unless it was collected.

        Sequences that were just added have no previous token. No token is started when every sequence ends with the
        one in flight.
        """
        if self._collected is None and all(each.ends_with_token_in_flight for each in self.sequences):
            return self.collect()
        tokens, log_normalizer, logprobs, collected = (
            self._tokens,
            self._log_normalizer,
            self._logprobs,
            self._collected,
        )
        logits = exact_logits(self.network, tokens[:, None], self._cache)[:, -1, :]
        logits = self._processed(logits, tokens)
        if self._sampler is None:
            self._sampler = BatchSampler([sequence.sampling for sequence in self.sequences])
        draws = [self._draw(self.sequences[index]) for index in self._sampler.drawn]
        self._tokens, self._log_normalizer = self._sampler.sample(logits, draws)
        self._logprobs = self._top_logprobs(logits)
        mx.async_eval(self._tokens, self._log_normalizer, list(self._logprobs.values()))  # type: ignore[no-untyped-call]
        self._collected = None
        values = materialize_tokens(tokens, log_normalizer) if collected is None else collected
        sampled = self._sampled(values, logprobs) if collected is None else []
        for sequence, token in zip(self.sequences, values, strict=True):
            sequence.cache_tokens.append(max(token, 0))
            sequence.primed = True
        return sampled

    def collect(self) -> list[Sampled]:
        """Wait for the tokens in flight and return them now; the next step returns none."""
        if self._collected is not None or not self.sequences:
            return []
        self._collected = values = materialize_tokens(self._tokens, self._log_normalizer)
        return self._sampled(values, self._logprobs)

    def _sampled(self, values: list[int], logprobs: dict[Sequence, LogprobArrays]) -> list[Sampled]:
        sampled = []
        for sequence, token in zip(self.sequences, values, strict=True):
            if sequence.primed:
                arrays = logprobs.get(sequence)
                sampled.append(Sampled(sequence, token, materialize_logprobs(arrays) if arrays is not None else None))
        return sampled

    def _draw(self, sequence: Sequence) -> float:
        in_flight = sequence.primed and self._collected is None
        return sequence.random.at(len(sequence.generated) + in_flight)

    def _processed(self, logits: mx.array, inputs: mx.array) -> mx.array:
        """Apply the logits processors of each sequence; an exception fails that sequence only."""
        if not any(sequence.processors for sequence in self.sequences):
            return logits
        processed = []
        for index, sequence in enumerate(self.sequences):
            own = logits[index : index + 1]
            if sequence.processors and sequence.error is None:
                context = (
                    sequence.context.update_and_fetch(inputs[index : index + 1])
                    if sequence.primed
                    else sequence.context.tokens
                )
                try:
                    for process in sequence.processors:
                        own = process(context, own)
                    if own.shape != (1, logits.shape[-1]):
                        raise ValueError(f"a logits processor returned the shape {own.shape}")
                except Exception as error:  # noqa: BLE001 - boundary: a processor must not fail the other sequences
                    sequence.error, own = error, logits[index : index + 1]
            processed.append(own)
        return mx.concatenate(processed, axis=0)

    def _top_logprobs(self, logits: mx.array) -> dict[Sequence, LogprobArrays]:
        """Start computing the log probabilities of the sequences that report them."""
        started = {}
        for index, sequence in enumerate(self.sequences):
            count = sequence.settings.logprobs
            if count is not None:
                logprobs = logits[index] - self._log_normalizer[index]
                started[sequence] = top_logprobs(logprobs, self._tokens[index], count)
        return started


class SpeculativeBatch(Batch):
    """Speculative decoding of one sequence: the target model verifies all proposed tokens in one pass.

    The text is the one that the target would generate alone, with a seed too: every position has its own random number,
    and a proposal is accepted when the target, sampled with that number, gives the same token. Such a sequence cannot
    share steps with others.

    Args:
        network: The target model.
        proposer: Has processed the prompt except for its last token.
        width: Tokens proposed a step.
        trial: Decides whether to propose; None to propose always.
    """

    alone = True

    def __init__(
        self,
        network: Any,  # noqa: ANN401
        proposer: Proposer,
        width: int,
        trial: DraftTrial | None = None,
    ) -> None:
        self.network = network
        self.trial = trial
        self.sequences: list[Sequence] = []
        self._proposer: Proposer | None = proposer
        self._cache: list[Any] = []
        self._width = width
        self._last = 0
        """The newest token, which the target has not processed."""

    @property
    def size_bytes(self) -> int:
        """Size of both KV caches."""
        return cache_bytes(self._cache) + (self._proposer.size_bytes if self._proposer is not None else 0)

    def add(self, sequences: list[Sequence], caches: list[list[Any]], last_tokens: list[int]) -> None:
        """Add the only sequence."""
        self.sequences = list(sequences)
        self._cache = caches[0]
        self._last = last_tokens[0]

    def remove(self, sequences: Iterable[Sequence]) -> None:
        """Remove the sequence."""
        removed = set(sequences)
        self.sequences = [sequence for sequence in self.sequences if sequence not in removed]
        if not self.sequences:
            self._cache, self._proposer = [], None

    def extract(self, sequence: Sequence) -> list[Any]:
        """Return the target's cache; that of the proposer is dropped."""
        return self._cache

    def step(self) -> list[Sampled]:
        """Propose, verify, and return the accepted tokens and the target's next one."""
        sequence, trial, proposer = self.sequences[0], self.trial, self._proposer
        if proposer is None:
            return []
        began, start, last = sequence.clock.monotonic(), len(sequence.generated), self._last
        proposes = (trial is None or trial.proposes) and proposer.is_ready(self._width + 1)
        proposal_draws = [sequence.random.at(start + index) for index in range(self._width if proposes else 0)]
        proposed = proposer.propose(sequence.sampling, proposal_draws, last) if proposes else []
        width = len(proposed)
        checkpoint = _Checkpoint(self._cache, width + 1) if proposed else None
        logits = exact_logits(proposer.network, mx.array([[last, *proposed]]), self._cache)[0, -(width + 1) :, :]
        logits = self._processed(sequence, logits, proposed)
        sampler = BatchSampler([sequence.sampling] * (width + 1))
        draws = [sequence.random.at(start + index) for index in sampler.drawn]
        sampled, log_normalizer = sampler.sample(logits, draws)
        tokens = materialize_tokens(sampled, log_normalizer)
        accepted = 0
        while accepted < width and tokens[accepted] == proposed[accepted]:
            accepted += 1
        if checkpoint is not None and accepted < width:
            checkpoint.rewind(self.network, [last, *proposed[:accepted]])
        sequence.cache_tokens += [last, *proposed[:accepted]]
        self._last = max(tokens[accepted], 0)
        proposer.settle(last, proposed, accepted, self._last)
        sequence.proposed_tokens += width
        sequence.accepted_tokens += accepted
        if trial is not None:
            trial.observe(sequence.clock.monotonic() - began, accepted + 1)
        return [
            Sampled(sequence, token, self._logprobs(sequence, logits[index] - log_normalizer[index], token))
            for index, token in enumerate(tokens[: accepted + 1])
        ]

    def collect(self) -> list[Sampled]:
        """Return no tokens, since a step leaves none in flight."""
        return []

    def _processed(self, sequence: Sequence, logits: mx.array, proposed: list[int]) -> mx.array:
        if not sequence.processors or sequence.error is not None:
            return logits
        processed = []
        try:
            for index in range(logits.shape[0]):
                own = logits[index : index + 1]
                context = mx.array([*sequence.generated, *proposed[:index]], dtype=mx.int32)
                for process in sequence.processors:
                    own = process(context, own)
                processed.append(own)
        except Exception as error:  # noqa: BLE001 - boundary: a processor fails its sequence, not the engine
            sequence.error = error
            return logits
        return mx.concatenate(processed, axis=0)

    def _logprobs(self, sequence: Sequence, logprobs: mx.array, token: int) -> TopLogprobs | None:
        count = sequence.settings.logprobs
        if count is None or token == NOT_FINITE:
            return None
        return materialize_logprobs(top_logprobs(logprobs, mx.array(token), count))


class _Checkpoint:
    """The state of a KV cache before a verification pass, whose last tokens may be rejected.

    ``rewind`` trims the layers that can be trimmed. Others, such as sliding windows that have evicted older tokens and
    recurrent states, are restored from a copy, and the accepted tokens are computed again.

    Args:
        cache: One object a layer; not merged.
        tokens: Number of tokens in the pass, at least two.
    """

    def __init__(self, cache: list[Any], tokens: int) -> None:
        self._cache = cache
        self._tokens = tokens
        self._copies = {index: _copied(each) for index, each in enumerate(cache) if not can_rewind(each, tokens)}

    def rewind(self, network: Any, accepted: list[int]) -> None:  # noqa: ANN401
        """Leave only the accepted tokens of the pass in the cache."""
        surplus = self._tokens - (0 if self._copies else len(accepted))
        for index, layer in enumerate(self._cache):
            if index in self._copies:
                self._cache[index] = self._copies[index]
            else:
                layer.trim(surplus)
        if self._copies:
            exact_logits(network, mx.array([accepted]), self._cache)
            mx.eval([kept_state(layer) for layer in self._cache])


def _copied(layer: Any) -> Any:  # noqa: ANN401
    """Return a copy of a layer that shares its arrays: a pass of several tokens replaces arrays or appends to them."""
    duplicate = copy.copy(layer)
    for name, value in vars(layer).items():
        if isinstance(value, list | tuple):
            setattr(duplicate, name, type(value)(_copied(each) if hasattr(each, "state") else each for each in value))
    return duplicate
