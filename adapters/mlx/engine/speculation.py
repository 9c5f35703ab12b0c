"""Speculative decoding: a batch of one sequence, for which a draft model or a drafter proposes tokens.

Shapes: V tokens in the vocabulary; logits [L, V] of L positions.
"""

import copy
from collections.abc import Iterable
from typing import Any

import mlx.core as mx

from mlxk.adapters.mlx.engine.batch import Batch, Sampled
from mlxk.adapters.mlx.engine.drafting import DraftTrial
from mlxk.adapters.mlx.engine.proposers import Proposer, can_rewind
from mlxk.adapters.mlx.engine.sampling import (
    NOT_FINITE,
    BatchSampler,
    TopLogprobs,
    exact_logits,
    materialize_logprobs,
    materialize_tokens,
    top_logprobs,
)
from mlxk.adapters.mlx.engine.sequence import Sequence


class SpeculativeBatch(Batch):
    """One sequence for which tokens are proposed; the model verifies them all in one pass.

    The text is the one the model would have generated alone, for a given seed too: every position has its own random
    number, and a proposal is accepted when sampling the model with that number gives the same token. Such a sequence
    cannot share steps with others.

    Args:
        network: The model.
        proposer: Has the prompt except for its last token.
        width: Tokens proposed at a time.
        trial: Decides whether to propose; None always does.
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
        """The newest token, which the model has not computed."""

    @property
    def size_bytes(self) -> int:
        """Size of both KV caches."""
        own: int = sum(layer.nbytes for layer in self._cache)
        return own + (self._proposer.size_bytes if self._proposer is not None else 0)

    def add(self, sequences: list[Sequence], caches: list[list[Any]], last_tokens: list[int]) -> None:
        """Take the one sequence."""
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
        """Return the sequence's cache; the proposer's is not kept."""
        return self._cache

    def step(self) -> list[Sampled]:
        """Propose, verify, and return the accepted tokens and the model's next one."""
        sequence, trial, proposer = self.sequences[0], self.trial, self._proposer
        if proposer is None:
            return []
        began, start, last = sequence.clock.monotonic(), len(sequence.generated), self._last
        proposes = (trial is None or trial.proposes) and proposer.is_ready(self._width + 1)
        proposed = proposer.propose(sequence, last, self._width) if proposes else []
        width = len(proposed)
        before = _Checkpoint(self._cache, width + 1) if proposed else None
        logits = exact_logits(proposer.network, mx.array([[last, *proposed]]), self._cache)[0, -(width + 1) :, :]
        logits = self._processed(sequence, logits, proposed)
        sampler = BatchSampler([sequence.sampling] * (width + 1))
        draws = [sequence.random.at(start + index) for index in sampler.drawn]
        sampled, log_normalizer = sampler.sample(logits, draws)
        tokens = materialize_tokens(sampled, log_normalizer)
        accepted = 0
        while accepted < width and tokens[accepted] == proposed[accepted]:
            accepted += 1
        if before is not None and accepted < width:
            before.keep(self.network, [last, *proposed[:accepted]])
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
        """Return nothing: a step leaves no token in flight."""
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
    """A KV cache before some tokens, of which only the first may turn out right.

    Layers that can forget their last tokens do so. A sliding window has evicted what it would need, and a recurrent
    state holds all tokens at once: such layers are as before, and the tokens that were right are computed again.

    Args:
        cache: One object a layer; not merged.
        tokens: How many are computed, at least two.
    """

    def __init__(self, cache: list[Any], tokens: int) -> None:
        self._cache = cache
        self._tokens = tokens
        self._copies = {index: _copied(each) for index, each in enumerate(cache) if not can_rewind(each, tokens)}

    def keep(self, network: Any, right: list[int]) -> None:  # noqa: ANN401
        """Have the cache hold the tokens that were right, and no others."""
        surplus = self._tokens - (0 if self._copies else len(right))
        for index, layer in enumerate(self._cache):
            if index in self._copies:
                self._cache[index] = self._copies[index]
            else:
                layer.trim(surplus)
        if self._copies:
            exact_logits(network, mx.array([right]), self._cache)
            mx.eval([layer.state for layer in self._cache])


def _copied(layer: Any) -> Any:  # noqa: ANN401
    """Return a copy of a layer's cache that shares its arrays; more than one token replaces arrays, or adds to them."""
    found = copy.copy(layer)
    for name, value in vars(layer).items():
        if isinstance(value, list | tuple):
            setattr(found, name, type(value)(_copied(each) if hasattr(each, "state") else each for each in value))
    return found
