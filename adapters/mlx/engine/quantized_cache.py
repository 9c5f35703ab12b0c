"""Quantized KV caches that can share a batch; mlx-lm has a quantized cache for a single sequence only.

Keys and values are three arrays each: packed numbers, scales and biases; ``turbo_cache`` has another form. In a batch
they are padded on the left, as in mlx-lm's ``BatchKVCache``, whose positions and masks apply unchanged: padding is
masked and never read.

Shapes: B sequences, H heads, T tokens; the last axis depends on the array.
"""

import copy
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, Self

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map
from mlx_lm.models.cache import BatchKVCache, KVCache, QuantizedKVCache

from mlxk.domain.errors import CapabilityError

_GROUPS = (64, 32)
"""Group sizes to try when none is requested; the first that divides the head size is used."""

_STEP = 256
"""Tokens by which a batch's arrays grow."""


def group_for(sizes: Iterable[int], wanted: int | None) -> int:
    """Return the group size: how many numbers share a scale.

    Args:
        sizes: Head sizes of the keys and values.
        wanted: The requested group size; None takes the first of ``_GROUPS`` that divides all sizes.

    Raises:
        CapabilityError: No group size, or not the requested one, divides the head sizes.
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
        bits: Bits a number.
        group_size: Numbers that share a scale; None until the first keys and values decide it.
    """

    group_size: int | None

    def __init__(self, bits: int, group_size: int | None = None) -> None:
        super().__init__(group_size=group_size, bits=bits)

    @classmethod
    def of(cls, plain: Any, bits: int, group_size: int | None) -> Self:  # noqa: ANN401 - a KVCache of mlx-lm or of mlx-vlm
        """Quantize a copy of a cache.

        Raises:
            CapabilityError: Its keys and values cannot be quantized.
        """
        if plain.keys is None:
            return cls(bits, group_size)
        quantized = cls(bits, group_for((plain.keys.shape[-1], plain.values.shape[-1]), group_size))
        packed = plain.to_quantized(group_size=quantized.group_size, bits=bits)  # a QuantizedKVCache
        quantized.keys, quantized.values, quantized.offset = packed.keys, packed.values, packed.offset
        return quantized

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> Any:  # noqa: ANN401 - two tuples of three arrays
        """Quantize keys and values, shape [B, H, T, D], append them, and return all of both."""
        if self.keys is None:
            self.group_size = group_for((keys.shape[-1], values.shape[-1]), self.group_size)
        return super().update_and_fetch(keys, values)

    def packed_state(self) -> Any:  # noqa: ANN401 - two tuples of three arrays
        """Return the packed keys and values of all tokens."""
        return self.keys_and_values()

    @property
    def state(self) -> tuple[Any, ...]:
        """Keys and values without reserved space, since some networks read those of another layer, and the settings."""
        arrays = (None, None) if self.keys is None else self.packed_state()
        return *arrays, self.offset, self.group_size, self.bits

    @state.setter
    def state(self, state: Sequence[Any]) -> None:
        self.keys, self.values, self.offset, self.group_size, self.bits = state

    def size(self) -> int:
        """Return the number of tokens in the cache."""
        return int(self.offset)

    @property
    def nbytes(self) -> int:
        """Size of all arrays; mlx-lm's own property fails on an empty cache."""
        return size_bytes(self)

    @staticmethod
    def merge(caches: Sequence[Any]) -> Any:  # noqa: ANN401 - a BatchQuantizedCache
        """Return a batch of caches, at least one, all with the same settings."""
        return BatchQuantizedCache.merge(caches)


def quantizable_layers(cache: list[Any]) -> list[int]:
    """Return the indices of the layers that keep all keys and values unquantized."""
    # By name, since mlx-vlm has its own class of that name, whose import would cost a text model a second.
    return [index for index, layer in enumerate(cache) if type(layer).__name__ == KVCache.__name__]


