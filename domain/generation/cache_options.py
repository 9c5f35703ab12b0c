"""What keys and values may be quantized to, and how many may be kept."""

from collections.abc import Sequence

KV_BITS = (2, 4, 8)
"""Sizes of quantized keys and values, bits."""

UNIFORM, TURBOQUANT = KV_SCHEMES = ("uniform", "turboquant")
"""How they are quantized: groups of numbers with a scale each, or whole vectors after a random rotation."""

TURBOQUANT_BITS = (2, 2.5, 3, 3.5, 4)
"""Their sizes in the second; one half more is of the values only."""

TURBOQUANT_USUAL_BITS = 3.5
"""Its size where none is asked for, as that of mlx-vlm."""

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
