"""Quantized KV caches that share a batch: mlx-lm has one for a single sequence, and none that is merged.

Keys and values are three arrays each: packed numbers, scales and biases; other forms are ``turbo_cache``'s matter. In a
batch they are padded on the left, as in mlx-lm's ``BatchKVCache``, whose positions and masks are used as they are; what
is padding is masked and never read.

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

    def packed_state(self) -> Any:  # noqa: ANN401 - two tuples of three arrays
        """Return all keys and values as they are kept."""
        return self.keys_and_values()

    @property
    def state(self) -> tuple[Any, ...]:
        """All that makes it up, keys and values of its tokens only: some networks read those of another layer."""
        found = (None, None) if self.keys is None else self.packed_state()
        return *found, self.offset, self.group_size, self.bits

    @state.setter
    def state(self, state: Sequence[Any]) -> None:
        self.keys, self.values, self.offset, self.group_size, self.bits = state

    def size(self) -> int:
        """Return the tokens in the cache."""
        return int(self.offset)

    @property
    def nbytes(self) -> int:
        """Size of all arrays; mlx-lm's cache does not know it of an empty one."""
        return size_bytes(self)

    @staticmethod
    def merge(caches: Sequence[Any]) -> Any:  # noqa: ANN401 - a BatchQuantizedCache
        """Return a batch of caches of one kind, at least one."""
        return BatchQuantizedCache.merge(caches)


def quantizable_layers(cache: list[Any]) -> list[int]:
    """Return the indices of the layers that keep all keys and values unquantized."""
    # mlx-vlm has a class of its own under the same name; importing it for a text model would take a second.
    return [index for index, layer in enumerate(cache) if type(layer).__name__ == KVCache.__name__]


class StoredLayer:
    """A layer of keys and values that is quantized as long as nothing is computed with it.

    Args:
        plain: One of ``quantizable_layers``, with tokens; it is not changed.
        bits: Of a number.
    """

    def __init__(self, plain: Any, bits: int) -> None:  # noqa: ANN401 - a KVCache of mlx-lm or of mlx-vlm
        self._empty = copy.copy(plain)
        self._empty.keys, self._empty.values = first_tokens((plain.keys, plain.values), plain.offset)
        self._packed = QuantizedCache.of(self._empty, bits, None)
        self._empty.keys = self._empty.values = None

    @staticmethod
    def bytes_of(plain: Any, bits: int) -> int | None:  # noqa: ANN401
        """Return what a layer takes in this form; None where it cannot have it."""
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
        """All that is kept of keys and values."""
        return self._packed.keys, self._packed.values

    @property
    def nbytes(self) -> int:
        """Size of all arrays."""
        return self._packed.nbytes

    def plain(self) -> Any:  # noqa: ANN401
        """Return the layer as it was, but for what quantizing has changed of its numbers."""
        layer, form = copy.copy(self._empty), {"group_size": self._packed.group_size, "bits": self._packed.bits}
        layer.keys, layer.values = (mx.dequantize(*each, **form) for each in self._packed.packed_state())
        return layer


class PackedBatch(BatchKVCache):  # type: ignore[misc]
    """The keys and values of the sequences of a batch in another form; what that is, is a subclass's matter.

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
        """Return a batch of caches of one kind, at least one; those of a single sequence, or batches."""
        merged, *others = (each if isinstance(each, cls) else cls._of_one(each) for each in caches)
        for each in others:
            merged.extend(each)
        return merged

    @classmethod
    def _of_one(cls, cache: Any) -> Any:  # noqa: ANN401
        batch = cls._empty_like(cache)
        if cache.keys is not None:
            batch.keys, batch.values = cache.packed_state()
            batch._idx = cache.offset
            batch.offset = batch.offset + cache.offset
        return batch

    @classmethod
    @abstractmethod
    def _empty_like(cls, cache: Any) -> Any:  # noqa: ANN401
        """Return a batch of one empty sequence of the kind of a cache."""

    @abstractmethod
    def _pack(self, keys: mx.array, values: mx.array) -> Any:  # noqa: ANN401 - two tuples of arrays
        """Return keys and values, shape [B, H, T, D], in the form that is kept."""

    @abstractmethod
    def _fetched(self) -> Any:  # noqa: ANN401
        """Return all keys and values in the form that attention takes."""

    @abstractmethod
    def _adopt(self, other: Any) -> None:  # noqa: ANN401
        """Take over what another cache of the kind knows of the form."""

    @abstractmethod
    def _one(self) -> Any:  # noqa: ANN401
        """Return an empty cache of one sequence."""

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> Any:  # noqa: ANN401
        """Append keys and values, shape [B, H, T, D], and return all."""
        start = self._idx
        added = self._pack(keys, values)
        self.keys, self.values = with_tokens((self.keys, self.values), start, added)
        self.offset, self._idx = self.offset + keys.shape[2], start + keys.shape[2]
        return self._fetched()

    @property
    def state(self) -> tuple[Any, ...]:
        """All keys and values as attention takes them, and where the sequences begin and end."""
        found = (None, None) if self.keys is None else self._fetched()
        return *found, self.offset, self.left_padding, self._idx

    def packed_state(self) -> Any:  # noqa: ANN401 - two tuples of arrays
        """Return all keys and values as they are kept."""
        return first_tokens((self.keys, self.values), self._idx)

    def filter(self, batch_indices: Any) -> None:  # noqa: ANN401 - a list or an array
        """Keep the sequences at some indices."""
        kept = mx.array(batch_indices)
        self.offset, self.left_padding = self.offset[kept], self.left_padding[kept]
        surplus = min(*self.left_padding.tolist(), self._idx)
        if self.keys is not None:
            self.keys, self.values = tree_map(lambda each: each[kept, :, surplus:], (self.keys, self.values))
        self._idx -= surplus
        self.left_padding = self.left_padding - surplus

    def extend(self, other: Any) -> None:  # noqa: ANN401
        """Add the sequences of another batch of the kind."""
        length = max(self._idx, other._idx)
        mine, theirs = length - self._idx, length - other._idx
        if self.keys is not None or other.keys is not None:
            filled = self if self.keys is not None else other
            self._adopt(filled)
            like = (filled.keys, filled.values)
            self.keys, self.values = tree_map(
                lambda ours, added: mx.concatenate([_padded(ours, mine, 0), _padded(added, theirs, 0)]),
                self._held(like),
                other._held(like),
            )
        self.offset = mx.concatenate([self.offset, other.offset])
        self.left_padding = mx.concatenate([self.left_padding + mine, other.left_padding + theirs])
        self._idx = length

    def extract(self, idx: int) -> Any:  # noqa: ANN401
        """Return the cache of one sequence."""
        cache = self._one()
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

    def _held(self, like: Any) -> Any:  # noqa: ANN401 - two tuples of arrays
        """Return all keys and values; of an empty cache, arrays for no token with the other axes of some others."""
        if self.keys is not None:
            return self.packed_state()
        rows = self.left_padding.shape[0]
        return tree_map(lambda each: mx.zeros((rows, each.shape[1], 0, each.shape[3]), dtype=each.dtype), like)


class BatchQuantizedCache(PackedBatch):
    """The quantized keys and values of the sequences of a batch, packed numbers, scales and biases each.

    Args:
        left_padding: Tokens of padding, one number a sequence.
        group_size: Numbers that share a scale; None is replaced with the first keys and values.
        bits: Of a number.
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
        return self.packed_state()  # attention reads them as they are

    def _adopt(self, other: Any) -> None:  # noqa: ANN401
        self.group_size = other.group_size

    def _one(self) -> QuantizedCache:
        return QuantizedCache(self.bits, self.group_size)


