"""Limits of the engine, and returning freed memory to the system; does not import MLX.

glibc's allocator keeps freed memory for reuse. With small and large, short-lived and long-lived allocations of many
threads the amount grows over time; without a GPU, MLX's arrays are among them. By default threads have arenas of their
own, up to eight a core, whose freed memory is returned only in part.
"""

import ctypes
import functools
from collections.abc import Callable

import attrs


@attrs.frozen
class DiskLimits:
    """The directory of the disk tier, and its limits."""

    directory: str
    """Absolute path; our folder is created in it."""
    max_bytes: int
    free_share: float = 0.1
    """Share of the file system that must stay free."""


def _unknown() -> int | None:
    return None


@attrs.frozen
class EngineLimits:
    """Limits of the engine. The composition root derives those in bytes from the machine's memory."""

    max_rows: int = 32
    """Sequences computed at the same time."""
    prefix_cache_bytes: int = 1024**3
    """Size of the prefix cache; 0 disables it."""
    disk: DiskLimits | None = None
    """Limits of the prefix cache's disk tier; None disables it."""
    cache_budget_bytes: int | None = None
    """KV caches of running sequences and the prefix cache together; None for no limit."""
    free_bytes: Callable[[], int | None] = _unknown
    """Returns the machine's free memory without swapping; None where it must not limit anything."""
    swap_used_bytes: Callable[[], int | None] = _unknown
    """Returns the swap in use; None where it is unknown."""
    vision_cache_bytes: int = 512 * 1024**2
    """Image features that one model caches for later prompts; 0 disables the cache."""
    model_budget_bytes: int | None = None
    """Weights of all loaded models together; None for no limit."""
    keep_alive_seconds: float | None = None
    """Idle time after which a model is unloaded; None for never."""


_M_ARENA_MAX = -8
"""Number of the parameter ``M_ARENA_MAX`` of ``mallopt``."""


def return_freed_memory() -> None:
    """Return freed memory to the system; does nothing with other C libraries than glibc."""
    malloc_trim = _library_function("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


def use_single_arena() -> None:
    """Make all threads share one arena, so that all freed memory can be returned; call before threads start.

    Does nothing with other C libraries than glibc.
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
