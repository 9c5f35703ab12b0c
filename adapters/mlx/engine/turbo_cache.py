"""KV caches in TurboQuant's form: a random rotation, and the nearest of a few numbers for each part of a vector.

The method is mlx-vlm's: rotations and numbers are those of its codec, and what is kept is its states to the bit. Its
caches give states that only its attention reads; these give keys and values again, a layer at a time, so that every
network takes them as they are. Packing is ours: without a GPU of Apple mlx-vlm's takes a step for each number of a
vector.

A vector is kept as its length, in 16 bits, and for each of its parts, after the rotation, the index of the nearest
number, packed into words of 32 bits. What is appended is quantized at once, so that what is read does not depend on how
a prompt was divided.

Shapes: B sequences, H heads, T tokens, D numbers of a vector, W words.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Self

import attrs
import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import KVCache

from mlxk.adapters.mlx.engine.quantized_cache import PackedBatch, first_tokens, size_bytes, with_tokens

_SEEDS = (0, 1)
"""Of the rotations of keys and of values; mlx-vlm's."""

_LEAST_LENGTH = 1e-6

_MOST_LENGTH = 65504.0
"""The largest number of 16 bits."""

_READING_BYTES = 6
"""What a number takes while its layer is read: 32 bits before the last rotation, 16 after it; as measured."""


@attrs.frozen(eq=False)
class _Codec:
    """Quantizes vectors of one size to so many bits a number."""

    size: int
    bits: int
    rotated: Callable[[mx.array], mx.array]
    rotated_back: Callable[[mx.array], mx.array]
    midpoints: mx.array
    """Between neighbouring numbers, ascending."""
    numbers: mx.array
    """Those that a unit of packed bits stands for, shape [units, numbers of one]."""

    def packed(self, vectors: mx.array) -> tuple[mx.array, mx.array]:
        """Return lengths, shape [B, H, T, 1], and packed indices, shape [B, H, T, W], of vectors [B, H, T, D]."""
        wide = vectors.astype(mx.float32)
        lengths = mx.linalg.norm(wide, axis=-1, keepdims=True)
        rotated = self.rotated(wide / mx.maximum(lengths, _LEAST_LENGTH))
        indices = (rotated[..., None] > self.midpoints).sum(-1).astype(mx.uint32)
        bits = ((indices[..., None] >> mx.arange(self.bits, dtype=mx.uint32)) & 1).flatten(-2)
        bits = mx.pad(bits, [(0, 0)] * 3 + [(0, -bits.shape[-1] % 32)])
        words = (bits.reshape(*bits.shape[:-1], -1, 32) << mx.arange(32, dtype=mx.uint32)).sum(-1)
        return mx.minimum(lengths, _MOST_LENGTH).astype(mx.float16), words.astype(mx.uint32)

    def read(self, stored: tuple[mx.array, mx.array], kind: mx.Dtype) -> mx.array:
        """Return the vectors again, shape [B, H, T, D]."""
        lengths, words = stored
        units = words.view(mx.uint8)
        if self.bits == 3:
            units = _in_units_of_12_bits(units, self.size)
        found = mx.take(self.numbers, units, axis=0).flatten(-2)[..., : self.size]
        return (self.rotated_back(found) * lengths.astype(mx.float32)).astype(kind)


