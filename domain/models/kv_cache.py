"""The KV cache: quantization schemes, limits, and its size in bytes per token."""

import math
from collections.abc import Sequence

import attrs

KV_BITS = (2, 4, 8)
"""Bits per number of the uniform scheme."""

UNIFORM, TURBOQUANT = KV_SCHEMES = ("uniform", "turboquant")
"""Quantization schemes: groups of numbers with a scale each, or complete vectors after a random rotation."""

TURBOQUANT_BITS = (2, 2.5, 3, 3.5, 4)
"""Bits per number of TurboQuant; with a half, keys have the next lower and values the next higher number of bits."""

TURBOQUANT_USUAL_BITS = 3.5
"""TurboQuant's default bits, as in the library that it is from."""

ALL_KV_BITS = (*TURBOQUANT_BITS, 8)
"""Bits that either scheme supports."""

KV_GROUP_SIZES = (32, 64, 128)
"""Supported sizes of a group of numbers that share a scale."""

PREFIX_CACHE_BITS = (4, 8)
"""Bits to which the prefix cache may be quantized while memory is short."""

MIN_KV_SIZE = 16
"""Fewest tokens of a rotating KV cache."""


def kv_bits_fault(bits: float, scheme: str | None, uniform: Sequence[int] = KV_BITS) -> str | None:
    """Return why a number of bits is not supported, as the end of a sentence; None when it is.

    Args:
        bits: Bits per number.
        scheme: One of ``KV_SCHEMES``; None for the first.
        uniform: The bits that the uniform scheme supports.
    """
    supported: Sequence[float] = TURBOQUANT_BITS if scheme == TURBOQUANT else uniform
    if bits in supported:
        return None
    fault = f"must be one of {_listed(supported)}"
    if scheme == TURBOQUANT:
        return f"{fault} with kv_scheme {TURBOQUANT} (got {bits})"
    elsewhere = f"; kv_scheme {TURBOQUANT} has {_listed(TURBOQUANT_BITS)}" if bits in TURBOQUANT_BITS else ""
    return f"{fault} (got {bits}){elsewhere}"


def _listed(numbers: Sequence[float]) -> str:
    return ", ".join(map(str, numbers))


_SCALE_BITS = 32
"""Bits of the scale and the bias of a group, 16 each."""

_SMALLEST_GROUP = 32
"""Numbers in the smallest default group of any model."""


@attrs.frozen
class CacheShape:
    """The shape of a KV cache by a model's config; zeros where it is not stated."""

    layers: int = 0
    heads: int = 0
    """Key-value heads of a layer."""
    head_size: int = 0
    """Numbers of a key, and of a value, in one head."""

    @property
    def bytes_per_token(self) -> int:
        """Size in 16 bits: keys and values of all layers and heads."""
        return 2 * 2 * self.layers * self.heads * self.head_size


def quantized_cache_bytes(bytes_per_token: int, bits: int, group_size: int | None = None) -> int:
    """Return the size of a uniformly quantized KV cache, bytes per token.

    Args:
        bytes_per_token: Its size in 16 bits.
        bits: Bits per number.
        group_size: Numbers that share a scale; None assumes the smallest default group.
    """
    group_size = group_size or _SMALLEST_GROUP
    return bytes_per_token * (bits * group_size + _SCALE_BITS) // (16 * group_size)


_READING_SHARE = 3
"""Temporary memory while attention reads a layer, in multiples of the layer's size in 16 bits: unpacked 32-bit keys and
values, and what is computed from them."""


def turboquant_cache_bytes(shape: CacheShape, bits: float) -> int:
    """Return the size of a KV cache quantized by TurboQuant, bytes per token.

    A vector is stored as its length in 16 bits and its numbers packed into 32-bit words. The last layer of more than
    two is not quantized, and while a layer is read, its keys and values are unpacked.

    Args:
        shape: Shape of the KV cache.
        bits: Bits per number, one of ``TURBOQUANT_BITS``.
    """
    plain = 1 if shape.layers > 2 else 0
    layer = 2 * 2 * shape.heads * shape.head_size
    words = sum(-(-shape.head_size * size // 32) for size in (math.floor(bits), math.ceil(bits)))
    return (shape.layers - plain) * shape.heads * (4 * words + 2 * 2) + (plain + _READING_SHARE) * layer
