"""Computing a prompt in pieces, so that others get their turn in between.

Everything but the prompt's last token is computed here; the last one is the row's first input in a ``DecodeBatch``.
"""

from abc import abstractmethod
from typing import Any, Protocol

import attrs
import mlx.core as mx

from mlxk.adapters.mlx.engine.prefix_cache import PrefixCache, snapshot


@attrs.define(eq=False)
class Prefill:
    """One prompt on its way into a cache."""

    network: Any
    tokens: list[int]
    """All tokens to be read, at least one."""
    cache: list[Any]
    """Holds the first ``position`` tokens."""
    position: int = 0
    parting: int = 0
    """Where a snapshot is to be taken, see ``prefix_cache``; 0: nowhere."""
    draft: "Prefill | None" = None
    """The same prompt on its way into a draft model's cache."""

    @property
    def remaining(self) -> int:
        """Tokens still to compute here, the draft model's included."""
        return len(self.tokens) - 1 - self.position + (self.draft.remaining if self.draft is not None else 0)

    @property
    def computed(self) -> list[int]:
        """The tokens in the cache."""
        return self.tokens[: self.position]

    def advance(self, most: int) -> int:
        """Compute the next tokens, at most so many, wait for them, and return how many they were."""
        if self.position == len(self.tokens) - 1 and self.draft is not None:
            return self.draft.advance(most)
        end = min(self.position + most, len(self.tokens) - 1)
        if self.position < self.parting < end:
            end = self.parting
        piece = self.tokens[self.position : end]
        if piece:
            self.network(mx.array([piece]), cache=self.cache)
            mx.eval([layer.state for layer in self.cache])
            self.position = end
        return len(piece)

    def keep(self, prefixes: PrefixCache, identity: str) -> None:
        """Leave a copy of what is computed for later prompts."""
        prefixes.put(identity, self.computed, snapshot(self.cache))


class Media(Protocol):
    """What a prompt shows beside its tokens, and how the model takes both in."""

    kind: str
    """What tells caches of prompts with the same tokens apart; empty when nothing is shown."""

    @abstractmethod
    def prefill(self, tokens: list[int], cache: list[Any], position: int) -> Prefill:
        """Begin to compute a prompt; on the owner thread.

        Args:
            tokens: The prompt, and what was answered already.
            cache: Holds the first ``position`` of them.
            position: How many.
        """
