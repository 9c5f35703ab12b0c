"""The prefix cache: KV caches of earlier prompts and answers, reused by prompts with the same prefix.

Entries are keyed by a model's identity and hold the KV cache of a token sequence. A prompt uses the entry with the
longest common prefix: a *shorter* entry unchanged, a *longer* or *equal* one trimmed to the common prefix, without the
prompt's last token, which the first decoding step needs as input. Caches that cannot be trimmed (a recurrent state, a
sliding window that has moved) can be used only as shorter entries; ``find`` then returns the point of divergence of
prompt and entry, so that a snapshot can be taken there for the next prompt that diverges at the same point.

Limited in bytes, with eviction of the least recently used entry. Copies share memory until one of them is written to.
"""

import copy
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import attrs
import mlx.core as mx

MIN_SAVED_TOKENS = 16
"""Tokens a match or a snapshot must save; computing fewer costs less than the copy."""

MAX_ENTRIES = 256
"""Every prompt is compared with each entry."""

_BYTES_PER_TOKEN = 4


@attrs.frozen(eq=False)
class _Entry:
    identity: str
    tokens: bytes
    """Four bytes a token, so that a comparison is one memory comparison."""
    cache: list[Any]
    size_bytes: int
    trimmable: bool


@attrs.frozen
class PrefixMatch:
    """The result of a lookup."""

    cache: list[Any] | None
    """A copy for the caller; None without a match."""
    tokens: int
    """Prompt tokens in ``cache``."""
    divergence: int
    """Where a snapshot would have matched more, in tokens from the start; 0: nowhere."""


class PrefixCache:
    """The cache; used on the owner thread only.

    Args:
        max_bytes: Limit of all entries together; 0 disables the cache.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[tuple[str, bytes], _Entry] = OrderedDict()
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, identity: str, tokens: Sequence[int]) -> PrefixMatch:
        """Look a prompt up.

        Args:
            identity: Of the model and the kind of cache.
            tokens: The prompt, at least one token.
        """
        packed = _packed(tokens)
        most = len(tokens) - 1
        best: _Entry | None = None
        matched = divergence = 0
        for entry in self._entries.values():
            if entry.identity != identity:
                continue
            shared = min(_common_prefix(entry.tokens, packed), most)
            if shared == len(entry.tokens) // _BYTES_PER_TOKEN or entry.trimmable:
                if shared > matched:
                    best, matched = entry, shared
            else:
                divergence = max(divergence, shared)
        divergence = divergence if divergence - matched >= MIN_SAVED_TOKENS else 0
        if best is None or matched < min(MIN_SAVED_TOKENS, most):
            return PrefixMatch(None, 0, divergence)
        self._entries.move_to_end((best.identity, best.tokens))
        return PrefixMatch(_trimmed(best, matched), matched, divergence)

    def put(self, identity: str, tokens: Sequence[int], cache: list[Any]) -> None:
        """Store a cache that is not written to any more, and evict what no longer fits.

        Args:
            identity: Of the model and the kind of cache.
            tokens: The tokens in the cache.
            cache: One object a layer.
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
        """Evict the least recently used entries down to a size."""
        while self._entries and (self.size_bytes > max_bytes or len(self._entries) > MAX_ENTRIES):
            self._remove([next(iter(self._entries))])

    def forget(self, identity: str) -> None:
        """Drop all entries of a model, of every kind of cache."""
        kinds = f"{identity}#"
        self._remove([key for key in self._entries if key[0] == identity or key[0].startswith(kinds)])

    def _remove(self, keys: list[tuple[str, bytes]]) -> None:
        for key in keys:
            self.size_bytes -= self._entries.pop(key).size_bytes


def snapshot(cache: list[Any]) -> list[Any]:
    """Return a copy that later writes to the original do not change."""
    return copy.deepcopy(cache)


def _trimmed(entry: _Entry, tokens: int) -> list[Any]:
    cache = snapshot(entry.cache)
    surplus = len(entry.tokens) // _BYTES_PER_TOKEN - tokens
    if surplus:
        for each in cache:
            each.trim(surplus)
    return cache


def _subsumes(entry: _Entry, other: _Entry) -> bool:
    """Whether every match of another entry is one of this entry, too."""
    if entry.identity != other.identity or not entry.tokens.startswith(other.tokens):
        return False
    return entry.trimmable or len(entry.tokens) == len(other.tokens)


def _packed(tokens: Sequence[int]) -> bytes:
    return array("I", tokens).tobytes()


def _common_prefix(left: bytes, right: bytes) -> int:
    """Return the length of the common prefix of two packed sequences, tokens."""
    same, differs = 0, min(len(left), len(right)) // _BYTES_PER_TOKEN + 1
    while differs - same > 1:
        middle = (same + differs) // 2
        if (
            left[same * _BYTES_PER_TOKEN : middle * _BYTES_PER_TOKEN]
            == right[same * _BYTES_PER_TOKEN : middle * _BYTES_PER_TOKEN]
        ):
            same = middle
        else:
            differs = middle
    return same
