"""KV caches in TurboQuant's form: each vector is rotated at random, and each coordinate rounded to a codebook.

The method is mlx-vlm's: rotations and codebooks come from its codec, and the stored states are equal to its states bit
by bit. Only mlx-vlm's own attention can read its caches; these dequantize keys and values, one layer at a time, so that
every network can. Packing is ours: without an Apple GPU mlx-vlm packs the numbers of a vector one by one.

A vector is stored as its length, in 16 bits, and the codebook index of each rotated coordinate, packed into words of 32
bits. Appended tokens are quantized at once, so the result does not depend on how a prompt was divided into chunks.

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
"""Random seeds of the rotations of keys and of values, as in mlx-vlm."""

_LEAST_LENGTH = 1e-6

_MOST_LENGTH = 65504.0
"""The largest float16."""

_READING_BYTES = 6
"""Memory for each number of a layer being dequantized: 32 bits before the last rotation, 16 after it; measured."""


@attrs.frozen(eq=False)
class _Codec:
    """Quantizes vectors of one size to so many bits a number."""

    size: int
    bits: int
    rotated: Callable[[mx.array], mx.array]
    rotated_back: Callable[[mx.array], mx.array]
    midpoints: mx.array
    """Bounds between neighbouring codebook numbers, ascending."""
    numbers: mx.array
    """The codebook numbers that each value of a packed unit decodes to, shape [values, numbers a unit]."""

    def pack(self, vectors: mx.array) -> tuple[mx.array, mx.array]:
        """Return lengths, shape [B, H, T, 1], and packed indices, shape [B, H, T, W], of vectors [B, H, T, D]."""
        wide = vectors.astype(mx.float32)
        lengths = mx.linalg.norm(wide, axis=-1, keepdims=True)
        rotated = self.rotated(wide / mx.maximum(lengths, _LEAST_LENGTH))
        indices = (rotated[..., None] > self.midpoints).sum(-1).astype(mx.uint32)
        bits = ((indices[..., None] >> mx.arange(self.bits, dtype=mx.uint32)) & 1).flatten(-2)
        bits = mx.pad(bits, [(0, 0)] * 3 + [(0, -bits.shape[-1] % 32)])
        words = (bits.reshape(*bits.shape[:-1], -1, 32) << mx.arange(32, dtype=mx.uint32)).sum(-1)
        return mx.minimum(lengths, _MOST_LENGTH).astype(mx.float16), words.astype(mx.uint32)

    def unpack(self, stored: tuple[mx.array, mx.array], dtype: mx.Dtype) -> mx.array:
        """Return the dequantized vectors, shape [B, H, T, D]."""
        lengths, words = stored
        units = words.view(mx.uint8)
        if self.bits == 3:
            units = _in_units_of_12_bits(units, self.size)
        rotated = mx.take(self.numbers, units, axis=0).flatten(-2)[..., : self.size]
        return (self.rotated_back(rotated) * lengths.astype(mx.float32)).astype(dtype)


def _in_units_of_12_bits(octets: mx.array, size: int) -> mx.array:
    """Regroup bytes into units of 12 bits, four 3-bit indices each, for vectors of ``size`` numbers; [B, H, T, *]."""
    needed = -(-size // 8) * 3
    octets = mx.pad(octets, [(0, 0)] * 3 + [(0, max(0, needed - octets.shape[-1]))])[..., :needed]
    first, middle, last = mx.split(octets.reshape(*octets.shape[:-1], -1, 3).astype(mx.uint16), 3, axis=-1)
    return mx.concatenate([first | (middle & 15) << 8, middle >> 4 | last << 4], axis=-1).flatten(-2)


@functools.cache
def _codec(size: int, bits: int, seed: int) -> _Codec:
    from mlx_vlm.turboquant import _TurboQuantMSECodec

    codec = _TurboQuantMSECodec(size, bits, seed)
    unit_bits = 12 if bits == 3 else 8
    places = np.arange(unit_bits // bits, dtype=np.uint32) * bits
    indices = (np.arange(2**unit_bits, dtype=np.uint32)[:, None] >> places) & (2**bits - 1)
    numbers = mx.array(np.array(codec.codebook)[indices])
    # Evaluated now: the codec is shared by all threads, and a thread cannot evaluate the lazy arrays of another.
    mx.eval(numbers, codec._midpoints, codec.rotation, codec.rotation_t, *([codec.signs] if codec.use_rht else []))
    return _Codec(size, bits, codec._rotate_forward, codec._rotate_inverse, codec._midpoints, numbers)


def import_codec() -> None:
    """Import mlx-vlm's codec, which takes a second or two; called by the request's thread, not the owner thread."""
    import mlx_vlm.turboquant  # noqa: F401


def _codecs(bits: float, sizes: tuple[int, int]) -> list[_Codec]:
    """Return the codec of the keys and the codec of the values."""
    bits_of_each = (math.floor(bits), math.ceil(bits))
    return [_codec(*each) for each in zip(sizes, bits_of_each, _SEEDS, strict=True)]


def _pack(bits: float, keys: mx.array, values: mx.array) -> Any:  # noqa: ANN401 - two tuples of two arrays
    codecs = _codecs(bits, (keys.shape[-1], values.shape[-1]))
    return tuple(codec.pack(each) for codec, each in zip(codecs, (keys, values), strict=True))


def _unpack(bits: float, sizes: tuple[int, int], stored: Any, kind: str) -> tuple[mx.array, mx.array]:  # noqa: ANN401
    """Return dequantized keys and values; ``kind`` names their dtype."""
    dtype = getattr(mx, kind)
    keys, values = (codec.unpack(each, dtype) for codec, each in zip(_codecs(bits, sizes), stored, strict=True))
    return keys, values


def _name(dtype: mx.Dtype) -> str:
    """Return the name of a dtype, since MLX's own object cannot be copied."""
    return str(dtype).removeprefix("mlx.core.")


