"""Speculative decoding: a draft model proposes some tokens, the model verifies them all in one pass.

The text is the one the model would have generated alone, for a given seed too: every position has its own random
number, and a proposal is accepted when sampling the model with that number gives the same token. Such a sequence cannot
share steps with others, so it has a batch of its own. Where a cache could not be rewound, nothing is proposed.
"""

import math
from collections.abc import Iterable
from typing import Any

import mlx.core as mx

from mlxk.adapters.mlx.engine.batch import Batch, Sampled
from mlxk.adapters.mlx.engine.sampling import (
    NOT_FINITE,
    BatchSampler,
    TopLogprobs,
    materialize_logprobs,
    materialize_tokens,
    top_logprobs,
)
from mlxk.adapters.mlx.engine.sequence import Sequence


class SpeculativeBatch(Batch):
    """One sequence with a draft model.

    Args:
        network: The model.
        draft: The draft model.
        draft_cache: Its KV cache, holding the prompt except for its last token.
        width: Tokens proposed at a time.
    """

    alone = True

    def __init__(self, network: Any, draft: Any, draft_cache: list[Any], width: int) -> None:  # noqa: ANN401
        self.network = network
        self.sequences: list[Sequence] = []
        self._draft = draft
        self._cache: list[Any] = []
        self._draft_cache = draft_cache
        self._width = width
        self._last = 0
        """The newest token, which neither model has computed."""
        self._draft_inputs: list[int] = []
        """Input of the draft model before it proposes: the newest token, and sometimes the previous one."""

    @property
    def size_bytes(self) -> int:
        """Size of both KV caches."""
        return sum(layer.nbytes for layer in [*self._cache, *self._draft_cache])

    def add(self, sequences: list[Sequence], caches: list[list[Any]], last_tokens: list[int]) -> None:
        """Take the one sequence."""
        self.sequences = list(sequences)
        self._cache = caches[0]
        self._last = last_tokens[0]
        self._draft_inputs = [self._last]

    def remove(self, sequences: Iterable[Sequence]) -> None:
        """Remove the sequence."""
        removed = set(sequences)
        self.sequences = [sequence for sequence in self.sequences if sequence not in removed]
        if not self.sequences:
            self._cache, self._draft_cache = [], []

    def extract(self, sequence: Sequence) -> list[Any]:
        """Return the sequence's cache; the draft model's is not kept."""
        return self._cache

    def step(self) -> list[Sampled]:
        """Propose, verify, and return the accepted tokens and the model's next one."""
        sequence = self.sequences[0]
        start = len(sequence.generated)
        width = self._width if self._can_rewind(self._width + 1) else 0
        proposed = self._propose(sequence, start, width)
        logits = self.network(mx.array([[self._last, *proposed]]), cache=self._cache)[0, -(width + 1) :, :]
        logits = self._processed(sequence, logits, proposed)
        sampler = BatchSampler([sequence.sampling] * (width + 1))
        draws = [sequence.random.at(start + index) for index in sampler.drawn]
        sampled, log_normalizer = sampler.sample(logits, draws)
        tokens = materialize_tokens(sampled, log_normalizer)
        accepted = 0
        while accepted < width and tokens[accepted] == proposed[accepted]:
            accepted += 1
        self._rewind(width, accepted, proposed)
        sequence.cache_tokens += [self._last, *proposed[:accepted]]
        self._last = max(tokens[accepted], 0)
        self._draft_inputs.append(self._last)
        return [
            Sampled(sequence, token, self._logprobs(sequence, logits[index] - log_normalizer[index], token))
            for index, token in enumerate(tokens[: accepted + 1])
        ]

    def collect(self) -> list[Sampled]:
        """Return nothing: a step leaves no token in flight."""
        return []

    def _propose(self, sequence: Sequence, start: int, width: int) -> list[int]:
        proposed: list[int] = []
        sampler = BatchSampler([sequence.sampling])
        for index in range(width):
            logits = self._draft(mx.array([self._draft_inputs]), cache=self._draft_cache)[:, -1, :]
            draws = [sequence.random.at(start + index)] if sampler.drawn else []
            token: Any = sampler.sample(logits, draws)[0].item()
            proposed.append(token)
            self._draft_inputs = [proposed[-1]]
        return proposed

    def _rewind(self, width: int, accepted: int, proposed: list[int]) -> None:
        """Remove the rejected tokens from both caches."""
        for layer in self._cache:
            if width > accepted:
                layer.trim(width - accepted)
        surplus = width - accepted - 1
        for layer in self._draft_cache:
            if surplus > 0:
                layer.trim(surplus)
        if width:
            # The draft model has not computed its own last proposal; when that was accepted, it still must.
            self._draft_inputs = [proposed[-1]] if accepted == width else []

    def _can_rewind(self, tokens: int) -> bool:
        """Whether so many tokens could be computed and removed again; a sliding window evicts what it leaves."""
        return all(_can_rewind(layer, tokens) for layer in [*self._cache, *self._draft_cache])

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


def _can_rewind(layer: Any, tokens: int) -> bool:  # noqa: ANN401
    offset, max_size = getattr(layer, "offset", None), getattr(layer, "max_size", math.inf)
    return layer.is_trimmable() and offset is not None and offset + tokens < max_size
