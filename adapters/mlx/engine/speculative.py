"""Speculative decoding: a small model proposes some tokens, the model confirms them all in one pass.

The text is what the model would have said by itself, for a given seed too: every position has its own draw, and a
proposal is confirmed when sampling the model with that draw gives the same token. Such a row cannot share steps with
others, so it has a batch of its own. Where a cache could not be rewound, nothing is proposed.
"""

import math
from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from mlxk.adapters.mlx.engine.batch import Batch, Row, Sampled, rank, ranking_of
from mlxk.adapters.mlx.engine.sampling import NOT_FINITE, BatchSampler, chosen


class SpeculativeBatch(Batch):
    """One row with a draft model.

    Args:
        network: The model.
        draft: The small model.
        draft_cache: Its cache, as far as the row's prompt but for the last token.
        width: Tokens proposed at a time.
    """

    alone = True

    def __init__(self, network: Any, draft: Any, draft_cache: list[Any], width: int) -> None:  # noqa: ANN401
        self.network = network
        self.rows: list[Row] = []
        self._draft = draft
        self._cache: list[Any] = []
        self._draft_cache = draft_cache
        self._width = width
        self._last = 0
        """The newest token, which neither model has read."""
        self._unread: list[int] = []
        """What the draft model has to read before it proposes: the newest token, and sometimes the one before it."""

    @property
    def size_bytes(self) -> int:
        """What both caches take."""
        return sum(layer.nbytes for layer in [*self._cache, *self._draft_cache])

    def join(self, rows: Sequence[Row], caches: Sequence[list[Any]], last_tokens: Sequence[int]) -> None:
        """Take the one row."""
        self.rows = list(rows)
        self._cache = caches[0]
        self._last = last_tokens[0]
        self._unread = [self._last]

    def leave(self, rows: Sequence[Row]) -> None:
        """Let the row go."""
        self.rows = [row for row in self.rows if row not in rows]
        if not self.rows:
            self._cache, self._draft_cache = [], []

    def extract(self, row: Row) -> list[Any]:
        """Return the row's cache; the draft model's is not kept."""
        return self._cache

    def step(self) -> list[Sampled]:
        """Propose, confirm, and return one token more than were confirmed."""
        row = self.rows[0]
        start = len(row.answer.generated)
        width = self._width if self._may_rewind(self._width + 1) else 0
        proposed = self._propose(row, start, width)
        logits = self.network(mx.array([[self._last, *proposed]]), cache=self._cache)[0, -(width + 1) :, :]
        logits = self._processed(row, logits, proposed)
        sampler = BatchSampler([row.sampling] * (width + 1))
        draws = [row.draws.at(start + index) for index in sampler.drawn]
        tokens, mass = sampler.sample(logits, draws)
        found = chosen(tokens, mass)
        confirmed = 0
        while confirmed < width and found[confirmed] == proposed[confirmed]:
            confirmed += 1
        self._rewind(width, confirmed, proposed)
        row.cached += [self._last, *proposed[:confirmed]]
        self._last = max(found[confirmed], 0)
        self._unread.append(self._last)
        return [
            Sampled(row, token, self._ranking(row, logits[index] - mass[index], token))
            for index, token in enumerate(found[: confirmed + 1])
        ]

    def collect(self) -> list[Sampled]:
        """Return nothing: a step leaves nothing behind."""
        return []

    def _propose(self, row: Row, start: int, width: int) -> list[int]:
        proposed: list[int] = []
        sampler = BatchSampler([row.sampling])
        for index in range(width):
            logits = self._draft(mx.array([self._unread]), cache=self._draft_cache)[:, -1, :]
            draws = [row.draws.at(start + index)] if sampler.drawn else []
            token: Any = sampler.sample(logits, draws)[0].item()
            proposed.append(token)
            self._unread = [proposed[-1]]
        return proposed

    def _rewind(self, width: int, confirmed: int, proposed: list[int]) -> None:
        """Make both caches forget what was not confirmed."""
        for layer in self._cache:
            if width > confirmed:
                layer.trim(width - confirmed)
        surplus = width - confirmed - 1
        for layer in self._draft_cache:
            if surplus > 0:
                layer.trim(surplus)
        if width:
            # The draft model has not read its own last proposal; when that was confirmed, it still must.
            self._unread = [proposed[-1]] if confirmed == width else []

    def _may_rewind(self, tokens: int) -> bool:
        """Whether so many tokens could be read and forgotten again; a sliding window forgets what it leaves."""
        return all(_may_rewind(layer, tokens) for layer in [*self._cache, *self._draft_cache])

    def _processed(self, row: Row, logits: mx.array, proposed: list[int]) -> mx.array:
        if not row.processors or row.fault is not None:
            return logits
        changed = []
        try:
            for index in range(logits.shape[0]):
                mine = logits[index : index + 1]
                context = mx.array([*row.answer.generated, *proposed[:index]], dtype=mx.int32)
                for process in row.processors:
                    mine = process(context, mine)
                changed.append(mine)
        except Exception as error:  # noqa: BLE001 - a door: the row's own callables fail the row, not the engine
            row.fault = error
            return logits
        return mx.concatenate(changed, axis=0)

    def _ranking(self, row: Row, logprobs: mx.array, token: int) -> Any:  # noqa: ANN401
        wanted = row.answer.settings.logprobs
        if wanted is None or token == NOT_FINITE:
            return None
        return ranking_of(rank(logprobs, mx.array(token), wanted))


def _may_rewind(layer: Any, tokens: int) -> bool:  # noqa: ANN401
    offset, size = getattr(layer, "offset", None), getattr(layer, "max_size", math.inf)
    return layer.is_trimmable() and offset is not None and offset + tokens < size
