"""The KV cache of a model: what it may be quantized to, how many tokens it may keep, and what one takes, bytes."""

import math
from collections.abc import Sequence

import attrs

KV_BITS = (2, 4, 8)
"""Sizes of quantized keys and values, bits."""

UNIFORM, TURBOQUANT = KV_SCHEMES = ("uniform", "turboquant")
"""How they are quantized: groups of numbers with a scale each, or whole vectors after a random rotation."""

TURBOQUANT_BITS = (2, 2.5, 3, 3.5, 4)
"""Their sizes in the second; one half more is of the values only."""

TURBOQUANT_USUAL_BITS = 3.5
"""Its size where none is asked for, as its usual library has it."""

ALL_KV_BITS = (*TURBOQUANT_BITS, 8)
"""Those of either."""

KV_GROUP_SIZES = (32, 64, 128)
"""Quantized numbers that may share a scale."""

PREFIX_CACHE_BITS = (4, 8)
"""Sizes to which what is kept of prompts may be quantized while memory is short."""

MIN_KV_SIZE = 16
"""Fewest tokens of a rotating KV cache."""


def kv_bits_fault(bits: float, scheme: str | None, uniform: Sequence[int] = KV_BITS) -> str | None:
    """Return what is wrong with a size of quantized keys and values, as the end of a sentence; None for nothing.

    Args:
        bits: The size.
        scheme: One of ``KV_SCHEMES``; None for the first.
        uniform: The sizes that the first may have.
    """
    sizes: Sequence[float] = TURBOQUANT_BITS if scheme == TURBOQUANT else uniform
    if bits in sizes:
        return None
    said = f"must be one of {_listed(sizes)}"
    if scheme == TURBOQUANT:
        return f"{said} with kv_scheme {TURBOQUANT} (got {bits})"
    elsewhere = f"; kv_scheme {TURBOQUANT} has {_listed(TURBOQUANT_BITS)}" if bits in TURBOQUANT_BITS else ""
    return f"{said} (got {bits}){elsewhere}"


def _listed(numbers: Sequence[float]) -> str:
    return ", ".join(map(str, numbers))


_SCALE_BITS = 32
"""The scale and the bias of a group, of 16 bits each."""

_SMALLEST_GROUP = 32
"""Numbers."""


@attrs.frozen
class CacheShape:
    """What a config says of the keys and values of a token; zeros where it does not say."""

    layers: int = 0
    heads: int = 0
    """Of keys, and as many of values."""
    head_size: int = 0
    """Numbers of one."""

    @property
    def bytes_per_token(self) -> int:
        """In 16 bits."""
        return 2 * 2 * self.layers * self.heads * self.head_size


def quantized_cache_bytes(bytes_per_token: int, bits: int, group_size: int | None = None) -> int:
    """Return the KV cache of one token when its numbers are quantized, bytes.

    Args:
        bytes_per_token: In 16 bits.
        bits: Of a quantized number.
        group_size: Numbers that share a scale; None counts the fewest that a model may have by itself.
    """
    group_size = group_size or _SMALLEST_GROUP
    return bytes_per_token * (bits * group_size + _SCALE_BITS) // (16 * group_size)


_READING_SHARE = 3
"""What reading a layer takes, of its keys and values in 16 bits: numbers of 32 bits, and what is made of them."""


def turboquant_cache_bytes(shape: CacheShape, bits: float) -> int:
    """Return the KV cache of one token when its vectors are quantized by TurboQuant, bytes.

    A vector is its length, in 16 bits, and its packed numbers in words of 32 bits. The last layer of more than two is
    not quantized; and while a layer is read, its keys and values are held as numbers.

    Args:
        shape: Of keys and values.
        bits: Of a number; one half more is of the values only.
    """
    plain = 1 if shape.layers > 2 else 0
    layer = 2 * 2 * shape.heads * shape.head_size
    words = sum(-(-shape.head_size * each // 32) for each in (math.floor(bits), math.ceil(bits)))
    return (shape.layers - plain) * shape.heads * (4 * words + 2 * 2) + (plain + _READING_SHARE) * layer
