"""A model spread over several ranks, as the engine in rank 0 uses it: a network and KV caches like any other's.

Each call of the network and each change of a cache is a step, which is sent to the other ranks and then executed on
rank 0's own share. So the engine schedules, samples, cancels, caches and evicts as for one process.
"""

import itertools
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx

from mlxk.adapters.mlx.engine.prefill import FollowedNetwork
from mlxk.adapters.mlx.ranks.share import Share
from mlxk.domain.errors import MlxkError

SendStep = Callable[[list[Any]], None]
"""Sends a step to all other ranks; raises ``RankLostError`` if one is lost."""


class StepLog:
    """Executes steps on all ranks in the same order; used on the owner thread, except for ``drop``.

    Args:
        share: The share of rank 0.
        send: Sends a step to the other ranks.
        on_failure: Called when a step has failed here, after which the shares may differ.
    """

    def __init__(self, share: Share, send: SendStep, on_failure: Callable[[], None]) -> None:
        self.share = share
        self._send = send
        self._on_failure = on_failure
        self._numbers = itertools.count()
        self._dropped: deque[int] = deque()

    def number(self) -> int:
        """Return a number for a new cache."""
        return next(self._numbers)

    def do(self, step: str, *arguments: Any) -> None:  # noqa: ANN401 - JSON
        """Execute ``Share.do`` on all ranks."""
        self._drop()
        self._step(lambda: self.share.do(step, *arguments), [step, *arguments])

    def read(self, cache: int, tokens: mx.array, *, logits: bool) -> mx.array:
        """Execute ``Share.read`` on all ranks; the tokens, perhaps not evaluated yet, are sent through MLX's group."""
        self._drop()
        step = ["read", cache, list(tokens.shape), logits]
        output: mx.array = self._step(lambda: self.share.read(cache, tokens, logits=logits), step)
        return output

    def give_up(self) -> None:
        """End the group: the shares may differ."""
        self._on_failure()

    def drop(self, cache: int) -> None:
        """Drop a cache on all ranks before the next step; on any thread, also during garbage collection."""
        self._dropped.append(cache)

    def _drop(self) -> None:
        dropped = [self._dropped.popleft() for _ in range(len(self._dropped))]
        if dropped:
            self._step(lambda: self.share.do("drop", *dropped), ["drop", *dropped])

    def _step(self, work: Callable[[], Any], step: list[Any]) -> Any:  # noqa: ANN401
        self._send(step)
        try:
            return work()
        except MlxkError:
            raise
        except Exception:
            self._on_failure()
            raise


class RankedCache:
    """The KV cache of a sequence or a batch over all layers and ranks; for the engine, a cache of one "layer".

    Args:
        log: Executes the changes on all ranks.
        number: Number under which every share has the cache already.
    """

    def __init__(self, log: StepLog, number: int) -> None:
        self._log = log
        self.number = number

    @classmethod
    def of_step(cls, log: StepLog, step: str, *arguments: Any) -> "RankedCache":  # noqa: ANN401 - JSON
        """Execute a step that makes a cache, and return the cache."""
        number = log.number()
        log.do(step, number, *arguments)
        return cls(log, number)

    @property
    def _layers(self) -> list[Any]:
        return self._log.share.caches[self.number]

    @property
    def nbytes(self) -> int:
        """Size of rank 0's part, bytes."""
        return sum(layer.nbytes for layer in self._layers)

    @property
    def state(self) -> list[Any]:
        """The arrays of rank 0's part."""
        return [layer.state for layer in self._layers]

    def is_trimmable(self) -> bool:
        """Whether tokens can be removed from its end."""
        return all(layer.is_trimmable() for layer in self._layers)

    def merge(self, caches: "Sequence[RankedCache]") -> "RankedCache":
        """Return a batch of caches."""
        return self.of_step(self._log, "merge", [each.number for each in caches])

    def extend(self, other: "RankedCache") -> None:
        """Add the sequences of another batch."""
        self._log.do("extend", self.number, other.number)

    def filter(self, keep: list[int]) -> None:
        """Keep some sequences of a batch."""
        self._log.do("filter", self.number, keep)

    def extract(self, index: int) -> "RankedCache":
        """Return the cache of one sequence of a batch."""
        return self.of_step(self._log, "extract", self.number, index)

    def trim(self, tokens: int) -> None:
        """Remove tokens from the end."""
        self._log.do("trim", self.number, tokens)

    def __deepcopy__(self, memo: dict[int, Any]) -> "RankedCache":
        return self.of_step(self._log, "copy", self.number)

    def __del__(self) -> None:
        self._log.drop(self.number)


class RankedNetwork(FollowedNetwork):
    """A model spread over several ranks, with the interface of mlx-lm's models.

    Args:
        log: Executes the computations on all ranks.
    """

    def __init__(self, log: StepLog) -> None:
        self._log = log

    def make_cache(self) -> list[RankedCache]:
        """Return an empty cache."""
        return [RankedCache.of_step(self._log, "make")]

    def __call__(self, tokens: mx.array, cache: list[RankedCache]) -> mx.array:
        """Return the logits, shape [B, L, V], for tokens, shape [B, L]."""
        return self._log.read(cache[0].number, tokens, logits=True)

    def read(self, tokens: mx.array, cache: list[RankedCache]) -> None:
        self._log.read(cache[0].number, tokens, logits=False)

    def give_up(self) -> None:
        self._log.give_up()
