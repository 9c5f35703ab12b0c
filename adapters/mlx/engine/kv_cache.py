"""The caches of an answer, as its ``EngineOptions`` wants them."""

from typing import Any

from mlxk.domain.errors import CapabilityError
from mlxk.domain.generation.engine_options import EngineOptions

_KEPT_FROM_START = 4
"""Tokens a bounded cache never forgets; attention leans on the first ones."""

_GROUPS = (64, 32)
"""Sizes of the groups that share a scale when keys and values are quantized; the first that divides a head is taken."""


def make_cache(network: Any, engine_options: EngineOptions, head_size: int | None) -> list[Any]:  # noqa: ANN401
    """Build the cache, one object a layer.

    Args:
        network: The model.
        engine_options: What is wanted.
        head_size: Numbers in one attention head; None when unknown.

    Raises:
        CapabilityError: The model's layers have no cache of the kind that is wanted.
    """
    from mlx_lm.models.cache import RotatingKVCache, make_prompt_cache

    cache: list[Any] = make_prompt_cache(network)
    if engine_options.max_kv_size is None and engine_options.kv_bits is None:
        return cache
    if not _plain(cache):
        wanted = "max_kv_size" if engine_options.kv_bits is None else "kv_bits"
        raise CapabilityError(f"{wanted}: this model keeps no keys and values that could be bounded or quantized.")
    if engine_options.kv_bits is not None:
        _group(head_size)
    else:
        for index in _plain(cache):
            cache[index] = RotatingKVCache(engine_options.max_kv_size, keep=_KEPT_FROM_START)
    return cache


def quantize(cache: list[Any], bits: int, head_size: int | None) -> None:
    """Quantize in place what is not yet; done between the pieces of a prompt, as mlx-lm does."""
    for index in _plain(cache):
        cache[index] = cache[index].to_quantized(group_size=_group(head_size), bits=bits)


def cache_kind(engine_options: EngineOptions) -> str:
    """Return what tells caches of different kinds apart; empty for the usual one."""
    if engine_options.kv_bits is not None:
        return f"#bits={engine_options.kv_bits}"
    return f"#size={engine_options.max_kv_size}" if engine_options.max_kv_size is not None else ""


def _plain(cache: list[Any]) -> list[int]:
    """Return which layers keep all keys and values as they are."""
    from mlx_lm.models.cache import KVCache

    return [index for index, layer in enumerate(cache) if type(layer) is KVCache]


def _group(head_size: int | None) -> int:
    for group in _GROUPS:
        if head_size is None or head_size % group == 0:
            return group
    raise CapabilityError(f"kv_bits: the attention heads of this model, {head_size} numbers each, cannot be quantized.")
