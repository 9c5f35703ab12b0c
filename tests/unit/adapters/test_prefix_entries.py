"""The entries of the prefix cache: what is found, what makes room, what is dropped, and what other threads see."""

from typing import Any

import attrs
import mlx.core as mx
import pytest
from mlx_lm.models.cache import ArraysCache, KVCache
from mlx_vlm.models.cache import KVCache as VisionCache

from mlxk.adapters.mlx.engine.prefix_cache import (
    MAX_ENTRIES,
    MIN_SAVED_TOKENS,
    MediaIdentity,
    PrefixCache,
    PrefixIdentity,
    boundaries,
    pack,
)

pytestmark = pytest.mark.mlx
ANN, BEN = PrefixIdentity("model", "plain", "ann"), PrefixIdentity("model", "plain", "ben")
TOKENS = list(range(100, 200))
ROOM = 2**30


def kept(tokens: int) -> list[Any]:
    """Return a cache of one layer that keeps every token."""
    cache = KVCache()
    cache.update_and_fetch(mx.zeros((1, 1, tokens, 2)), mx.zeros((1, 1, tokens, 2)))
    return [cache]


def whole() -> list[Any]:
    """Return a cache of one layer that is used as it is, or not at all."""
    cache = ArraysCache(1)
    cache[0] = mx.zeros((1, 8))
    return [cache]


def test_a_prompt_that_is_computed_in_one_go_up_to_its_last_image_uses_nothing_that_ends_before() -> None:
    cache = PrefixCache(ROOM)
    first = attrs.evolve(ANN, media=MediaIdentity((("a",),), first_token=10, atomic_tokens=30))
    second = attrs.evolve(ANN, media=MediaIdentity((("a", "b"),), first_token=10, atomic_tokens=60))
    assert cache.put(first, TOKENS[:50], kept(50))
    assert cache.find(second, TOKENS).tokens == 0
    assert cache.find(first, TOKENS).tokens == 50
    assert cache.find(first, TOKENS[:29] + TOKENS[:40]).tokens == 0


def test_what_two_prompts_share_is_found_once_it_saves_enough() -> None:
    cache = PrefixCache(ROOM)
    assert cache.put(ANN, TOKENS[:50], kept(50))
    for shared, found in ((MIN_SAVED_TOKENS - 1, 0), (MIN_SAVED_TOKENS, MIN_SAVED_TOKENS), (40, 40), (50, 50)):
        match = cache.find(ANN, [*TOKENS[:shared], *range(1000, 1060)])
        assert (match.tokens, match.divergence) == (found, 0)
        assert match.cache is None if not found else match.cache is not None and match.cache[0].offset == found
    assert cache.find(ANN, TOKENS[:50]).tokens == 49  # the last token is computed
    assert cache.find(ANN, TOKENS[:3]).tokens == 2  # nearly all of a short one
    assert cache.find(BEN, TOKENS).tokens == 0
    assert cache.find(PrefixIdentity("model", "other", "ann"), TOKENS).tokens == 0


def test_a_cache_that_cannot_be_cut_says_where_a_snapshot_would_have_helped() -> None:
    cache = PrefixCache(ROOM)
    cache.put(ANN, TOKENS[:50], whole())
    match = cache.find(ANN, [*TOKENS[:30], 1])
    assert (match.cache, match.tokens, match.divergence) == (None, 0, 30)
    assert cache.find(ANN, [*TOKENS[: MIN_SAVED_TOKENS - 1], 1]).divergence == 0
    assert cache.find(ANN, TOKENS).tokens == 50
    assert cache.stops(match, (10, 40), whole()) == (10, 30, 40)
    assert cache.stops(match, (10, 40), kept(1)) == (30,)
    assert PrefixCache(0).stops(match, (10, 40), whole()) == ()


def test_a_longer_entry_stands_for_shorter_ones_of_its_beginning() -> None:
    cache = PrefixCache(ROOM)
    for tokens in (TOKENS[:20], TOKENS[:30], [1, 2, 3]):
        cache.put(ANN, tokens, kept(len(tokens)))
    cache.put(BEN, TOKENS[:20], kept(20))
    assert len(cache) == 3
    uncut = PrefixCache(ROOM)
    for length in (20, 30, 30):
        uncut.put(ANN, TOKENS[:length], whole())
    assert len(uncut) == 2
    assert uncut.usage(None) == (2, uncut.size_bytes)


def test_the_entry_used_longest_ago_makes_room() -> None:
    size = kept(20)[0].nbytes
    cache = PrefixCache(2 * size)
    one, two, three = ([start, *TOKENS[:19]] for start in (1, 2, 3))
    cache.put(ANN, one, kept(20))
    cache.put(ANN, two, kept(20))
    assert cache.find(ANN, [*one, 0]).tokens == 20
    cache.put(ANN, three, kept(20))
    assert (cache.size_bytes, cache.usage("ann")) == (2 * size, (2, 2 * size))
    assert [cache.find(ANN, [*tokens, 0]).tokens for tokens in (one, two, three)] == [20, 0, 20]
    assert [cache.covered(ANN, pack(tokens)) for tokens in (one, two, three)] == [20, 0, 20]
    cache.shrink(size)
    assert [cache.covered(ANN, pack(tokens)) for tokens in (one, two, three)] == [0, 0, 20]
    assert not PrefixCache(size - 1).put(ANN, one, kept(20))
    assert not cache.put(ANN, [], kept(1))


