"""The C library's allocator (glibc): returning freed memory to the system.

glibc keeps freed memory for reuse; with small and large, short-lived and long-lived allocations of many threads the
amount grows over time. MLX's arrays are among them where there is no GPU. By default threads get arenas of their own,
up to eight a core, whose freed memory is returned only in part.
"""

import ctypes
import functools
from collections.abc import Callable

_M_ARENA_MAX = -8
"""The parameter of ``mallopt``."""


def trim() -> None:
    """Return free memory to the system; does nothing with other C libraries."""
    malloc_trim = _library_function("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


def use_single_arena() -> None:
    """Have all threads share one arena, so that ``trim`` can return all free memory; call before threads start.

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
