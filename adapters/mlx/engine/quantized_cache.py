"""Quantized KV caches that share a batch: mlx-lm has one for a single sequence, and none that is merged.

Keys and values are three arrays each: packed numbers, scales and biases. In a batch they are padded on the left, as in
mlx-lm's ``BatchKVCache``, whose positions and masks are used as they are; what is padding is masked and never read.

Shapes: B sequences, H heads, T tokens; the last axis depends on the array.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Self

import mlx.core as mx
from mlx.utils import tree_map
from mlx_lm.models.cache import BatchKVCache, QuantizedKVCache

from mlxk.domain.errors import CapabilityError

_GROUPS = (64, 32)
"""Numbers that share a scale where no number is asked for; the first that divides a head is used."""

_STEP = 256
"""Tokens by which a batch's arrays grow."""


def group_for(sizes: Iterable[int], wanted: int | None) -> int:
    """Return how many numbers share a scale, for keys and values of some sizes.

    Args:
        sizes: Numbers of a head.
        wanted: What was asked for; None takes what divides them.

    Raises:
        CapabilityError: They cannot be quantized, or not as wanted.
    """
    sizes = tuple(sizes)
    for group in _GROUPS if wanted is None else (wanted,):
        if not any(size % group for size in sizes):
            return group
    names = " and ".join(map(str, dict.fromkeys(sizes)))
    heads = f"the attention heads of this model, {names} numbers each"
    if wanted is None:
        raise CapabilityError(f"kv_bits: {heads}, cannot be quantized.")
    raise CapabilityError(
        f"kv_group_size: {wanted} does not divide {heads}.", hint="Use a smaller one, or leave it out."
    )


class QuantizedCache(QuantizedKVCache):  # type: ignore[misc]
    """The quantized keys and values of one sequence.

    Args:
        bits: Of a number.
        group_size: Numbers that share a scale; None is replaced with the first keys and values, by what divides them.
    """

    group_size: int | None

    def __init__(self, bits: int, group_size: int | None = None) -> None:
        super().__init__(group_size=group_size, bits=bits)

    @classmethod
    def of(cls, plain: Any, bits: int, group_size: int | None) -> Self:  # noqa: ANN401 - a KVCache of mlx-lm or of mlx-vlm
        """Quantize a cache; it is not changed.

        Raises:
            CapabilityError: Its keys and values cannot be quantized.
        """
        if plain.keys is None:
            return cls(bits, group_size)
        quantized = cls(bits, group_for((plain.keys.shape[-1], plain.values.shape[-1]), group_size))
        packed = plain.to_quantized(group_size=quantized.group_size, bits=bits)
        quantized.keys, quantized.values, quantized.offset = packed.keys, packed.values, packed.offset
        return quantized

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> Any:  # noqa: ANN401 - two tuples of three arrays
        """Quantize keys and values, shape [B, H, T, D], append them, and return all."""
        if self.keys is None:
            self.group_size = group_for((keys.shape[-1], values.shape[-1]), self.group_size)
        return super().update_and_fetch(keys, values)

    def size(self) -> int:
        """Return the tokens in the cache."""
        return int(self.offset)

    @property
    def nbytes(self) -> int:
        """Size of all arrays; mlx-lm's cache does not know it of an empty one."""
        return _size_bytes(self)

    @staticmethod
    def merge(caches: "Sequence[QuantizedCache | BatchQuantizedCache]") -> "BatchQuantizedCache":
        """Return a batch of caches of one kind, at least one."""
        return BatchQuantizedCache.merge(caches)


