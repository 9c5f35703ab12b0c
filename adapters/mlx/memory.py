"""Memory of the engine: the limits that it keeps, and returning freed memory to the system. It does not import MLX.

The C library's allocator (glibc) keeps freed memory for reuse; with small and large, short-lived and long-lived
allocations of many threads the amount grows over time. MLX's arrays are among them where there is no GPU. By default
threads get arenas of their own, up to eight a core, whose freed memory is returned only in part.
"""

import ctypes
import functools
from collections.abc import Callable

import attrs


@attrs.frozen
class DiskLimits:
    """Where prompts are kept on disk, and how much of it they may take."""

    directory: str
    """Absolute; it gets a folder of ours."""
    max_bytes: int
    free_share: float = 0.1
    """Least share of the file system that stays free."""


def _unknown() -> int | None:
    return None


@attrs.frozen
class EngineLimits:
    """Limits of the engine. The composition root derives those in bytes from the machine's memory."""

    max_rows: int = 32
    """Sequences computed at the same time."""
    prefix_cache_bytes: int = 1024**3
    """0: no prefix cache."""
    disk: DiskLimits | None = None
    """The prefix cache's tier on disk; None: none."""
    cache_budget_bytes: int | None = None
    """KV caches of running sequences and the prefix cache together; None: no limit."""
    free_bytes: Callable[[], int | None] = _unknown
    """Returns what the machine has free at the moment without swapping; None where that is not to be asked."""
    swap_used_bytes: Callable[[], int | None] = _unknown
    """Returns what the system has moved out of memory; None where that is not known."""
    vision_cache_bytes: int = 512 * 1024**2
    """Features of images that one model keeps for later prompts; 0: none."""
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
