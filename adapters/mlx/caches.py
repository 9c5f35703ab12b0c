"""The empty caches an answer begins with, as its ``Computation`` wants them."""

from typing import Any

from mlxk.domain.computation import Computation
from mlxk.domain.errors import CapabilityError

_KEPT_FROM_START = 4
"""Tokens a bounded cache never forgets; attention leans on the first ones."""

_GROUPS = (64, 32)
"""Sizes of the groups that share a scale when keys and values are quantized; the first that divides a head is taken."""


def make_cache(network: Any, computation: Computation, head_size: int | None) -> list[Any]:  # noqa: ANN401
    """Build the cache, one object a layer.

    Args:
        network: The model.
        computation: What is wanted.
        head_size: Numbers in one attention head; None when unknown.

    Raises:
        CapabilityError: The model's layers have no cache of the kind that is wanted.
    """
    from mlx_lm.models.cache import KVCache, RotatingKVCache, make_prompt_cache

    cache: list[Any] = make_prompt_cache(network)
    if computation.max_kv_size is None and computation.kv_bits is None:
        return cache
    plain = [index for index, layer in enumerate(cache) if type(layer) is KVCache]
    wanted = "max_kv_size" if computation.kv_bits is None else "kv_bits"
    if not plain:
        raise CapabilityError(f"{wanted}: this model keeps no keys and values that could be bounded or quantized.")
    for index in plain:
        if computation.max_kv_size is not None:
            cache[index] = RotatingKVCache(computation.max_kv_size, keep=_KEPT_FROM_START)
        else:
            cache[index] = cache[index].to_quantized(group_size=_group(head_size), bits=computation.kv_bits)
    return cache


def cache_kind(computation: Computation) -> str:
    """Return what tells caches of different kinds apart; empty for the usual one."""
    if computation.kv_bits is not None:
        return f"#bits={computation.kv_bits}"
    return f"#size={computation.max_kv_size}" if computation.max_kv_size is not None else ""


def _group(head_size: int | None) -> int:
    for group in _GROUPS:
        if head_size is None or head_size % group == 0:
            return group
    raise CapabilityError(f"kv_bits: the attention heads of this model, {head_size} numbers each, cannot be quantized.")