class BatchQuantizedCache(BatchKVCache):  # type: ignore[misc]
    """The quantized keys and values of the sequences of a batch.

    Args:
        left_padding: Tokens of padding, one number a sequence.
        group_size: Numbers that share a scale; None is replaced with the first keys and values.
        bits: Of a number.
    """

    keys: Any
    values: Any
    offset: Any
    left_padding: Any
    _idx: int

    def __init__(self, left_padding: list[int], group_size: int | None, bits: int) -> None:
        super().__init__(left_padding)
        self.group_size = group_size
        self.bits = bits

    @classmethod
    def merge(cls, caches: "Sequence[QuantizedCache | BatchQuantizedCache]") -> "BatchQuantizedCache":
        """Return a batch of caches of one kind, at least one."""
        merged, *others = (each if isinstance(each, cls) else cls._of_one(each) for each in caches)
        for each in others:
            merged.extend(each)
        return merged

    @classmethod
    def _of_one(cls, cache: Any) -> "BatchQuantizedCache":  # noqa: ANN401 - a QuantizedCache
        batch = cls([0], cache.group_size, cache.bits)
        if cache.keys is not None:
            batch.keys, batch.values = cache.keys_and_values()
            batch._idx = cache.offset
            batch.offset = batch.offset + cache.offset
        return batch

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> Any:  # noqa: ANN401 - two tuples of three arrays
        """Quantize keys and values, shape [B, H, T, D], append them, and return all."""
        start, end = self._idx, self._idx + keys.shape[2]
        if self.keys is None:
            self.group_size = group_for((keys.shape[-1], values.shape[-1]), self.group_size)
        added = tuple(mx.quantize(each, group_size=self.group_size, bits=self.bits) for each in (keys, values))
        if self.keys is None or end > self.keys[0].shape[2]:
            grown = -(-(end - start) // _STEP) * _STEP
            held = self._held(added)
            self.keys, self.values = tree_map(lambda each: _padded(each, 0, grown), held)
        for arrays, parts in zip((self.keys, self.values), added, strict=True):
            for array, part in zip(arrays, parts, strict=True):
                array[:, :, start:end] = part
        self.offset, self._idx = self.offset + keys.shape[2], end
        return self.keys_and_values()

    def keys_and_values(self) -> Any:  # noqa: ANN401 - two tuples of three arrays
        """Return all keys and values."""
        return tree_map(lambda each: each[:, :, : self._idx], (self.keys, self.values))

    def filter(self, batch_indices: Any) -> None:  # noqa: ANN401 - a list or an array
        """Keep the sequences at some indices."""
        kept = mx.array(batch_indices)
        self.offset, self.left_padding = self.offset[kept], self.left_padding[kept]
        surplus = min(*self.left_padding.tolist(), self._idx)
        if self.keys is not None:
            self.keys, self.values = tree_map(lambda each: each[kept, :, surplus:], (self.keys, self.values))
        self._idx -= surplus
        self.left_padding = self.left_padding - surplus

    def extend(self, other: "BatchQuantizedCache") -> None:
        """Add the sequences of another batch."""
        length = max(self._idx, other._idx)
        mine, theirs = length - self._idx, length - other._idx
        if self.keys is not None or other.keys is not None:
            filled = self if self.keys is not None else other
            self.group_size, like = filled.group_size, (filled.keys, filled.values)
            self.keys, self.values = tree_map(
                lambda ours, added: mx.concatenate([_padded(ours, mine, 0), _padded(added, theirs, 0)]),
                self._held(like),
                other._held(like),
            )
        self.offset = mx.concatenate([self.offset, other.offset])
        self.left_padding = mx.concatenate([self.left_padding + mine, other.left_padding + theirs])
        self._idx = length

    def extract(self, idx: int) -> QuantizedCache:
        """Return the cache of one sequence."""
        cache = QuantizedCache(self.bits, self.group_size)
        if self.keys is not None:
            start: Any = self.left_padding[idx].item()
            row = tree_map(lambda each: mx.contiguous(each[idx : idx + 1, :, start:]), self.keys_and_values())
            cache.keys, cache.values = row
            cache.offset = self._idx - start
        return cache

    @property
    def nbytes(self) -> int:
        """Size of all arrays."""
        return _size_bytes(self)

    def _held(self, like: Any) -> Any:  # noqa: ANN401 - two tuples of three arrays
        """Return all keys and values; of an empty cache, arrays for no token with the other axes of some others."""
        if self.keys is not None:
            return self.keys_and_values()
        rows = self.left_padding.shape[0]
        return tree_map(lambda each: mx.zeros((rows, each.shape[1], 0, each.shape[3]), dtype=each.dtype), like)


def _size_bytes(cache: QuantizedCache | BatchQuantizedCache) -> int:
    return sum(each.nbytes for each in (*(cache.keys or ()), *(cache.values or ())))


def _padded(array: mx.array, left: int, right: int) -> mx.array:
    """Return an array, shape [B, H, T, *], with so many more tokens."""
    return mx.pad(array, [(0, 0), (0, 0), (left, right), (0, 0)]) if left or right else array
