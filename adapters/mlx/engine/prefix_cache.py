"""The prefix cache: KV caches of earlier prompts and completions, reused by prompts that begin with the same tokens.

An entry holds the KV cache of a token sequence; model, kind of cache and tenant separate the entries. Placeholder
tokens of images and audio match only where their media are equal. A prompt uses the entry with the longest common
prefix: a *shorter* entry unchanged, a *longer* or *equal* one trimmed to the common prefix, always without the prompt's
last token. Caches that cannot be trimmed (a recurrent state, a sliding window that has moved) serve as shorter entries
only. For these, snapshots are taken at message ends, since a later prompt may continue there differently, and at the
divergence that ``find`` reports. The cache is limited in bytes and evicts the least recently used entry first. Copies
share memory until one of them is written to.

With ``stored_bits``, entries are quantized, the least recently used first, before any is evicted; entries that must be
evicted anyway are not quantized. A copy for a prompt is dequantized, so that models and batches see the usual kind of
cache. A cache computed from such a copy is *inexact*: it stays in memory and is never passed to the disk tier.
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
    kept_state,
    layer_bytes,
    quantizable_layers,
)

MIN_SAVED_TOKENS = 16
"""Tokens a match or a snapshot must save; computing fewer costs less than the copy."""

MAX_ENTRIES = 256
"""Every prompt is compared with each entry."""

BYTES_PER_TOKEN = 4


@attrs.frozen
class MediaIdentity:
    """The images and audio behind the placeholder tokens of a prompt."""

    digests: tuple[tuple[str, ...], ...] = ()
    """One tuple for each kind of media, in prompt order."""
    first_token: int = 0
    """Index of the first placeholder token; 0 when it is unknown, or without media."""
    atomic_tokens: int = 0
    """Tokens up to the last placeholder, which must be computed in one pass; 0 where the cache may hold any part."""
    reusable: bool = True
    """Whether another prompt can use a cache of this one."""

    def __bool__(self) -> bool:
        return any(self.digests)

    def continues(self, other: "MediaIdentity") -> bool:
        """Whether it begins with the media of another prompt."""
        pairs = itertools.zip_longest(self.digests, other.digests, fillvalue=())
        return all(mine[: len(theirs)] == theirs for mine, theirs in pairs)

    def reusable_tokens(self, other: "MediaIdentity", tokens: int) -> int:
        """Return how many tokens of a common prefix another prompt can reuse from a cache of this one.

        Where one prompt begins with the media of the other, equal tokens mean equal media: media of a kind keep their
        order, and each has a fixed number of placeholders. Otherwise the prefix ends at the first placeholder.
        """
        if bool(self) is not bool(other) or not (self.continues(other) or other.continues(self)):
            tokens = min(tokens, *(each.first_token for each in (self, other) if each))
        return tokens if tokens >= other.atomic_tokens else 0


@attrs.frozen
class PrefixIdentity:
    """What two prompts with a common token prefix must share for one to reuse the cache of the other."""

    model: str
    """The loaded model: its files with their state, and its adapter."""
    kind: str
    """The kind of cache; see ``cache_kind``."""
    tenant: str
    """Owner of the prompt; see ``GenerationRequest``."""
    media: MediaIdentity = MediaIdentity()
    """The media behind the placeholder tokens; a prefix is reused only as far as they are equal."""
    stored_bits: int | None = None
    """Bits of the stored keys and values once memory is short; None never quantizes them."""

    def equals_except_media(self, other: "PrefixIdentity") -> bool:
        """Whether every other field is equal."""
        mine = (self.model, self.kind, self.tenant, self.stored_bits)
        return mine == (other.model, other.kind, other.tenant, other.stored_bits)

    def reusable_tokens(self, other: "PrefixIdentity", tokens: int) -> int:
        """Return how many tokens of a common prefix another prompt can reuse from a cache of this one."""
        return self.media.reusable_tokens(other.media, tokens) if self.equals_except_media(other) else 0


OnSnapshot = Callable[[PrefixIdentity, bytes, list[Any]], None] | None
"""Callback for each stored snapshot of a prompt, on the owner thread: identity, packed tokens, and cache."""


@attrs.define(eq=False)
class _Entry:
    identity: PrefixIdentity
    tokens: bytes
    """Four bytes a token, so that a comparison is one memory comparison."""
    cache: list[Any]
    """One object a layer, owned by the entry; quantization replaces layers in this list."""
    size_bytes: int
    least_bytes: int
    """Size after quantization; ``size_bytes`` where ``stored_bits`` is None or no layer can be quantized."""
    trimmable: bool
    exact: bool
    """Whether the cache was computed from tokens alone, never from a dequantized copy."""
    quantized: bool = False

    def can_serve(self, tokens: int) -> bool:
        """Whether a prompt that shares so many tokens with this entry can use the entry."""
        return self.trimmable or tokens == len(self.tokens) // BYTES_PER_TOKEN


@attrs.frozen
class PrefixMatch:
    """The result of a lookup."""

    cache: list[Any] | None
    """A copy for the caller; None without a match."""
    tokens: int
    """Prompt tokens in ``cache``."""
    divergence: int
    """Position at which a snapshot would have matched more, in tokens from the start; 0 for none."""
    exact: bool = True
    """False when ``cache`` was quantized, or computed from a quantized cache."""


NO_MATCH = PrefixMatch(None, 0, 0)


class PrefixCache:
    """The cache; used on the owner thread only.

    Args:
        max_bytes: Limit of all entries together; 0 disables the cache.
        on_snapshot: Called with each stored snapshot of a prompt. Without it, prompts get snapshots only where this
            cache itself needs them.
    """

    def __init__(self, max_bytes: int, on_snapshot: OnSnapshot = None) -> None:
        self.max_bytes = max_bytes
        self._on_snapshot = on_snapshot
        self._entries: OrderedDict[tuple[PrefixIdentity, bytes], _Entry] = OrderedDict()
        self._entries_copy: tuple[_Entry, ...] = ()
        """Copy of the entries that other threads may read."""
        self.size_bytes = 0
        self.quantizations = self.quantized_hits = 0
        """Entries quantized since the start, and prompts that used one."""

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, identity: PrefixIdentity, tokens: Sequence[int]) -> PrefixMatch:
        """Find the entry with the longest usable prefix of a prompt.

        Args:
            identity: Identity of the prompt.
            tokens: The prompt, at least one token.
        """
        packed = pack(tokens)
        usable = len(tokens) - 1
        best: _Entry | None = None
        matched = divergence = 0
        for entry in self._entries.values():
            if not entry.identity.equals_except_media(identity):
                continue
            shared = min(entry.identity.reusable_tokens(identity, _common_prefix(entry.tokens, packed)), usable)
            if entry.can_serve(shared):
                if shared > matched:
                    best, matched = entry, shared
            else:
                divergence = max(divergence, shared)
        divergence = divergence if divergence - matched >= MIN_SAVED_TOKENS else 0
        if best is None or matched < min(MIN_SAVED_TOKENS, usable):
            return PrefixMatch(None, 0, divergence)
        self._entries.move_to_end((best.identity, best.tokens))
        self.quantized_hits += best.quantized
        return PrefixMatch(_trimmed(best, matched), matched, divergence, best.exact)

    def covered(self, identity: PrefixIdentity, packed: bytes) -> int:
        """Return how many tokens of a packed prompt an entry holds. On any thread, so the answer may be outdated."""
        entries = [entry for entry in self._entries_copy if entry.identity.equals_except_media(identity)]
        shared = (
            (entry, entry.identity.reusable_tokens(identity, _common_prefix(entry.tokens, packed))) for entry in entries
        )
        return max((tokens for entry, tokens in shared if entry.can_serve(tokens)), default=0)

    def stops(self, match: PrefixMatch, boundaries: Sequence[int], cache: list[Any]) -> tuple[int, ...]:
        """Return the positions at which to take snapshots of a prompt, ascending, in tokens from its start.

        Args:
            match: Result of ``find`` for the prompt.
            boundaries: Ends of the prompt's messages.
            cache: The prompt's cache before its prefill.
        """
        if not self.max_bytes:
            return ()
        # A longer entry of layers that keep every token is trimmed to any boundary.
        needed = self._on_snapshot is not None or not all(isinstance(each, (KVCache, QuantizedCache)) for each in cache)
        stops = {*(boundaries if needed else ()), match.divergence}
        return tuple(sorted(stop for stop in stops if stop > match.tokens))

    def put_snapshot(
        self, identity: PrefixIdentity, tokens: Sequence[int], cache: list[Any], *, exact: bool = True
    ) -> None:
        """Store a snapshot of a prompt and report it to ``on_snapshot``; see ``put``.

        Not reported are snapshots with media, inexact ones, and those that fit the limit only once quantized.
        """
        reportable = exact and not identity.media and sum(map(layer_bytes, cache)) <= self.max_bytes
        stored = self.put(identity, tokens, cache, exact=exact)
        if stored and reportable and self._on_snapshot is not None:
            self._on_snapshot(identity, pack(tokens), cache)

    def put(self, identity: PrefixIdentity, tokens: Sequence[int], cache: list[Any], *, exact: bool = True) -> bool:
        """Store a cache that is not written to any more, and quantize or evict entries beyond the limit.

        Args:
            identity: Identity of the prompt.
            tokens: The tokens in the cache.
            cache: One object a layer.
            exact: Whether it was computed from tokens alone, or from an exact match.

        Returns:
            Whether it was stored. Caches larger than the limit, and those that no other prompt can use, are not.
        """
        size = sum(map(layer_bytes, cache))
        least = size - _savings(cache, identity.stored_bits)
        if not tokens or least > self.max_bytes or not identity.media.reusable:
            return False
        mx.async_eval([kept_state(each) for each in cache])  # type: ignore[no-untyped-call]
        trimmable = all(map(is_trimmable, cache))
        entry = _Entry(identity, pack(tokens), list(cache), size, least, trimmable, exact)
        self._remove([key for key, other in self._entries.items() if _subsumes(entry, other)])
        self._entries[entry.identity, entry.tokens] = entry
        self.size_bytes += size
        self._entries_copy = tuple(self._entries.values())
        self.shrink(self.max_bytes)
        return True

    def shrink(self, max_bytes: int) -> None:
        """Evict entries that would not fit even quantized, then quantize the least recently used ones.

        Args:
            max_bytes: Size to reach, of all entries together.
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

    def usage(self, tenant: str | None, *, quantized: bool = False) -> tuple[int, int]:
        """Return the number of entries and their size in bytes.

        Args:
            tenant: Owner of the entries; None for all.
            quantized: Whether to count quantized entries only.
        """
        entries = [entry for entry in self._entries.values() if tenant in (None, entry.identity.tenant)]
        sizes = [entry.size_bytes for entry in entries if entry.quantized or not quantized]
        return len(sizes), sum(sizes)

    def _quantize(self, entry: _Entry) -> None:
        """Quantize an entry where that makes it smaller; layer by layer, since quantizing itself takes memory."""
        bits = entry.identity.stored_bits
        if bits is None or entry.least_bytes >= entry.size_bytes:
            return
        for index in quantizable_layers(entry.cache):
            if StoredLayer.bytes_of(entry.cache[index], bits) is not None:
                layer = StoredLayer(entry.cache[index], bits)
                mx.eval(layer.arrays)
                entry.cache[index] = layer
        size = sum(map(layer_bytes, entry.cache))
        self.size_bytes += size - entry.size_bytes
        entry.size_bytes = entry.least_bytes = size
        entry.quantized, entry.exact = True, False
        self.quantizations += 1

    def _remove(self, keys: list[tuple[PrefixIdentity, bytes]]) -> None:
        for key in keys:
            self.size_bytes -= self._entries.pop(key).size_bytes
        self._entries_copy = tuple(self._entries.values())


def boundaries(tokens: Sequence[int], message_ends: frozenset[int]) -> tuple[int, ...]:
    """Return where the first and the last message of a conversation end, in tokens from its start.

    The first message is often a system prompt that other conversations share; the tokens after the last message may be
    rendered differently once the answer has been given.

    Args:
        tokens: The rendered conversation.
        message_ends: The tokens that end a message.
    """
    found = [position for position, token in enumerate(tokens[:-2], 1) if token in message_ends]
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
    """Return by how many bytes quantization shrinks a cache."""
    if bits is None:
        return 0
    layers = (cache[index] for index in quantizable_layers(cache))
    sizes = ((each.nbytes, StoredLayer.bytes_of(each, bits)) for each in layers)
    saved: int = sum(size - stored for size, stored in sizes if stored is not None)
    return max(0, saved)


def _subsumes(entry: _Entry, other: _Entry) -> bool:
    """Whether this entry serves every prompt that another one serves."""
    if not entry.identity.equals_except_media(other.identity) or not entry.tokens.startswith(other.tokens):
        return False
    if not entry.identity.media.continues(other.identity.media):
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
