"""Memory of the engine: its limits, the type in which weights are held, and returning freed memory to the system.

The C library's allocator (glibc) keeps freed memory for reuse; with small and large, short-lived and long-lived
allocations of many threads the amount grows over time. MLX's arrays are among them where there is no GPU. By default
threads get arenas of their own, up to eight a core, whose freed memory is returned only in part.
"""

import ctypes
import functools
from collections.abc import Callable
from typing import Any

import attrs
import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten, tree_map


@attrs.frozen
class EngineLimits:
    """Limits of the engine. The composition root derives those in bytes from the machine's memory."""

    max_rows: int = 32
    """Sequences computed at the same time."""
    prefix_cache_bytes: int = 1024**3
    """0: no prefix cache."""
    cache_budget_bytes: int | None = None
    """KV caches of running sequences and the prefix cache together; None: no limit."""
    model_budget_bytes: int | None = None
    """Weights of all loaded models together; None: no limit."""
    keep_alive_seconds: float | None = None
    """Idle time after which a model is unloaded; None: never."""


_M_ARENA_MAX = -8
"""The parameter of ``mallopt``."""


def return_freed_memory() -> None:
    """Return free memory to the system; does nothing with other C libraries."""
    malloc_trim = _library_function("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


def use_single_arena() -> None:
    """Have all threads share one arena, so that all freed memory can be returned; call before threads start.

    Does nothing with other C libraries.
    """
    mallopt = _library_function("mallopt")
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)


@functools.cache
def _library_function(name: str) -> Callable[..., int] | None:
    try:
        function: Callable[..., int] = getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError):
        return None
    return function


_HALF_TYPES = (mx.float16, mx.bfloat16)


def widen(network: nn.Module) -> None:
    """Hold every 16-bit floating-point number of a network in 32 bits.

    Scales and biases of quantized layers are among them, so that all that is computed has 32 bits. Arrays are replaced
    one by one: no more than one of them is in memory twice.
    """
    for module in network.modules():
        for name, value in list(module.items()):
            module[name] = tree_map(_widened, value, is_leaf=lambda leaf: isinstance(leaf, nn.Module))
        # Some networks convert their inputs to the type that they were loaded in.
        dtype = getattr(module, "dtype", None)
        if isinstance(dtype, mx.Dtype) and dtype in _HALF_TYPES:
            module.dtype = mx.float32


def held_bytes(network: nn.Module) -> int:
    """Return what the weights of a network take in memory, bytes."""
    return sum(array.nbytes for _, array in tree_flatten(network.parameters()))


def _widened(value: Any) -> Any:  # noqa: ANN401 - whatever a network holds
    if not isinstance(value, mx.array) or value.dtype not in _HALF_TYPES:
        return value
    wide = value.astype(mx.float32)
    mx.eval(wide)
    return wide