def _in_units_of_12_bits(octets: mx.array, size: int) -> mx.array:
    """Return the units, shape [B, H, T, *], in which so many numbers of 3 bits are packed."""
    needed = -(-size // 8) * 3
    octets = mx.pad(octets, [(0, 0)] * 3 + [(0, max(0, needed - octets.shape[-1]))])[..., :needed]
    first, middle, last = mx.split(octets.reshape(*octets.shape[:-1], -1, 3).astype(mx.uint16), 3, axis=-1)
    return mx.concatenate([first | (middle & 15) << 8, middle >> 4 | last << 4], axis=-1).flatten(-2)


@functools.cache
def _codec(size: int, bits: int, seed: int) -> _Codec:
    from mlx_vlm.turboquant import _TurboQuantMSECodec

    theirs = _TurboQuantMSECodec(size, bits, seed)
    unit_bits = 12 if bits == 3 else 8
    places = np.arange(unit_bits // bits, dtype=np.uint32) * bits
    indices = (np.arange(2**unit_bits, dtype=np.uint32)[:, None] >> places) & (2**bits - 1)
    numbers = mx.array(np.array(theirs.codebook)[indices])
    # They are kept for all threads, and what one thread has begun no other can finish.
    mx.eval(numbers, theirs._midpoints, theirs.rotation, theirs.rotation_t, *([theirs.signs] if theirs.use_rht else []))
    return _Codec(size, bits, theirs._rotate_forward, theirs._rotate_inverse, theirs._midpoints, numbers)


def import_codec() -> None:
    """Import mlx-vlm's codec, which takes a second or two, on a thread for which no other answer waits."""
    import mlx_vlm.turboquant  # noqa: F401


def _codecs(bits: float, sizes: tuple[int, int]) -> list[_Codec]:
    """Return those of keys and of values."""
    each_bits = (math.floor(bits), math.ceil(bits))
    return [_codec(*each) for each in zip(sizes, each_bits, _SEEDS, strict=True)]


def _packed(bits: float, keys: mx.array, values: mx.array) -> Any:  # noqa: ANN401 - two tuples of two arrays
    codecs = _codecs(bits, (keys.shape[-1], values.shape[-1]))
    return tuple(codec.packed(each) for codec, each in zip(codecs, (keys, values), strict=True))


def _read(bits: float, sizes: tuple[int, int], stored: Any, kind: str) -> tuple[mx.array, mx.array]:  # noqa: ANN401
    """Return keys and values again, in numbers of a kind of MLX."""
    numbers = getattr(mx, kind)
    keys, values = (codec.read(each, numbers) for codec, each in zip(_codecs(bits, sizes), stored, strict=True))
    return keys, values


def _name(kind: mx.Dtype) -> str:
    """Return the name of a kind of numbers; MLX's own object cannot be copied."""
    return str(kind).removeprefix("mlx.core.")


class TurboCache(KVCache):  # type: ignore[misc]
    """The keys and values of one sequence.

    Args:
        bits: Of a number: 2, 3 or 4; one half more is of the values only.
    """

    keys: Any
    values: Any
    offset: int

    def __init__(self, bits: float) -> None:
        super().__init__()
        self.kept_bits = bits  # attention takes a cache with ``bits`` for one of mlx-lm's
        self.sizes = (0, 0)
        self.kind = "float32"

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Append keys and values, shape [B, H, T, D], and return all, as they are after quantization."""
        self.sizes, self.kind = (keys.shape[-1], values.shape[-1]), _name(keys.dtype)
        added = _packed(self.kept_bits, keys, values)
        self.keys, self.values = with_tokens((self.keys, self.values), self.offset, added)
        self.offset += keys.shape[2]
        return _read(self.kept_bits, self.sizes, self.packed_state(), self.kind)

    def packed_state(self) -> Any:  # noqa: ANN401 - two tuples of two arrays
        """Return all keys and values as they are kept."""
        return first_tokens((self.keys, self.values), self.offset)

    @property
    def state(self) -> tuple[Any, ...]:
        """Its keys and values, read: some networks take those of another layer from here."""
        if self.keys is None:
            return None, None, self.offset
        return *_read(self.kept_bits, self.sizes, self.packed_state(), self.kind), self.offset

    @property
    def kept_state(self) -> tuple[Any, ...]:
        """All that makes it up, as it is kept."""
        return self.keys, self.values, self.offset, self.kept_bits, self.sizes, self.kind

    @classmethod
    def from_state(cls, state: Sequence[Any]) -> Self:
        """Build it of what was kept."""
        keys, values, offset, bits, sizes, kind = state
        cache = cls(bits)
        cache.keys, cache.values, cache.offset = keys, values, offset
        cache.sizes, cache.kind = tuple(sizes), kind
        return cache

    @property
    def nbytes(self) -> int:
        """Size of all arrays."""
        return size_bytes(self)

    @property
    def reading_bytes(self) -> int:
        """What its keys and values take while they are read."""
        return _reading_bytes(self)

    @staticmethod
    def merge(caches: Sequence[Any]) -> Any:  # noqa: ANN401 - a BatchTurboCache
        """Return a batch of caches of one kind, at least one."""
        return BatchTurboCache.merge(caches)


class BatchTurboCache(PackedBatch):
    """The keys and values of the sequences of a batch.

    Args:
        left_padding: Tokens of padding, one number a sequence.
        bits: See ``TurboCache``.
    """

    def __init__(self, left_padding: list[int], bits: float) -> None:
        super().__init__(left_padding)
        self.kept_bits = bits
        self.sizes = (0, 0)
        self.kind = "float32"

    @classmethod
    def _empty_like(cls, cache: Any) -> Self:  # noqa: ANN401
        batch = cls([0], cache.kept_bits)
        batch._adopt(cache)
        return batch

    def _pack(self, keys: mx.array, values: mx.array) -> Any:  # noqa: ANN401
        self.sizes, self.kind = (keys.shape[-1], values.shape[-1]), _name(keys.dtype)
        return _packed(self.kept_bits, keys, values)

    def _fetched(self) -> tuple[mx.array, mx.array]:
        return _read(self.kept_bits, self.sizes, self.packed_state(), self.kind)

    def _adopt(self, other: Any) -> None:  # noqa: ANN401
        self.sizes, self.kind = other.sizes, other.kind

    def _one(self) -> TurboCache:
        cache = TurboCache(self.kept_bits)
        cache.sizes, cache.kind = self.sizes, self.kind
        return cache

    @property
    def kept_state(self) -> tuple[Any, ...]:
        """All its arrays, as they are kept."""
        return self.keys, self.values, self.offset, self.left_padding

    @property
    def reading_bytes(self) -> int:
        """What its keys and values take while they are read, padding included."""
        return _reading_bytes(self)


def _reading_bytes(cache: TurboCache | BatchTurboCache) -> int:
    if cache.keys is None:
        return 0
    lengths: mx.array = cache.keys[0]
    return lengths.size * sum(cache.sizes) * _READING_BYTES
