"""Answers that decode together, one token each a step.

Owns the merged cache of mlx-lm and the tokens in flight. A step starts the computation of the next token of every row
before it waits for the previous one, so the host works while the device computes. Knows nothing of text, streams or
fairness.

Shapes: B rows, V tokens in the vocabulary; logits [B, V], tokens in flight [B].
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import attrs
import mlx.core as mx

from mlxk.adapters.mlx.engine.answer import Answer
from mlxk.adapters.mlx.engine.sampling import (
    BatchSampler,
    Draws,
    LogitsProcessor,
    SamplingParameters,
    chosen,
    processors_of,
)


@attrs.define(eq=False)
class Row:
    """One answer in a batch."""

    answer: Answer
    sampling: SamplingParameters
    draws: Draws
    constrain: Callable[[Sequence[int]], tuple[LogitsProcessor, ...]] | None = None
    """Makes processors beyond those of the settings, for an answer that holds these tokens already."""
    processors: tuple[LogitsProcessor, ...] = ()
    context: Any = None
    """Buffer of the answer's own tokens for the processors; None without any."""
    cached: list[int] = attrs.field(factory=list)
    """The tokens whose keys and values are in the cache."""
    primed: bool = False
    """Whether the token in flight is generated; the first one is the prompt's last."""
    attempts: int = 0
    """How many times the batch it was in has failed."""
    fault: Exception | None = None
    """What one of its own callables raised."""

    @property
    def ends_with_token_in_flight(self) -> bool:
        """Whether no token can come after the one in flight."""
        return self.primed and len(self.answer.generated) + 1 >= self.answer.limits.max_tokens

    def prepare(self) -> None:
        """Make the processors, for a start or a new start; they hold arrays, so this runs on the owner thread."""
        from mlx_lm.models.cache import TokenBuffer

        generated = self.answer.generated
        self.processors = processors_of(self.answer.settings)
        if self.constrain is not None:
            self.processors += self.constrain(generated)
        self.context = TokenBuffer(generated) if self.processors else None


@attrs.frozen
class Ranking:
    """The log probabilities reported for one token."""

    logprob: float
    alternatives: tuple[tuple[int, float], ...]
    """Pairs of token and log probability, likeliest first."""


class Sampled(NamedTuple):
    """What one step found for one row; a named tuple, since there is one for every token."""

    row: Row
    token: int
    """``NOT_FINITE`` when the model's output was unusable."""
    ranking: Ranking | None = None


class Batch(Protocol):
    """Rows that step together, however they do it."""

    network: Any
    alone: bool
    rows: list[Row]

    @property
    @abstractmethod
    def size_bytes(self) -> int:
        """What the cache takes."""

    @abstractmethod
    def join(self, rows: Sequence[Row], caches: Sequence[list[Any]], last_tokens: Sequence[int]) -> None:
        """Add rows whose prompts are computed but for their last tokens; the caches belong to the batch from now on."""

    @abstractmethod
    def leave(self, rows: Sequence[Row]) -> None:
        """Remove rows."""

    @abstractmethod
    def extract(self, row: Row) -> list[Any]:
        """Return the cache of one row by itself."""

    @abstractmethod
    def step(self) -> list[Sampled]:
        """Return the next tokens, of each row in order, or those of the step before while new ones are computed."""

    @abstractmethod
    def collect(self) -> list[Sampled]:
        """Wait for what is being computed and return it now rather than with the next step."""