class TurboCache(KVCache):  # type: ignore[misc]
    """The keys and values of one sequence.

    Args:
        bits: Bits a number: 2, 3 or 4; with a half, such as 3.5, values have one bit more than keys.
    """

    keys: Any
    values: Any
    offset: int

    def __init__(self, bits: float) -> None:
        super().__init__()
        self.kept_bits = bits  # not ``bits``, by which mlx-lm's attention recognizes its own quantized caches
        self.sizes = (0, 0)
        self.kind = "float32"

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Append keys and values, shape [B, H, T, D], and return all of both, dequantized."""
        self.sizes, self.kind = (keys.shape[-1], values.shape[-1]), _name(keys.dtype)
        added = _pack(self.kept_bits, keys, values)
        self.keys, self.values = with_tokens((self.keys, self.values), self.offset, added)
        self.offset += keys.shape[2]
        return _unpack(self.kept_bits, self.sizes, self.packed_state(), self.kind)

    def packed_state(self) -> Any:  # noqa: ANN401 - two tuples of two arrays
        """Return the packed keys and values of all tokens."""
        return first_tokens((self.keys, self.values), self.offset)

    @property
    def state(self) -> tuple[Any, ...]:
        """The dequantized keys and values, which some networks read from another layer, and the offset."""
        if self.keys is None:
            return None, None, self.offset
        return *_unpack(self.kept_bits, self.sizes, self.packed_state(), self.kind), self.offset

    @property
    def kept_state(self) -> tuple[Any, ...]:
        """The packed arrays and all settings; ``from_state`` takes them."""
        return self.keys, self.values, self.offset, self.kept_bits, self.sizes, self.kind

    @classmethod
    def from_state(cls, state: Sequence[Any]) -> Self:
        """Build a cache from its ``kept_state``."""
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
        """Memory of the dequantized keys and values."""
        return _reading_bytes(self)

    @staticmethod
    def merge(caches: Sequence[Any]) -> Any:  # noqa: ANN401 - a BatchTurboCache
        """Return a batch of caches, at least one, all with the same bits."""
        return BatchTurboCache.merge(caches)


class BatchTurboCache(PackedBatch):
    """The keys and values of a batch of sequences.

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
        return _pack(self.kept_bits, keys, values)

    def _fetched(self) -> tuple[mx.array, mx.array]:
        return _unpack(self.kept_bits, self.sizes, self.packed_state(), self.kind)

    def _adopt(self, other: Any) -> None:  # noqa: ANN401
        self.sizes, self.kind = other.sizes, other.kind

    def _empty_single(self) -> TurboCache:
        cache = TurboCache(self.kept_bits)
        cache.sizes, cache.kind = self.sizes, self.kind
        return cache

    @property
    def kept_state(self) -> tuple[Any, ...]:
        """All its arrays, packed."""
        return self.keys, self.values, self.offset, self.left_padding

    @property
    def reading_bytes(self) -> int:
        """Memory of the dequantized keys and values, padding included."""
        return _reading_bytes(self)


def _reading_bytes(cache: TurboCache | BatchTurboCache) -> int:
    if cache.keys is None:
        return 0
    lengths: mx.array = cache.keys[0]
    return lengths.size * sum(cache.sizes) * _READING_BYTES
