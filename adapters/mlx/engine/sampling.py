"""Choosing tokens: one pass over the logits of a whole batch in which every row keeps its own settings.

Randomness is drawn on the host, one uniform number a token from the row's own seeded generator, and turned into a token
through the cumulative distribution. So a seed gives the same text alone or among any neighbours, the position of a
token decides its draw, and no random state of MLX is involved.

A row whose logits are not finite is found on the host, with its token: in ``chosen``. What marks it must cost the
computation nothing, since on small models every operation of a step counts.
"""

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import mlx.core as mx

from mlxk.domain.generation.request import GenerationSettings

NOT_FINITE = -1
"""In place of a token: the model's output held NaN or infinity, or a mask left no token."""

COLDEST = 1e-4
"""Below this temperature the likeliest token is taken; dividing by less overflows."""

_BELOW_ONE = 1 - 2**-20
"""The largest draw: far enough from 1 that a product with a rounded sum stays below that sum."""

LogitsProcessor = Callable[[mx.array, mx.array], mx.array]
"""From the tokens of the answer so far and its logits, shape [1, V], to new logits."""


class Draws:
    """The uniform numbers of one answer, by position; asking again for a position gives the same number."""

    def __init__(self, seed: int | None) -> None:
        self._random = random.Random(seed)
        self._values: list[float] = []

    def at(self, position: int) -> float:
        """Return the number for a position, at least 0 and below 1."""
        while len(self._values) <= position:
            self._values.append(min(self._random.random(), _BELOW_ONE))
        return self._values[position]


@attrs.frozen
class SamplingParameters:
    """How one row is sampled, cleaned of values that MLX cannot take."""

    temperature: float
    top_p: float
    top_k: int
    min_p: float

    @classmethod
    def of(cls, settings: GenerationSettings) -> "SamplingParameters":
        """Take the parameters out of validated settings whose None values were filled."""
        return cls(settings.temperature or 0.0, settings.top_p or 1.0, settings.top_k or 0, settings.min_p or 0.0)

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature < COLDEST


class BatchSampler:
    """Samples a fixed set of rows; made anew when rows join or leave."""

    def __init__(self, rows: Sequence[SamplingParameters]) -> None:
        drawn = [index for index, row in enumerate(rows) if not row.greedy]
        chosen = [rows[index] for index in drawn]
        self._all_drawn = 0 < len(drawn) == len(rows)
        self._index = mx.array(drawn) if drawn and not self._all_drawn else None
        self.drawn = drawn
        if not drawn:
            return
        self._temperature = mx.array([[row.temperature] for row in chosen])
        # 2 is more than all the mass there is, so that nothing is dropped.
        self._top_p = mx.array([[row.top_p if row.top_p < 1 else 2.0] for row in chosen])
        self._top_k = [row.top_k for row in chosen]
        self._min_p = mx.array([[math.log(row.min_p) if row.min_p > 0 else -math.inf] for row in chosen])
        self._filters_mass = any(row.top_p < 1 for row in chosen)
        self._filters_rank = any(row.top_k for row in chosen)
        self._filters_ratio = any(row.min_p > 0 for row in chosen)

    def sample(self, logits: mx.array, draws: Sequence[float]) -> tuple[mx.array, mx.array]:
        """Choose one token a row.

        Args:
            logits: Shape [B, V].
            draws: One uniform number for each row in ``drawn``, in that order.

        Returns:
            The tokens, shape [B], and the logarithms of all the mass there is, shape [B, 1]: taken from logits they
            give log probabilities.
        """
        mass = mx.logsumexp(logits, axis=-1, keepdims=True)
        if self._all_drawn:
            return self._draw(logits - mass, draws), mass
        tokens = mx.argmax(logits, axis=-1)
        if self._index is not None:
            tokens[self._index] = self._draw(logits[self._index] - mass[self._index], draws)
        return tokens, mass

    def _draw(self, logprobs: mx.array, draws: Sequence[float]) -> mx.array:
        logprobs = logprobs.astype(mx.float32)
        floor = self._floor(logprobs)
        if floor is not None:
            logprobs = mx.where(logprobs < floor, -math.inf, logprobs)
        mass = mx.cumsum(mx.softmax(logprobs / self._temperature, axis=-1), axis=-1)
        target = mx.array(list(draws))[:, None] * mass[:, -1:]
        return (mass <= target).sum(axis=-1).astype(mx.uint32)

    def _floor(self, logprobs: mx.array) -> mx.array | None:
        """Return the least log probability a token must have in each row; the filters judge before temperature."""
        floors = []
        if self._filters_mass or self._filters_rank:
            ascending = mx.sort(logprobs, axis=-1)
            if self._filters_mass:
                floors.append(self._mass_floor(ascending))
            if self._filters_rank:
                size = logprobs.shape[-1]
                ranks = mx.array([[size - k if 0 < k < size else 0] for k in self._top_k])
                floors.append(mx.take_along_axis(ascending, ranks, axis=-1))
        if self._filters_ratio:
            floors.append(mx.max(logprobs, axis=-1, keepdims=True) + self._min_p)
        floor = None
        for each in floors:
            floor = each if floor is None else mx.maximum(floor, each)
        return floor

    def _mass_floor(self, ascending: mx.array) -> mx.array:
        probabilities = mx.exp(ascending)
        above = mx.cumsum(probabilities, axis=-1, reverse=True, inclusive=False)
        total = above[..., :1] + probabilities[..., :1]
        dropped = (above >= self._top_p * total).sum(axis=-1, keepdims=True)
        return mx.take_along_axis(ascending, mx.minimum(dropped, ascending.shape[-1] - 1), axis=-1)


def chosen(tokens: mx.array, mass: mx.array) -> list[int]:
    """Wait for what ``sample`` returned and return the tokens, ``NOT_FINITE`` for those that mean nothing."""
    found: Any = tokens.tolist()
    masses: Any = mass.tolist()
    return [token if math.isfinite(each) else NOT_FINITE for token, (each,) in zip(found, masses, strict=True)]


def processors_of(settings: GenerationSettings) -> tuple[LogitsProcessor, ...]:
    """Build what changes logits before sampling: bias, then the penalties over the answer's own tokens."""
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
        return logits.at[:, tokens].add(values.astype(logits.dtype))

    return add


def _repetition(penalty: float) -> LogitsProcessor:
    def divide(generated: mx.array, logits: mx.array) -> mx.array:
        if generated.size:
            seen = logits[:, generated]
            logits[:, generated] = mx.where(seen < 0, seen * penalty, seen / penalty)
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
