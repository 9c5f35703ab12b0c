"""Sampling: one pass over the logits of all rows of a batch, with individual settings for every row.

Random numbers are drawn on the host, one uniform number a token from the sequence's own seeded generator, and mapped to
a token by inverse transform sampling. So a seed gives the same text alone or in any batch: the position of a token
determines its number, and MLX's random state is not used.

Rows with logits that are not finite are detected on the host, in ``materialize_tokens``, by their log-normalizer: a
check on the device would take a noticeable part of each step of a small model.
"""

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import mlx.core as mx

from mlxk.domain.generation.settings import GenerationSettings

NOT_FINITE = -1
"""Returned in place of a token when the logits hold NaN or infinity, or a mask left no token."""

MIN_TEMPERATURE = 1e-4
"""Below this temperature decoding is greedy; dividing by less overflows."""

_MAX_DRAW = 1 - 2**-20
"""The largest random number: its product with a rounded sum must stay below that sum."""

_BLOCK = 512
"""Tokens summed at a time: on a CPU, MLX adds them one by one, and loses up to 0.03 % over 150,000 tokens at once."""

LogitsProcessor = Callable[[mx.array, mx.array], mx.array]
"""Maps the generated tokens and the logits, shape [1, V], fp32, to new logits."""

LogprobArrays = tuple[mx.array, mx.array, mx.array]
"""The log probability of the sampled token, the alternatives, and their log probabilities; still being computed."""


@attrs.frozen
class TopLogprobs:
    """The log probabilities reported for one token."""

    logprob: float
    alternatives: tuple[tuple[int, float], ...]
    """Pairs of token and log probability, likeliest first."""


def exact_logits(network: Any, tokens: mx.array, cache: list[Any]) -> mx.array:  # noqa: ANN401
    """Start computing the logits after each token, converted to fp32.

    All later arithmetic uses the dtype of the logits, and bf16 has no value between log(1) and log(0.997).

    Args:
        network: The model.
        tokens: Shape [B, L].
        cache: Its KV cache, one object a layer.

    Returns:
        Shape [B, L, V].
    """
    logits: mx.array = network(tokens, cache=cache)
    return logits.astype(mx.float32)


def log_normalizer(logits: mx.array) -> mx.array:
    """Return the logarithm of the summed exponentials of logits, shape [B, V]; shape [B, 1].

    Logits minus it are log probabilities. Not finite where the logits hold NaN or infinity, or no token is left.
    """
    if logits.shape[-1] <= _BLOCK:
        return mx.logsumexp(logits, axis=-1, keepdims=True)
    padding = -logits.shape[-1] % _BLOCK
    padded = mx.pad(logits, [(0, 0), (0, padding)], constant_values=-math.inf) if padding else logits
    blocks = mx.logsumexp(mx.unflatten(padded, -1, (-1, _BLOCK)), axis=-1)
    return mx.logsumexp(blocks, axis=-1, keepdims=True)


class RandomStream:
    """The uniform random numbers of one sequence by token position; a position always gives the same number."""

    def __init__(self, seed: int | None) -> None:
        self._random = random.Random(seed)
        self._values: list[float] = []

    def at(self, position: int) -> float:
        """Return the number for a position, at least 0 and below 1."""
        while len(self._values) <= position:
            self._values.append(min(self._random.random(), _MAX_DRAW))
        return self._values[position]


_SMALLEST_TOP_P = 1e-6
"""In place of 0: keeps the likeliest token only."""


