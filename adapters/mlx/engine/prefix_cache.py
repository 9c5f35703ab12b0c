"""Keys and values computed before, kept for prompts that begin the same way.

Entries are keyed by a model's identity and hold the cache of a token sequence. A prompt takes the entry with the
longest common beginning: a *shorter* entry as it is, a *longer* or *equal* one trimmed to what both share, but for the
prompt's last token, which the next step needs as input. Caches that cannot be trimmed (a recurrent state, a sliding
window that has moved on) serve only as shorter entries; ``find`` then says where the prompt and such an entry part, so
that a snapshot can be taken there for the next prompt that parts at the same place.

Bounded in bytes, the least recently used entry goes first. Copies share memory until one of them is written to.
"""

import copy
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import attrs
import mlx.core as mx

WORTHWHILE = 16
"""Tokens a hit or a snapshot must save; computing fewer costs less than the copy."""

MAX_ENTRIES = 256
"""Entries kept at most: every prompt is compared with each of them."""

_WIDTH = 4


@attrs.frozen(eq=False)
class _Entry:
    identity: str
    tokens: bytes
    """Four bytes a token, so that comparing is one memory comparison."""
    cache: list[Any]
    size_bytes: int
    trimmable: bool


@attrs.frozen
class Found:
    """What the cache knows of a prompt."""

    cache: list[Any] | None
    """The caller's own copy; None when nothing worthwhile was found."""
    tokens: int
    """How many of the prompt's tokens it holds."""
    parting: int
    """Where a snapshot would have served better, in tokens from the start; 0: nowhere."""


class PrefixCache:
    """Used on the owner thread only.

    Args:
        max_bytes: What all entries may take; 0 keeps nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[tuple[str, bytes], _Entry] = OrderedDict()
        self.size_bytes = 0
        self.hits = 0
        self.misses = 0

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, identity: str, tokens: Sequence[int]) -> Found:
        """Look a prompt up.

        Args:
            identity: The model's.
            tokens: The prompt, at least one token.
        """
        wanted = _packed(tokens)
        most = len(tokens) - 1
        best: _Entry | None = None
        held = parting = 0
        for entry in self._entries.values():
            if entry.identity != identity:
                continue
            shared = min(_common(entry.tokens, wanted), most)
            if shared == len(entry.tokens) // _WIDTH or entry.trimmable:
                if shared > held:
                    best, held = entry, shared
            else:
                parting = max(parting, shared)
        parting = parting if parting - held >= WORTHWHILE else 0
        if best is None or held < min(WORTHWHILE, most):
            self.misses += 1
            return Found(None, 0, parting)
        self.hits += 1
        self._entries.move_to_end((best.identity, best.tokens))
        return Found(_trimmed(best, held), held, parting)

    def put(self, identity: str, tokens: Sequence[int], cache: list[Any]) -> None:
        """Keep a cache that nobody will write to any more; evicts what no longer fits.

        Args:
            identity: The model's.
            tokens: The tokens it holds.
            cache: mlx-lm's caches, one a layer.
        """
        size = sum(each.nbytes for each in cache)
        if not tokens or size > self._max_bytes:
            return
        mx.async_eval([each.state for each in cache])  # type: ignore[no-untyped-call]
        entry = _Entry(identity, _packed(tokens), cache, size, all(each.is_trimmable() for each in cache))
        self._remove([key for key, other in self._entries.items() if _subsumes(entry, other)])
        self._entries[entry.identity, entry.tokens] = entry
        self.size_bytes += size
        self.shrink(self._max_bytes)

    def shrink(self, max_bytes: int) -> None:
        """Evict the least recently used entries until the rest fits."""
        while self._entries and (self.size_bytes > max_bytes or len(self._entries) > MAX_ENTRIES):
            self._remove([next(iter(self._entries))])

    def forget(self, identity: str) -> None:
        """Drop everything of one model, whatever kind of cache it is."""
        kinds = f"{identity}#"
        self._remove([key for key in self._entries if key[0] == identity or key[0].startswith(kinds)])

    def _remove(self, keys: list[tuple[str, bytes]]) -> None:
        for key in keys:
            self.size_bytes -= self._entries.pop(key).size_bytes


def snapshot(cache: list[Any]) -> list[Any]:
    """Return a copy that later writes to the original leave as it is."""
    return copy.deepcopy(cache)


def _trimmed(entry: _Entry, tokens: int) -> list[Any]:
    cache = snapshot(entry.cache)
    surplus = len(entry.tokens) // _WIDTH - tokens
    if surplus:
        for each in cache:
            each.trim(surplus)
    return cache


def _subsumes(entry: _Entry, other: _Entry) -> bool:
    """Whether an entry makes another one useless."""
    if entry.identity != other.identity or not entry.tokens.startswith(other.tokens):
        return False
    return entry.trimmable or len(entry.tokens) == len(other.tokens)


def _packed(tokens: Sequence[int]) -> bytes:
    return array("I", tokens).tobytes()


def _common(left: bytes, right: bytes) -> int:
    """Return how many tokens two sequences share from the start."""
    same, differs = 0, min(len(left), len(right)) // _WIDTH + 1
    while differs - same > 1:
        middle = (same + differs) // 2
        if left[same * _WIDTH : middle * _WIDTH] == right[same * _WIDTH : middle * _WIDTH]:
            same = middle
        else:
            differs = middle
    return same