class StoredLayer:
    """A layer of a prefix cache entry, quantized for storage only: ``plain`` dequantizes it before it is used.

    Args:
        plain: One of ``quantizable_layers``, not empty; it is not changed.
        bits: Bits a number.
    """

    def __init__(self, plain: Any, bits: int) -> None:  # noqa: ANN401 - a KVCache of mlx-lm or of mlx-vlm
        self._empty = copy.copy(plain)
        self._empty.keys, self._empty.values = first_tokens((plain.keys, plain.values), plain.offset)
        self._packed = QuantizedCache.of(self._empty, bits, None)
        self._empty.keys = self._empty.values = None

    @staticmethod
    def bytes_of(plain: Any, bits: int) -> int | None:  # noqa: ANN401
        """Return the size of a layer after quantization; None where it is empty or cannot be quantized."""
        if plain.keys is None or not plain.offset:
            return None
        try:
            group = group_for((plain.keys.shape[-1], plain.values.shape[-1]), None)
        except CapabilityError:
            return None
        arrays = [(each[:, :, : plain.offset].size, each.itemsize) for each in (plain.keys, plain.values)]
        size: int = sum(numbers * bits // 8 + numbers // group * 2 * itemsize for numbers, itemsize in arrays)
        return size

    @property
    def arrays(self) -> tuple[Any, Any]:
        """The packed keys and values."""
        return self._packed.keys, self._packed.values

    @property
    def nbytes(self) -> int:
        """Size of all arrays."""
        return self._packed.nbytes

    def plain(self) -> Any:  # noqa: ANN401
        """Return the layer dequantized, in its original class."""
        layer, settings = copy.copy(self._empty), {"group_size": self._packed.group_size, "bits": self._packed.bits}
        layer.keys, layer.values = (mx.dequantize(*each, **settings) for each in self._packed.packed_state())
        return layer


class PackedBatch(BatchKVCache):  # type: ignore[misc]
    """The keys and values of a batch of sequences in a packed form that the subclass defines.

    Args:
        left_padding: Tokens of padding, one number a sequence.
    """

    keys: Any
    values: Any
    offset: Any
    left_padding: Any
    _idx: int

    @classmethod
    def merge(cls, caches: Sequence[Any]) -> Any:  # noqa: ANN401 - of the subclass
        """Return a batch of caches of one kind, at least one; each holds one sequence or is a batch itself."""
        merged, *others = (each if isinstance(each, cls) else cls._batch_of_one(each) for each in caches)
        for each in others:
            merged.extend(each)
        return merged

    @classmethod
    def _batch_of_one(cls, cache: Any) -> Any:  # noqa: ANN401
        batch = cls._empty_like(cache)
        if cache.keys is not None:
            batch.keys, batch.values = cache.packed_state()
            batch._idx = cache.offset
            batch.offset = batch.offset + cache.offset
        return batch

    @classmethod
    @abstractmethod
    def _empty_like(cls, cache: Any) -> Any:  # noqa: ANN401
        """Return a batch of one empty sequence, with the settings of a cache."""

    @abstractmethod
    def _pack(self, keys: mx.array, values: mx.array) -> Any:  # noqa: ANN401 - two tuples of arrays
        """Return keys and values, shape [B, H, T, D], in packed form."""

    @abstractmethod
    def _fetched(self) -> Any:  # noqa: ANN401
        """Return all keys and values in the form that attention reads."""

    @abstractmethod
    def _adopt(self, other: Any) -> None:  # noqa: ANN401
        """Copy the settings that another cache got from its first keys and values."""

    @abstractmethod
    def _empty_single(self) -> Any:  # noqa: ANN401
        """Return an empty cache for one sequence, with the same settings."""

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> Any:  # noqa: ANN401
        """Append keys and values, shape [B, H, T, D], and return all of both."""
        start = self._idx
        added = self._pack(keys, values)
        self.keys, self.values = with_tokens((self.keys, self.values), start, added)
        self.offset, self._idx = self.offset + keys.shape[2], start + keys.shape[2]
        return self._fetched()

    @property
    def state(self) -> tuple[Any, ...]:
        """All keys and values in the form that attention reads, the sequences' offsets and paddings, and the length."""
        arrays = (None, None) if self.keys is None else self._fetched()
        return *arrays, self.offset, self.left_padding, self._idx

    def packed_state(self) -> Any:  # noqa: ANN401 - two tuples of arrays
        """Return the packed keys and values of all tokens."""
        return first_tokens((self.keys, self.values), self._idx)

    def filter(self, batch_indices: Any) -> None:  # noqa: ANN401 - a list or an array
        """Keep the sequences at these indices, and cut off padding that all of them share."""
        kept = mx.array(batch_indices)
        self.offset, self.left_padding = self.offset[kept], self.left_padding[kept]
        surplus = min(*self.left_padding.tolist(), self._idx)
        if self.keys is not None:
            self.keys, self.values = tree_map(lambda each: each[kept, :, surplus:], (self.keys, self.values))
        self._idx -= surplus
        self.left_padding = self.left_padding - surplus

    def extend(self, other: Any) -> None:  # noqa: ANN401
        """Append the sequences of another batch of the same class."""
        length = max(self._idx, other._idx)
        mine, theirs = length - self._idx, length - other._idx
        if self.keys is not None or other.keys is not None:
            filled = self if self.keys is not None else other
            self._adopt(filled)
            like = (filled.keys, filled.values)
            self.keys, self.values = tree_map(
                lambda ours, added: mx.concatenate([_padded(ours, mine, 0), _padded(added, theirs, 0)]),
                self._packed_or_empty(like),
                other._packed_or_empty(like),
            )
        self.offset = mx.concatenate([self.offset, other.offset])
        self.left_padding = mx.concatenate([self.left_padding + mine, other.left_padding + theirs])
        self._idx = length

    def extract(self, idx: int) -> Any:  # noqa: ANN401
        """Return the cache of one sequence."""
        cache = self._empty_single()
        if self.keys is not None:
            start: Any = self.left_padding[idx].item()
            row = tree_map(lambda each: mx.contiguous(each[idx : idx + 1, :, start:]), self.packed_state())
            cache.keys, cache.values = row
            cache.offset = self._idx - start
        return cache

    @property
    def nbytes(self) -> int:
        """Size of all arrays."""
        return size_bytes(self)

    def _packed_or_empty(self, like: Any) -> Any:  # noqa: ANN401 - two tuples of arrays
        """Return the packed keys and values; for an empty batch, arrays of no token with the other axes of ``like``."""
        if self.keys is not None:
            return self.packed_state()
        rows = self.left_padding.shape[0]
        return tree_map(lambda each: mx.zeros((rows, each.shape[1], 0, each.shape[3]), dtype=each.dtype), like)


class BatchQuantizedCache(PackedBatch):
    """The quantized keys and values of a batch of sequences: packed numbers, scales and biases each.

    Args:
        left_padding: Tokens of padding, one number a sequence.
        group_size: Numbers that share a scale; None until the first keys and values decide it.
        bits: Bits a number.
    """

    def __init__(self, left_padding: list[int], group_size: int | None, bits: int) -> None:
        super().__init__(left_padding)
        self.group_size = group_size
        self.bits = bits

    @classmethod
    def _empty_like(cls, cache: Any) -> Self:  # noqa: ANN401
        return cls([0], cache.group_size, cache.bits)

    def _pack(self, keys: mx.array, values: mx.array) -> Any:  # noqa: ANN401
        if self.keys is None:
            self.group_size = group_for((keys.shape[-1], values.shape[-1]), self.group_size)
        return tuple(mx.quantize(each, group_size=self.group_size, bits=self.bits) for each in (keys, values))

    def _fetched(self) -> Any:  # noqa: ANN401
        return self.packed_state()  # mlx-lm's attention reads this form

    def _adopt(self, other: Any) -> None:  # noqa: ANN401
        self.group_size = other.group_size

    def _empty_single(self) -> QuantizedCache:
        return QuantizedCache(self.bits, self.group_size)


def with_tokens(stored: Any, start: int, added: Any) -> Any:  # noqa: ANN401 - two tuples of arrays
    """Write further tokens into arrays, after growing them where there is no room; return the arrays.

    Args:
        stored: Two tuples of arrays, shape [B, H, T, *]; or two None.
        start: Tokens in use; the new ones follow them.
        added: Two tuples of arrays of the same shapes.
    """
    size = added[0][0].shape[2]
    if stored[0] is None or start + size > stored[0][0].shape[2]:
        growth = -(-size // _STEP) * _STEP
        used = tree_map(lambda each: each[:, :, :0], added) if stored[0] is None else first_tokens(stored, start)
        stored = tree_map(lambda each: _padded(each, 0, growth), used)
    for arrays, parts in zip(stored, added, strict=True):
        for array, part in zip(arrays, parts, strict=True):
            array[:, :, start : start + size] = part
    return stored


def kept_state(layer: Any) -> Any:  # noqa: ANN401 - a layer of any kind, and its arrays
    """Return the arrays and settings of a layer as stored; its ``state`` may be a dequantized form of them."""
    stored = getattr(layer, "kept_state", None)
    return layer.state if stored is None else stored


def cache_bytes(cache: Iterable[Any]) -> int:
    """Return the size of a cache, including the memory for dequantizing one layer at a time."""
    layers = list(cache)
    reading: int = max((getattr(layer, "reading_bytes", 0) for layer in layers), default=0)
    return reading + sum(map(layer_bytes, layers))


def layer_bytes(layer: Any) -> int:  # noqa: ANN401 - a layer of any kind
    """Return the size of a layer: its ``nbytes``, or the sum of its arrays where it has no such attribute."""
    nbytes: int | None = getattr(layer, "nbytes", None)
    if nbytes is not None:
        return nbytes
    return sum(each.nbytes for _, each in tree_flatten(layer.state) if isinstance(each, mx.array))


def is_trimmable(layer: Any) -> bool:  # noqa: ANN401 - a layer of any kind
    """Whether tokens can be removed from the end of a layer; False for layers without such a method."""
    method = getattr(layer, "is_trimmable", None)
    return method is not None and bool(method())


def growth_bytes(cache: Iterable[Any], tokens: int, further: int) -> int:
    """Return by how many bytes a cache grows next: arrays grow by ``_STEP`` tokens at a time.

    Recurrent states and full windows, which cannot be trimmed, do not grow.

    Args:
        cache: The layers.
        tokens: Tokens of the longest sequence.
        further: Maximum number of tokens that a sequence may still get.
    """
    growing = cache_bytes(layer for layer in cache if is_trimmable(layer))
    return int(growing * min(further, _STEP) / max(tokens, _STEP))


def size_bytes(cache: Any) -> int:  # noqa: ANN401 - one of the caches here
    """Return the size of all arrays of keys and values."""
    size: int = sum(each.nbytes for each in (*(cache.keys or ()), *(cache.values or ())))
    return size


def _padded(array: mx.array, left: int, right: int) -> mx.array:
    """Return an array, shape [B, H, T, *], padded with zeros for so many tokens."""
    return mx.pad(array, [(0, 0), (0, 0), (left, right), (0, 0)]) if left or right else array


def first_tokens(stored: Any, tokens: int) -> Any:  # noqa: ANN401 - two tuples of arrays
    """Return the first tokens of arrays, shape [B, H, T, *]."""
    return tree_map(lambda each: each[:, :, :tokens], stored)