def numbers(layer: Any, tokens: int, size: int = 32) -> list[Any]:
    """Return a cache of one layer, of a class of its own, with random keys and values."""
    layer.update_and_fetch(*(mx.random.normal((1, 2, tokens, size)) for _ in range(2)))
    return [layer]


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("kind", [KVCache, VisionCache], ids=["mlx-lm", "mlx-vlm"])
def test_the_entry_used_longest_ago_is_quantized_first_and_found_in_its_usual_form(kind: Any, bits: int) -> None:
    lossy = attrs.evolve(ANN, stored_bits=bits)
    prompts = [[start, *TOKENS[:99]] for start in (1, 2, 3)]
    caches = [numbers(kind(), 100) for _ in prompts]
    size = caches[0][0].nbytes
    seen: list[Any] = []
    cache = PrefixCache(3 * size, lambda identity, tokens, kept: seen.append(kept))
    for tokens, each in zip(prompts, caches, strict=True):
        cache.put_snapshot(lossy, tokens, each)
    cache.find(lossy, [*prompts[0], 0])
    cache.shrink(3 * size - 1)
    assert (len(cache), cache.quantizations, cache.usage(None, quantized=True)[0]) == (3, 1, 1)
    matches = [cache.find(lossy, [*tokens[:80], 0]) for tokens in prompts]
    assert [match.exact for match in matches] == [True, False, True]
    assert cache.quantized_hits == 1
    for match, [before] in zip(matches, caches, strict=True):
        [found] = match.cache or []
        assert (type(found), found.offset, match.tokens) == (kind, 80, 80)
        far = mx.abs(found.keys[:, :, :80] - before.keys[:, :, :80]).max().item()
        assert far < (0.03 if bits == 8 else 0.4)
        assert found.update_and_fetch(*(mx.zeros((1, 2, 1, 32)),) * 2)[0].shape[2] == 81
    assert [kept[0].keys.shape for kept in seen] == [(1, 2, 256, 32)] * 3  # as they were offered
    cache.shrink(size)
    assert (len(cache), cache.quantizations) == (3, 3) if bits == 4 else (len(cache) >= 2, True)
    assert cache.size_bytes == sum(entry.size_bytes for entry in cache._entries.values()) <= size


def test_what_cannot_be_quantized_or_would_go_anyway_is_not() -> None:
    lossy = attrs.evolve(ANN, stored_bits=8)
    for layer in (numbers(KVCache(), 50, size=24), numbers(KVCache(), 50, size=2), whole()):
        cache = PrefixCache(ROOM)
        cache.put(lossy, TOKENS[:50], layer)
        cache.shrink(cache.size_bytes - 1)
        assert (len(cache), cache.size_bytes, cache.quantizations) == (0, 0, 0)
    cache = PrefixCache(ROOM)
    for start in (1, 2, 3):
        cache.put(lossy, [start, *TOKENS[:99]], numbers(KVCache(), 100))
    cache.shrink(cache.size_bytes // 12)
    assert (len(cache), cache.quantizations) == (2, 2)
    cache.shrink(0)
    assert (len(cache), cache.quantizations) == (0, 2)


def test_what_continues_a_quantized_entry_is_offered_to_nobody() -> None:
    lossy = attrs.evolve(ANN, stored_bits=8)
    offered: list[int] = []
    cache = PrefixCache(ROOM, lambda identity, tokens, kept: offered.append(len(tokens) // 4))
    cache.put_snapshot(lossy, TOKENS[:50], numbers(KVCache(), 50))
    cache.shrink(cache.size_bytes - 1)
    exact = cache.find(lossy, TOKENS).exact
    cache.put_snapshot(lossy, TOKENS[:60], numbers(KVCache(), 60), exact=exact)
    assert (exact, cache.find(lossy, TOKENS).exact, offered) == (False, False, [50])
    small = PrefixCache(numbers(KVCache(), 50)[0].nbytes - 1, lambda identity, tokens, kept: offered.append(0))
    small.put_snapshot(lossy, TOKENS[:50], numbers(KVCache(), 50))
    assert (len(small), small.quantizations, offered) == (1, 1, [50])  # a file of it could not be read


def test_there_are_no_more_entries_than_can_be_compared() -> None:
    cache = PrefixCache(ROOM)
    for number in range(MAX_ENTRIES + 3):
        cache.put(ANN, [number, *TOKENS[:19]], whole())
    assert len(cache) == MAX_ENTRIES
    assert [cache.covered(ANN, pack([number, *TOKENS[:19]])) for number in (2, 3)] == [0, 20]


def test_what_is_dropped_is_gone_for_every_thread() -> None:
    cache = PrefixCache(ROOM)
    other = PrefixIdentity("other", "plain", "ann")
    for identity in (ANN, BEN, other):
        cache.put(identity, TOKENS[:20], kept(20))
    cache.forget("other")
    assert [cache.covered(each, pack(TOKENS)) for each in (ANN, BEN, other)] == [20, 20, 0]
    cache.forget_tenant("ann")
    assert [cache.covered(each, pack(TOKENS)) for each in (ANN, BEN)] == [0, 20]
    assert cache.usage("ann") == (0, 0)
    cache.forget_tenant(None)
    assert (len(cache), cache.size_bytes, cache.covered(BEN, pack(TOKENS))) == (0, 0, 0)


def test_the_first_and_the_last_message_end_before_the_answer() -> None:
    assert boundaries([1, 9, 2, 9, 3, 9, 4, 5], frozenset({9})) == (2, 6)
    assert boundaries([1, 9, 2, 3], frozenset({9})) == (2,)
    assert boundaries([1, 2, 9, 3], frozenset({9})) == ()
    assert boundaries([], frozenset({9})) == ()
