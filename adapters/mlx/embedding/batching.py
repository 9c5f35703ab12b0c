"""Batches of texts of similar length, limited in memory and in duration.

While a network computes a batch, no completion starts or continues. A batch therefore takes about ``SHARED_SECONDS``
while completions are running, after which the engine has as long for itself, and about ``ALONE_SECONDS`` otherwise,
the longest that a new completion has to wait.
"""

import functools
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Protocol, TypeVar

from mlxk.domain.embedding import TokenIds

MAX_ROWS = 64
MAX_TOKENS = 16_384
"""Tokens of a batch, padding included."""
MAX_PAIRS = 2**24
"""Pairs of tokens that attend to each other in a batch; at most 1 GiB in a model with 16 heads."""

SHARED_SECONDS = 0.05
"""Duration of a batch while completions run, which so get at least twenty tokens a second; one text may take longer."""

ALONE_SECONDS = 0.5
"""Duration of a batch when no completion runs. Reading the weights is a small part of it: longer gains little."""

FIRST_TOKENS = 256
"""Tokens of a model's first batch, before its speed is known."""


class Pace:
    """The speed of a model on this machine, measured from its batches."""

    def __init__(self) -> None:
        self._tokens_a_second: float | None = None

    def note(self, tokens: int, seconds: float) -> None:
        """Record the tokens of a batch, padding included, and its duration."""
        if tokens > 0 and seconds > 0:
            self._tokens_a_second = tokens / seconds

    def most_tokens(self, *, shared: bool) -> int:
        """Return the maximum number of tokens of the next batch.

        Args:
            shared: Whether completions are running.
        """
        if self._tokens_a_second is None:
            return FIRST_TOKENS
        seconds = SHARED_SECONDS if shared else ALONE_SECONDS
        return max(1, min(MAX_TOKENS, int(self._tokens_a_second * seconds)))


class Counted(Protocol):
    """The result of a network for one text."""

    @property
    def tokens(self) -> int:
        """Number of tokens that were computed."""


T = TypeVar("T")
R = TypeVar("R", bound=Counted)


class BatchLease(Protocol):
    """Runs batches on the owner thread: a ``ModelLease``, whose module would import the engine here."""

    @property
    def seconds(self) -> float:
        """Duration of the last batch."""

    @property
    def is_shared(self) -> bool:
        """Whether the engine is computing sequences as well."""

    def call_batch(self, work: Callable[[], T]) -> T:
        """Run a function on the owner thread, in turn with other work.

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
    """Yield the index and the result of each text, in the order in which the batches are computed.

    Args:
        lease: Lease of the model.
        pace: Speed of the model; updated with every batch.
        texts: See ``batches``.
        alone: See ``batches``.
        compute: Computes the texts with some indices as one batch, on the owner thread.

    Raises:
        MlxkError: See ``BatchLease.call_batch``.
    """
    for indices in batches(texts, alone, lambda: pace.most_tokens(shared=lease.is_shared)):
        results = lease.call_batch(functools.partial(compute, indices))
        pace.note(len(results) * max(result.tokens for result in results), lease.seconds)
        yield from zip(indices, results, strict=True)


def batches(
    texts: Sequence[TokenIds], alone: Collection[int] = (), most_tokens: Callable[[], int] = lambda: MAX_TOKENS
) -> Iterator[list[int]]:
    """Yield the indices of the texts in batches, longest first, so that a text that does not fit fails at once.

    Args:
        texts: Token ids of each text.
        alone: Indices of inputs with an image, whose many tokens are not known yet; each is a batch of its own.
        most_tokens: Returns the maximum tokens of the next batch, padding included; a batch has at least one text.
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
