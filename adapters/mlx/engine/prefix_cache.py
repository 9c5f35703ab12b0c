"""The prefix cache: KV caches of earlier prompts and completions, for prompts that begin with the same tokens.

Entries of the prefix cache are keyed by model, kind of cache and tenant, and hold the KV cache of a token sequence.
Tokens that stand for an image or a sound are the same as far as they stand for the same one. A prompt uses the entry
with the longest common prefix: a *shorter* entry unchanged, a *longer* or *equal* one trimmed to the common prefix,
without the prompt's last token. Caches that cannot be trimmed (a recurrent state, a sliding window that has moved) can
be used only as shorter entries. For these, snapshots are taken where a conversation's messages end, since a later
prompt may continue there in another way, and where ``find`` says that prompt and entry diverge. Limited in bytes, with
eviction of the least recently used entry. Copies share memory until one of them is written to.

Where that is asked for (``stored_bits``), entries are quantized before any is evicted, the least recently used first;
those that would be evicted in any case are not. A copy for a prompt is dequantized, so that all that computes with it
has the kind of cache that it knows. What such a copy continues is *inexact*: it stays in memory, and is never offered
to who keeps prompts elsewhere.
"""

import copy
import itertools
from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import mlx.core as mx
from mlx_lm.models.cache import KVCache

from mlxk.adapters.mlx.engine.quantized_cache import (
    QuantizedCache,
    StoredLayer,
    is_trimmable,
    kept_bytes,
    kept_state,
    quantizable_layers,
)

MIN_SAVED_TOKENS = 16
"""Tokens a match or a snapshot must save; computing fewer costs less than the copy."""

MAX_ENTRIES = 256
"""Every prompt is compared with each entry."""

BYTES_PER_TOKEN = 4


@attrs.frozen
class ShownMedia:
    """The media of a prompt, which stand for some of its tokens."""

    digests: tuple[tuple[str, ...], ...] = ()
    """Those of each kind, in the order of the prompt."""
    first: int = 0
    """Index of the first token that stands for one; 0 when it is not known, or without media."""
    whole: int = 0
    """Tokens that are computed in one go, up to the last that stands for one; 0 where any part may be in the cache."""
    kept: bool = True
    """Whether anything that is computed of the prompt is of use for another one."""

    def __bool__(self) -> bool:
        return any(self.digests)

    def continues(self, other: "ShownMedia") -> bool:
        """Whether it begins with the media of another prompt."""
        pairs = itertools.zip_longest(self.digests, other.digests, fillvalue=())
        return all(mine[: len(theirs)] == theirs for mine, theirs in pairs)

    def shared(self, other: "ShownMedia", tokens: int) -> int:
        """Return how many of the first tokens, which are the same, another prompt can use of what is kept for this one.

        Where one begins with the media of the other, equal tokens stand for equal media: those of the same kind come in
        their order, and each has its number of tokens.
        """
        if bool(self) is not bool(other) or not (self.continues(other) or other.continues(self)):
            tokens = min(tokens, *(each.first for each in (self, other) if each))
        return tokens if tokens >= other.whole else 0


@attrs.frozen
class PrefixIdentity:
    """What must be equal for a cache to be used for another prompt that begins with the same tokens."""

    model: str
    """The loaded model: its files with their state, and its adapter."""
    kind: str
    """The kind of cache."""
    tenant: str
    """Whose prompt it is; see ``GenerationRequest``."""
    shown: ShownMedia = ShownMedia()
    """What some of its tokens stand for; only as much of another prompt is used as stands for the same."""
    stored_bits: int | None = None
    """Bits of its keys and values once memory is short; None leaves them as they are."""

    def is_akin(self, other: "PrefixIdentity") -> bool:
        """Whether all is equal but for the media."""
        mine = (self.model, self.kind, self.tenant, self.stored_bits)
        return mine == (other.model, other.kind, other.tenant, other.stored_bits)

    def shared(self, other: "PrefixIdentity", tokens: int) -> int:
        """Return how many of the first tokens, which are the same, a cache of one holds for the other."""
        return self.shown.shared(other.shown, tokens) if self.is_akin(other) else 0


OnSnapshot = Callable[[PrefixIdentity, bytes, list[Any]], None] | None
"""Called with each snapshot of a prompt, on the owner thread: its identity, packed tokens, and cache."""


@attrs.define(eq=False)
class _Entry:
    identity: PrefixIdentity
    tokens: bytes
    """Four bytes a token, so that a comparison is one memory comparison."""
    cache: list[Any]
    """Its own; layers are replaced when it is quantized."""
    size_bytes: int
    least_bytes: int
    """What it takes once it is quantized; ``size_bytes`` where that is not asked for, or impossible."""
    trimmable: bool
    exact: bool
    """Whether it is as it was computed from tokens alone."""
    quantized: bool = False

    def covers(self, tokens: int) -> bool:
        """Whether a prompt can use so many tokens that it shares with this entry."""
        return self.trimmable or tokens == len(self.tokens) // BYTES_PER_TOKEN


