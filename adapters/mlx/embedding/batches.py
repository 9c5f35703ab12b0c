"""Which texts are computed together: those of similar length, as many as memory allows."""

from collections.abc import Sequence

from mlxk.domain.embedding import TokenIds

MOST_ROWS = 64
MOST_TOKENS = 16_384
"""In a batch, padding included."""
MOST_PAIRS = 2**24
"""Pairs of tokens that attend to each other in a batch; a model with 16 heads takes 1 GiB for them at the most."""


def batches(texts: Sequence[TokenIds]) -> list[list[int]]:
    """Return the indices of the texts, batch by batch, longest first: what does not fit fails at once."""
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]), reverse=True)
    made: list[list[int]] = []
    for index in order:
        longest = len(texts[made[-1][0]]) if made else 0
        if not made or len(made[-1]) >= _most_rows(longest):
            made.append([])
        made[-1].append(index)
    return made


def _most_rows(length: int) -> int:
    length = max(length, 1)
    return max(1, min(MOST_ROWS, MOST_TOKENS // length, MOST_PAIRS // length**2))
