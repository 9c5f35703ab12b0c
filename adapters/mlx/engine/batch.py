"""Batches: sequences of one model that step together.

A batch owns the merged KV cache and the tokens in flight. A step starts the computation of the next token of every
sequence before it waits for the previous one, so that the host works while the device computes.

Shapes: B sequences, V tokens in the vocabulary; logits [B, V], tokens in flight [B].
"""

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol

import mlx.core as mx

from mlxk.adapters.mlx.engine.sampling import (
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
    """One token sampled for one sequence; a named tuple, since one is made for every token."""

    sequence: Sequence
    token: int
    """``NOT_FINITE`` when the logits were unusable."""
    logprobs: TopLogprobs | None = None


class Batch(Protocol):
    """Sequences that step together; decoding and speculative decoding implement it."""

    network: Any
    alone: bool
    """Whether it holds a single sequence and accepts no other."""
    sequences: list[Sequence]

    @property
    @abstractmethod
    def size_bytes(self) -> int:
        """Size of the KV cache."""

    @abstractmethod
    def add(self, sequences: list[Sequence], caches: list[list[Any]], last_tokens: list[int]) -> None:
        """Add sequences whose prompts are computed except for their last tokens; takes ownership of the caches."""

    @abstractmethod
    def remove(self, sequences: Iterable[Sequence]) -> None:
        """Remove sequences."""

    @abstractmethod
    def extract(self, sequence: Sequence) -> list[Any]:
        """Return the cache of one sequence."""

    @abstractmethod
    def step(self) -> list[Sampled]:
        """Start the next tokens and return the previous ones, each sequence's in order."""

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
        """Of the logits they were sampled from, shape [B, 1]; not finite when the logits were unusable."""
        self._collected: list[int] | None = None
        """The tokens in flight after ``collect``."""
        self._logprobs: dict[Sequence, LogprobArrays] = {}
        self._sampler: BatchSampler | None = None

    @property
    def size_bytes(self) -> int:
        """Size of the KV cache, padding included."""
        return sum(layer.nbytes for layer in self._cache)

    def add(self, sequences: list[Sequence], caches: list[list[Any]], last_tokens: list[int]) -> None:
        """Add at least one sequence; the caches are one list of layers each."""
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

        Sequences that were just added have no previous token. When every sequence ends with its token in flight, no
        further one is started.
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
        """Apply each sequence's logits processors; one that raises fails its own sequence only."""
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
        """Start the log probabilities of the sequences that report them."""
        found = {}
        for index, sequence in enumerate(self.sequences):
            count = sequence.settings.logprobs
            if count is not None:
                logprobs = logits[index] - self._log_normalizer[index]
                found[sequence] = top_logprobs(logprobs, self._tokens[index], count)
        return found
