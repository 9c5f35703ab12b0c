"""Which texts are computed together: of similar length, within memory, and briefly where answers are being written.

A network computes a batch in one go, during which no answer begins or goes on. Beside answers a batch takes about
``SHARED_SECONDS``, and the engine has as long after it; without any ``ALONE_SECONDS``, which a new answer may wait.
"""

import functools
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Protocol, TypeVar

from mlxk.domain.embedding import TokenIds

MAX_ROWS = 64
MAX_TOKENS = 16_384
"""In a batch, padding included."""
MAX_PAIRS = 2**24
"""Pairs of tokens that attend to each other in a batch; 1 GiB at most in a model with 16 heads."""

SHARED_SECONDS = 0.05
"""Duration of a batch beside answers, which get twenty tokens a second at least; one text may take longer."""

ALONE_SECONDS = 0.5
"""Duration of a batch without answers. Reading the weights is a small part of it: a larger one would gain little."""

FIRST_TOKENS = 256
"""Tokens of a batch while nothing is known of the pace."""


class Pace:
    """How fast a model computes tokens on this machine, learned from its batches."""

    def __init__(self) -> None:
        self._tokens_a_second: float | None = None

    def note(self, tokens: int, seconds: float) -> None:
        """Note what a batch took, padding included."""
        if tokens > 0 and seconds > 0:
            self._tokens_a_second = tokens / seconds

    def most_tokens(self, *, shared: bool) -> int:
        """Return how many tokens the next batch has at most.

        Args:
            shared: Whether answers are being written.
        """
        if self._tokens_a_second is None:
            return FIRST_TOKENS
        seconds = SHARED_SECONDS if shared else ALONE_SECONDS
        return max(1, min(MAX_TOKENS, int(self._tokens_a_second * seconds)))


class Counted(Protocol):
    """What a network made of a text."""

    @property
    def tokens(self) -> int:
        """Tokens that were computed."""


T = TypeVar("T")
R = TypeVar("R", bound=Counted)


class BatchLease(Protocol):
    """What runs batches on the owner thread: a ``ModelLease``, whose module loads the engine."""

    @property
    def seconds(self) -> float:
        """Duration of the last batch."""

    @property
    def is_shared(self) -> bool:
        """Whether sequences are being computed beside it."""

    def call_batch(self, work: Callable[[], T]) -> T:
        """Run a function on the owner thread, in turn with those of others.

        Raises:
            MlxkError: See ``ModelLease.call``.
        """


def in_batches(
    lease: BatchLease,
    pace: Pace,
    texts: Sequence[TokenIds],
    alone: Collection[int],
    compute: Callable[[list[int]], list[R]],
) -> Iterator[tuple[int, R]]:
    """Yield the index of each text and what a network makes of it, in the order in which the batches are computed.

    Args:
        lease: Of the model.
        pace: Of the model; learns from every batch.
        texts: See ``batches``.
        alone: See ``batches``.
        compute: Makes a batch of some indices, on the owner thread.

    Raises:
        MlxkError: See ``BatchLease.call_batch``.
    """
    for indices in batches(texts, alone, lambda: pace.most_tokens(shared=lease.is_shared)):
        found = lease.call_batch(functools.partial(compute, indices))
        pace.note(len(found) * max(each.tokens for each in found), lease.seconds)
        yield from zip(indices, found, strict=True)


def batches(
    texts: Sequence[TokenIds], alone: Collection[int] = (), most_tokens: Callable[[], int] = lambda: MAX_TOKENS
) -> Iterator[list[int]]:
    """Yield the indices of the texts in batches, longest first, so that a text that does not fit fails at once.

    Args:
        texts: The tokens of each.
        alone: The indices of those with an image, which has many tokens; each is a batch.
        most_tokens: Returns how many tokens the next batch may have, padding included; it has one text in any case.
    """
    together = [index for index in range(len(texts)) if index not in alone]
    order = sorted(together, key=lambda index: len(texts[index]), reverse=True)
    while order:
        rows = _max_rows(len(texts[order[0]]), most_tokens())
        yield order[:rows]
        del order[:rows]
    yield from ([index] for index in sorted(alone))


def _max_rows(length: int, most_tokens: int) -> int:
    length = max(length, 1)
    return max(1, min(MAX_ROWS, most_tokens // length, MAX_PAIRS // length**2))