@attrs.frozen
class SamplingParameters:
    """The sampling settings of one row, with None and 0 replaced by numbers that MLX can compute with."""

    temperature: float
    top_p: float
    top_k: int
    min_p: float

    @classmethod
    def of(cls, settings: GenerationSettings) -> "SamplingParameters":
        """Return the parameters of validated settings without None values."""
        top_p = 1.0 if settings.top_p is None else max(settings.top_p, _SMALLEST_TOP_P)
        return cls(settings.temperature or 0.0, top_p, settings.top_k or 0, settings.min_p or 0.0)

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always chosen."""
        return self.temperature < MIN_TEMPERATURE


class BatchSampler:
    """Samples a fixed set of rows; rebuilt when the batch changes."""

    def __init__(self, rows: Sequence[SamplingParameters]) -> None:
        drawn = [index for index, row in enumerate(rows) if not row.greedy]
        random_rows = [rows[index] for index in drawn]
        self._all_drawn = 0 < len(drawn) == len(rows)
        self._index = mx.array(drawn) if drawn and not self._all_drawn else None
        self.drawn = drawn
        if not drawn:
            return
        self._temperature = mx.array([[row.temperature] for row in random_rows])
        # 2 is more than the total probability, so that nothing is dropped.
        self._top_p = mx.array([[row.top_p if row.top_p < 1 else 2.0] for row in random_rows])
        self._top_k = [row.top_k for row in random_rows]
        self._min_p = mx.array([[math.log(row.min_p) if row.min_p > 0 else -math.inf] for row in random_rows])
        self._filters_top_p = any(row.top_p < 1 for row in random_rows)
        self._filters_top_k = any(row.top_k for row in random_rows)
        self._filters_min_p = any(row.min_p > 0 for row in random_rows)

    def sample(self, logits: mx.array, draws: Sequence[float]) -> tuple[mx.array, mx.array]:
        """Sample one token a row.

        Args:
            logits: Shape [B, V], fp32.
            draws: One uniform random number for each row in ``drawn``, in that order.

        Returns:
            The tokens, shape [B], and the log-normalizer of the logits, shape [B, 1]: logits minus it are log
            probabilities.
        """
        normalizer = log_normalizer(logits)
        if self._all_drawn:
            return self._draw(logits - normalizer, draws), normalizer
        tokens = mx.argmax(logits, axis=-1)
        if self._index is not None:
            tokens[self._index] = self._draw(logits[self._index] - normalizer[self._index], draws)
        return tokens, normalizer

    def _draw(self, logprobs: mx.array, draws: Sequence[float]) -> mx.array:
        floor = self._floor(logprobs)
        if floor is not None:
            logprobs = mx.where(logprobs < floor, -math.inf, logprobs)
        cumulative = mx.cumsum(mx.softmax(logprobs / self._temperature, axis=-1), axis=-1)
        target = mx.array(list(draws))[:, None] * cumulative[:, -1:]
        return (cumulative <= target).sum(axis=-1).astype(mx.uint32)

    def _floor(self, logprobs: mx.array) -> mx.array | None:
        """Return the minimum log probability of a token in each row; filters apply before the temperature."""
        floors = []
        if self._filters_top_p or self._filters_top_k:
            # Sorting the whole vocabulary is slow; where every row has a top_k, only the largest of these matters.
            size = logprobs.shape[-1]
            count = min(max(self._top_k), size) if all(self._top_k) else size
            ascending = mx.sort(mx.topk(logprobs, count, axis=-1) if count < size else logprobs, axis=-1)
            if self._filters_top_p:
                floors.append(self._top_p_floor(ascending))
            if self._filters_top_k:
                ranks = mx.array([[count - k if 0 < k < count else 0] for k in self._top_k])
                floors.append(mx.take_along_axis(ascending, ranks, axis=-1))
        if self._filters_min_p:
            floors.append(mx.max(logprobs, axis=-1, keepdims=True) + self._min_p)
        floor = None
        for each in floors:
            floor = each if floor is None else mx.maximum(floor, each)
        return floor

    def _top_p_floor(self, ascending: mx.array) -> mx.array:
        above = mx.cumsum(mx.exp(ascending), axis=-1, reverse=True, inclusive=False)
        dropped = (above >= self._top_p).sum(axis=-1, keepdims=True)
        return mx.take_along_axis(ascending, mx.minimum(dropped, ascending.shape[-1] - 1), axis=-1)


def materialize_tokens(tokens: mx.array, log_normalizer: mx.array) -> list[int]:
    """Wait for the result of ``sample`` and return the tokens; ``NOT_FINITE`` for rows with unusable logits."""
    values: Any = tokens.tolist()
    normalizers: Any = log_normalizer.tolist()
    return [token if math.isfinite(each) else NOT_FINITE for token, (each,) in zip(values, normalizers, strict=True)]


def top_logprobs(logprobs: mx.array, token: mx.array, count: int) -> LogprobArrays:
    """Start computing the log probabilities reported for one token.

    Args:
        logprobs: Shape [V], fp32.
        token: The sampled token, a scalar.
        count: Number of alternatives.
    """
    top = mx.argpartition(-logprobs, kth=min(count, logprobs.size - 1))[:count]
    return logprobs[token], top, logprobs[top]


def materialize_logprobs(arrays: LogprobArrays) -> TopLogprobs:
    """Wait for the result of ``top_logprobs`` and return it as plain numbers."""
    values: Any = [array.tolist() for array in arrays]
    logprob, tokens, others = values
    return _ranked(logprob, tokens, others)


def _ranked(logprob: float, tokens: Sequence[int], values: Sequence[float]) -> TopLogprobs:
    """Sort the alternatives, likeliest first, without those of probability 0."""
    pairs = (pair for pair in zip(tokens, values, strict=True) if math.isfinite(pair[1]))
    return TopLogprobs(logprob, tuple(sorted(pairs, key=lambda pair: -pair[1])))


def score(logits: mx.array, tokens: Sequence[int], count: int) -> list[TopLogprobs]:
    """Return the log probability of each prompt token, and the likeliest tokens at its position.

    Args:
        logits: Those computed at the position before each token; shape [tokens, V], fp32.
        tokens: The tokens.
        count: Number of alternatives.
    """
    logprobs = logits - log_normalizer(logits)
    own: Any = mx.take_along_axis(logprobs, mx.array(list(tokens))[:, None], axis=-1)[:, 0].tolist()
    likeliest = mx.argpartition(-logprobs, kth=min(count, logprobs.shape[-1] - 1), axis=-1)[:, :count]
    ids: Any = likeliest.tolist()
    values: Any = mx.take_along_axis(logprobs, likeliest, axis=-1).tolist()
    return [_ranked(*each) for each in zip(own, ids, values, strict=True)]


def logits_processors(settings: GenerationSettings) -> tuple[LogitsProcessor, ...]:
    """Build the logits processors of the settings: bias, then the penalties on generated tokens."""
    processors: list[LogitsProcessor] = []
    if settings.logit_bias:
        processors.append(_bias(settings.logit_bias))
    if settings.repetition_penalty and settings.repetition_penalty != 1:
        processors.append(_repetition(settings.repetition_penalty))
    if settings.presence_penalty:
        processors.append(_presence(settings.presence_penalty))
    if settings.frequency_penalty:
        processors.append(_frequency(settings.frequency_penalty))
    return tuple(processors)


def _bias(pairs: tuple[tuple[int, float], ...]) -> LogitsProcessor:
    tokens, values = mx.array([token for token, _ in pairs]), mx.array([value for _, value in pairs])

    def add(_: mx.array, logits: mx.array) -> mx.array:
        return logits.at[:, tokens].add(values)

    return add


def _repetition(penalty: float) -> LogitsProcessor:
    def divide(generated: mx.array, logits: mx.array) -> mx.array:
        if generated.size:
            repeated = logits[:, generated]
            logits[:, generated] = mx.where(repeated < 0, repeated * penalty, repeated / penalty)
        return logits

    return divide


def _presence(penalty: float) -> LogitsProcessor:
    def subtract_once(generated: mx.array, logits: mx.array) -> mx.array:
        if generated.size:
            logits[:, generated] = logits[:, generated] - penalty
        return logits

    return subtract_once


def _frequency(penalty: float) -> LogitsProcessor:
    def subtract_each(generated: mx.array, logits: mx.array) -> mx.array:
        return logits.at[:, generated].subtract(penalty) if generated.size else logits

    return subtract_each
