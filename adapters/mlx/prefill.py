"""Computing a prompt in pieces, so that others get their turn in between.

Everything but the prompt's last token is computed here; the last one is the row's first input in a ``DecodeBatch``.
"""

from typing import Any

import attrs
import mlx.core as mx

from mlxk.adapters.mlx.batch import Row
from mlxk.adapters.mlx.residency import Resident


@attrs.define(eq=False)
class Prefill:
    """One prompt on its way into a cache."""

    row: Row
    resident: Resident
    tokens: list[int]
    """All tokens to be read, at least one."""
    cache: list[Any]
    """Holds the first ``position`` tokens."""
    position: int = 0
    alone: bool = False
    """Decodes in a batch of its own afterwards."""

    @property
    def remaining(self) -> int:
        """Tokens still to compute here."""
        return len(self.tokens) - 1 - self.position

    def advance(self, most: int) -> None:
        """Compute the next tokens, at most so many, and wait for them."""
        piece = self.tokens[self.position : min(self.position + most, len(self.tokens) - 1)]
        if piece:
            self.resident.model.network(mx.array([piece]), cache=self.cache)
            mx.eval([each.state for each in self.cache])
            self.position += len(piece)
            self.row.cached.extend(piece)