@attrs.frozen
class PrefixMatch:
    """The result of a lookup."""

    cache: list[Any] | None
    """A copy for the caller; None without a match."""
    tokens: int
    """Prompt tokens in ``cache``."""
    divergence: int
    """Where a snapshot would have matched more, in tokens from the start; 0: nowhere."""
    exact: bool = True
    """Whether it is as it was computed: neither quantized at any time, nor continued from what was."""


NO_MATCH = PrefixMatch(None, 0, 0)


class PrefixCache:
    """The cache; used on the owner thread only.

    Args:
        max_bytes: Limit of all entries together; 0 disables the cache.
        on_snapshot: Called with each snapshot of a prompt that is kept; None takes those only that this cache needs.
    """

    def __init__(self, max_bytes: int, on_snapshot: OnSnapshot = None) -> None:
        self.max_bytes = max_bytes
        self._on_snapshot = on_snapshot
        self._entries: OrderedDict[tuple[PrefixIdentity, bytes], _Entry] = OrderedDict()
        self._listed: tuple[_Entry, ...] = ()
        """The entries, for other threads."""
        self.size_bytes = 0
        self.quantizations = self.quantized_hits = 0
        """Entries that were quantized, and prompts that used one, since the start."""

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, identity: PrefixIdentity, tokens: Sequence[int]) -> PrefixMatch:
        """Look a prompt up.

        Args:
            identity: Of the prompt.
            tokens: The prompt, at least one token.
        """
        packed = pack(tokens)
        most = len(tokens) - 1
        best: _Entry | None = None
        matched = divergence = 0
        for entry in self._entries.values():
            if not entry.identity.is_akin(identity):
                continue
            shared = min(entry.identity.shared(identity, _common_prefix(entry.tokens, packed)), most)
            if entry.covers(shared):
                if shared > matched:
                    best, matched = entry, shared
            else:
                divergence = max(divergence, shared)
        divergence = divergence if divergence - matched >= MIN_SAVED_TOKENS else 0
        if best is None or matched < min(MIN_SAVED_TOKENS, most):
            return PrefixMatch(None, 0, divergence)
        self._entries.move_to_end((best.identity, best.tokens))
        self.quantized_hits += best.quantized
        return PrefixMatch(_trimmed(best, matched), matched, divergence, best.exact)

    def covered(self, identity: PrefixIdentity, packed: bytes) -> int:
        """Return how many tokens of a packed prompt can be used from here; on any thread, and only likely true."""
        entries = [entry for entry in self._listed if entry.identity.is_akin(identity)]
        shared = ((entry, entry.identity.shared(identity, _common_prefix(entry.tokens, packed))) for entry in entries)
        return max((tokens for entry, tokens in shared if entry.covers(tokens)), default=0)

    def stops(self, match: PrefixMatch, boundaries: Sequence[int], cache: list[Any]) -> tuple[int, ...]:
        """Return where snapshots of a prompt are taken, ascending, in tokens from its start.

        Args:
            match: The prompt's.
            boundaries: Where its messages end.
            cache: With which it begins.
        """
        if not self.max_bytes:
            return ()
        # A longer entry of layers that keep every token is trimmed to any boundary.
        needed = self._on_snapshot is not None or not all(isinstance(each, (KVCache, QuantizedCache)) for each in cache)
        stops = {*(boundaries if needed else ()), match.divergence}
        return tuple(sorted(stop for stop in stops if stop > match.tokens))

    def keep(self, identity: PrefixIdentity, tokens: Sequence[int], cache: list[Any], *, exact: bool = True) -> None:
        """Store a snapshot of a prompt, and offer one without media to whoever keeps them elsewhere; see ``put``.

        An inexact one is not offered, nor one that would not fit into the limit as it was computed.
        """
        lasting = exact and sum(map(kept_bytes, cache)) <= self.max_bytes
        stored = self.put(identity, tokens, cache, exact=exact)
        if stored and lasting and self._on_snapshot is not None and not identity.shown:
            self._on_snapshot(identity, pack(tokens), cache)

    def put(self, identity: PrefixIdentity, tokens: Sequence[int], cache: list[Any], *, exact: bool = True) -> bool:
        """Store a cache that is not written to any more, and quantize or evict entries beyond the limit.

        Args:
            identity: Of the prompt.
            tokens: The tokens in the cache.
            cache: One object a layer.
            exact: Whether it was computed from tokens alone, or from an exact match.

        Returns:
            Whether it was stored; one larger than the limit is not, nor one that is of use for no other prompt.
        """
        size = sum(map(kept_bytes, cache))
        least = size - _savings(cache, identity.stored_bits)
        if not tokens or least > self.max_bytes or not identity.shown.kept:
            return False
        mx.async_eval([kept_state(each) for each in cache])  # type: ignore[no-untyped-call]
        trimmable = all(map(is_trimmable, cache))
        entry = _Entry(identity, pack(tokens), list(cache), size, least, trimmable, exact)
        self._remove([key for key, other in self._entries.items() if _subsumes(entry, other)])
        self._entries[entry.identity, entry.tokens] = entry
        self.size_bytes += size
        self._listed = tuple(self._entries.values())
        self.shrink(self.max_bytes)
        return True

    def shrink(self, max_bytes: int) -> None:
        """Quantize the least recently used entries down to a size, after evicting those that have to go.

        Args:
            max_bytes: What is left at most.
        """
        least = sum(entry.least_bytes for entry in self._entries.values())
        while self._entries and (least > max_bytes or len(self._entries) > MAX_ENTRIES):
            oldest = next(iter(self._entries))
            least -= self._entries[oldest].least_bytes
            self._remove([oldest])
        for entry in self._entries.values():
            if self.size_bytes <= max_bytes:
                break
            self._quantize(entry)

    def forget(self, model: str) -> None:
        """Drop all entries of a model, of every kind of cache."""
        self._remove([key for key in self._entries if key[0].model == model])

    def forget_tenant(self, tenant: str | None) -> None:
        """Drop all entries of a tenant, or of every one."""
        self._remove([key for key in self._entries if tenant in (None, key[0].tenant)])

    def held(self, tenant: str | None, *, quantized: bool = False) -> tuple[int, int]:
        """Return the number of entries of a tenant, or of all, and their size in bytes.

        Args:
            tenant: Whose.
            quantized: Whether only quantized ones count.
        """
        entries = [entry for entry in self._entries.values() if tenant in (None, entry.identity.tenant)]
        sizes = [entry.size_bytes for entry in entries if entry.quantized or not quantized]
        return len(sizes), sum(sizes)

    def _quantize(self, entry: _Entry) -> None:
        """Quantize an entry where that makes it smaller, a layer after the other: that takes memory as well."""
        bits = entry.identity.stored_bits
        if bits is None or entry.least_bytes >= entry.size_bytes:
            return
        for index in quantizable_layers(entry.cache):
            if StoredLayer.bytes_of(entry.cache[index], bits) is not None:
                layer = StoredLayer(entry.cache[index], bits)
                mx.eval(layer.arrays)
                entry.cache[index] = layer
        size = sum(map(kept_bytes, entry.cache))
        self.size_bytes += size - entry.size_bytes
        entry.size_bytes = entry.least_bytes = size
        entry.quantized, entry.exact = True, False
        self.quantizations += 1

    def _remove(self, keys: list[tuple[PrefixIdentity, bytes]]) -> None:
        for key in keys:
            self.size_bytes -= self._entries.pop(key).size_bytes
        self._listed = tuple(self._entries.values())