def with_tokens(stored: Any, start: int, added: Any) -> Any:  # noqa: ANN401 - two tuples of arrays
    """Return arrays with further tokens, grown where there is no room for them.

    Args:
        stored: Two tuples of arrays, shape [B, H, T, *]; or two None.
        start: Tokens that are in use.
        added: Of the same form.
    """
    size = added[0][0].shape[2]
    if stored[0] is None or start + size > stored[0][0].shape[2]:
        grown = -(-size // _STEP) * _STEP
        held = tree_map(lambda each: each[:, :, :0], added) if stored[0] is None else first_tokens(stored, start)
        stored = tree_map(lambda each: _padded(each, 0, grown), held)
    for arrays, parts in zip(stored, added, strict=True):
        for array, part in zip(arrays, parts, strict=True):
            array[:, :, start : start + size] = part
    return stored


def kept_state(layer: Any) -> Any:  # noqa: ANN401 - a layer of any kind, and its arrays
    """Return what makes up a layer's cache, as it is kept; its ``state`` may have to be made of that."""
    found = getattr(layer, "kept_state", None)
    return layer.state if found is None else found


def held_bytes(cache: Iterable[Any]) -> int:
    """Return what the layers of a cache take, and what is taken while one of them is read."""
    layers = list(cache)
    reading: int = max((getattr(layer, "reading_bytes", 0) for layer in layers), default=0)
    return reading + sum(map(kept_bytes, layers))


def kept_bytes(layer: Any) -> int:  # noqa: ANN401 - a layer of any kind
    """Return the size of a layer's cache; where it does not say, that of its arrays."""
    stated: int | None = getattr(layer, "nbytes", None)
    if stated is not None:
        return stated
    return sum(each.nbytes for _, each in tree_flatten(layer.state) if isinstance(each, mx.array))


def is_trimmable(layer: Any) -> bool:  # noqa: ANN401 - a layer of any kind
    """Whether tokens can be removed from a layer's cache; where it does not say, they cannot."""
    asked = getattr(layer, "is_trimmable", None)
    return asked is not None and bool(asked())


def growth_bytes(cache: Iterable[Any], held: int, further: int) -> int:
    """Return what a cache takes more soon: it grows by ``_STEP`` tokens at a time.

    Recurrent states and full windows, which cannot be trimmed, do not grow.

    Args:
        cache: The layers.
        held: Tokens of its longest sequence.
        further: Most tokens that one of them may still get.
    """
    growing = held_bytes(layer for layer in cache if is_trimmable(layer))
    return int(growing * min(further, _STEP) / max(held, _STEP))


def size_bytes(cache: Any) -> int:  # noqa: ANN401 - one of the caches here
    """Return the size of all arrays of keys and values."""
    size: int = sum(each.nbytes for each in (*(cache.keys or ()), *(cache.values or ())))
    return size


def _padded(array: mx.array, left: int, right: int) -> mx.array:
    """Return an array, shape [B, H, T, *], with so many more tokens."""
    return mx.pad(array, [(0, 0), (0, 0), (left, right), (0, 0)]) if left or right else array


def first_tokens(stored: Any, tokens: int) -> Any:  # noqa: ANN401 - two tuples of arrays
    """Return the first tokens of arrays, shape [B, H, T, *]."""
    return tree_map(lambda each: each[:, :, :tokens], stored)