class DecodeBatch(Batch):
    """Rows of one model that step together.

    Args:
        network: The model.
        alone: Never holds more than one row and keeps the cache as the model made it; for caches that cannot be
            merged, and for rows that must not disturb others.
    """

    def __init__(self, network: Any, alone: bool = False) -> None:  # noqa: ANN401
        self.network = network
        self.alone = alone
        self.rows: list[Row] = []
        self._cache: list[Any] = []
        self._merged = False
        self._tokens: Any = None
        """Those in flight, shape [B]; and what tells whether they mean something, see ``chosen``."""
        self._mass: Any = None
        self._collected: list[int] | None = None
        """The tokens in flight, once they were collected."""
        self._rankings: dict[Row, tuple[mx.array, mx.array, mx.array]] = {}
        self._sampler: BatchSampler | None = None

    @property
    def size_bytes(self) -> int:
        """What the cache takes, padding included."""
        return sum(layer.nbytes for layer in self._cache)

    def join(self, rows: Sequence[Row], caches: Sequence[list[Any]], last_tokens: Sequence[int]) -> None:
        """Add rows whose prompts are computed but for their last tokens.

        Args:
            rows: At least one.
            caches: Theirs, one list of layers a row; they belong to the batch from now on.
            last_tokens: The last token of each prompt.
        """
        tokens, mass = mx.array(list(last_tokens), dtype=mx.uint32), mx.zeros((len(rows), 1))
        if not self.rows and len(rows) == 1:
            self._cache, self._merged = caches[0], False
        else:
            joined = [layers[0].merge(list(layers)) for layers in zip(*caches, strict=True)]
            if not self.rows:
                self._cache = joined
            else:
                if not self._merged:
                    self._cache = [layer.merge([layer]) for layer in self._cache]
                for mine, other in zip(self._cache, joined, strict=True):
                    mine.extend(other)
            self._merged = True
        if self.rows:
            tokens, mass = mx.concatenate([self._tokens, tokens]), mx.concatenate([self._mass, mass])
        self._tokens, self._mass = tokens, mass
        if self._collected is not None:
            self._collected += last_tokens
        for row in rows:
            row.primed = False
        self.rows.extend(rows)
        self._sampler = None

    def leave(self, rows: Sequence[Row]) -> None:
        """Remove rows."""
        gone = set(map(id, rows))
        keep = [index for index, row in enumerate(self.rows) if id(row) not in gone]
        if len(keep) == len(self.rows):
            return
        self.rows = [self.rows[index] for index in keep]
        for row in rows:
            self._rankings.pop(row, None)
        self._sampler = None
        if not keep:
            self._cache, self._tokens, self._mass, self._collected, self._merged = [], None, None, None, False
            return
        for cache in self._cache:
            cache.filter(keep)
        kept = mx.array(keep)
        self._tokens, self._mass = self._tokens[kept], self._mass[kept]
        if self._collected is not None:
            self._collected = [self._collected[index] for index in keep]

    def extract(self, row: Row) -> list[Any]:
        """Return the cache of one row by itself."""
        if not self._merged:
            return self._cache
        index = self.rows.index(row)
        return [cache.extract(index) for cache in self._cache]

    def step(self) -> list[Sampled]:
        """Start the next token of every row and return the one before it, unless it was collected.

        Rows that have just joined have none before it. Where every row ends with the token before it, none is started.
        """
        if self._collected is None and all(row.ends_with_token_in_flight for row in self.rows):
            return self.collect()
        tokens, mass, rankings, collected = self._tokens, self._mass, self._rankings, self._collected
        logits = self.network(tokens[:, None], cache=self._cache)[:, -1, :]
        logits = self._processed(logits, tokens)
        if self._sampler is None:
            self._sampler = BatchSampler([row.sampling for row in self.rows])
        draws = [self._draw(self.rows[index]) for index in self._sampler.drawn]
        self._tokens, self._mass = self._sampler.sample(logits, draws)
        self._rankings = self._rank(logits)
        mx.async_eval(self._tokens, self._mass, list(self._rankings.values()))  # type: ignore[no-untyped-call]
        self._collected = None
        values = chosen(tokens, mass) if collected is None else collected
        sampled = self._sampled(values, rankings) if collected is None else []
        for row, token in zip(self.rows, values, strict=True):
            row.cached.append(max(token, 0))
            row.primed = True
        return sampled

    def collect(self) -> list[Sampled]:
        """Wait for the tokens in flight and return them now; the next step returns none."""
        if self._collected is not None or not self.rows:
            return []
        self._collected = values = chosen(self._tokens, self._mass)
        return self._sampled(values, self._rankings)

    def _sampled(self, values: list[int], rankings: dict[Row, tuple[mx.array, mx.array, mx.array]]) -> list[Sampled]:
        sampled = []
        for row, token in zip(self.rows, values, strict=True):
            if row.primed:
                ranking = rankings.get(row)
                sampled.append(Sampled(row, token, ranking_of(ranking) if ranking is not None else None))
        return sampled

    def _draw(self, row: Row) -> float:
        in_flight = row.primed and self._collected is None
        return row.draws.at(len(row.answer.generated) + in_flight)

    def _processed(self, logits: mx.array, inputs: mx.array) -> mx.array:
        """Apply each row's own processors; one that raises is noted in its row and changes nothing."""
        if not any(row.processors for row in self.rows):
            return logits
        changed = []
        for index, row in enumerate(self.rows):
            mine = logits[index : index + 1]
            if row.processors and row.fault is None:
                context = row.context.update_and_fetch(inputs[index : index + 1]) if row.primed else row.context.tokens
                try:
                    for process in row.processors:
                        mine = process(context, mine)
                    if mine.shape != (1, logits.shape[-1]):
                        raise ValueError(f"a logits processor returned the shape {mine.shape}")
                except Exception as error:  # noqa: BLE001 - a door: a row's own callable must not harm its neighbours
                    row.fault, mine = error, logits[index : index + 1]
            changed.append(mine)
        return mx.concatenate(changed, axis=0)

    def _rank(self, logits: mx.array) -> dict[Row, tuple[mx.array, mx.array, mx.array]]:
        """Prepare what the rows that report log probabilities will need of this step."""
        rankings = {}
        for index, row in enumerate(self.rows):
            wanted = row.answer.settings.logprobs
            if wanted is None:
                continue
            rankings[row] = rank(logits[index] - self._mass[index], self._tokens[index], wanted)
        return rankings


def rank(logprobs: mx.array, token: mx.array, wanted: int) -> tuple[mx.array, mx.array, mx.array]:
    """Prepare what is reported of one token, without waiting for it.

    Args:
        logprobs: Shape [V].
        token: A single number.
        wanted: How many alternatives.
    """
    mine = logprobs.astype(mx.float32)
    top = mx.argpartition(-mine, kth=min(wanted, mine.size - 1))[:wanted]
    return mine[token], top, mine[top]


def ranking_of(arrays: tuple[Any, Any, Any]) -> Ranking:
    """Wait for what ``rank`` prepared and return it as plain numbers."""
    chosen, tokens, values = (array.tolist() for array in arrays)
    pairs: list[tuple[int, float]] = list(zip(tokens, values, strict=True))
    likely = sorted((pair for pair in pairs if math.isfinite(pair[1])), key=lambda pair: -pair[1])
    return Ranking(chosen, tuple(likely))