def boundaries(tokens: Sequence[int], ends: Callable[[], frozenset[int]]) -> tuple[int, ...]:
    """Return where the first and the last message of a conversation end, in tokens from its start.

    The first is the system prompt where there is one, which other conversations share; what follows the last may be
    rendered in another way once the answer has been given.

    Args:
        tokens: The conversation's.
        ends: Returns the tokens that end messages.
    """
    known = ends()
    found = [place for place, token in enumerate(tokens[:-2], 1) if token in known]
    return tuple(sorted({found[0], found[-1]})) if found else ()


def snapshot(cache: list[Any]) -> list[Any]:
    """Return a copy that later writes to the original do not change."""
    return copy.deepcopy(cache)


def _trimmed(entry: _Entry, tokens: int) -> list[Any]:
    cache = [each.plain() if isinstance(each, StoredLayer) else each for each in snapshot(entry.cache)]
    surplus = len(entry.tokens) // BYTES_PER_TOKEN - tokens
    if surplus:
        for each in cache:
            each.trim(surplus)
    return cache


def _savings(cache: list[Any], bits: int | None) -> int:
    """Return how many bytes less a cache takes once it is quantized."""
    if bits is None:
        return 0
    layers = (cache[index] for index in quantizable_layers(cache))
    sizes = ((each.nbytes, StoredLayer.bytes_of(each, bits)) for each in layers)
    saved: int = sum(size - stored for size, stored in sizes if stored is not None)
    return max(0, saved)


def _subsumes(entry: _Entry, other: _Entry) -> bool:
    """Whether every match of another entry is one of this entry, too."""
    akin = entry.identity.is_akin(other.identity) and entry.identity.shown.continues(other.identity.shown)
    if not akin or not entry.tokens.startswith(other.tokens):
        return False
    return entry.trimmable or len(entry.tokens) == len(other.tokens)


def pack(tokens: Sequence[int]) -> bytes:
    """Return tokens as bytes, four each."""
    return array("I", tokens).tobytes()


def _common_prefix(left: bytes, right: bytes) -> int:
    """Return the length of the common prefix of two packed sequences, tokens."""
    same, differs = 0, min(len(left), len(right)) // BYTES_PER_TOKEN + 1
    while differs - same > 1:
        middle = (same + differs) // 2
        if (
            left[same * BYTES_PER_TOKEN : middle * BYTES_PER_TOKEN]
            == right[same * BYTES_PER_TOKEN : middle * BYTES_PER_TOKEN]
        ):
            same = middle
        else:
            differs = middle
    return same
