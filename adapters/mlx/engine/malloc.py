"""Memory that nobody needs any more, given back.

The C library keeps freed memory for later; between small and large, short-lived and kept allocations of many threads
it comes to hold more and more of it (glibc). MLX's arrays are among them where there is no GPU.

By default it gives threads heaps of their own, and never gives back the end of one that is not the first: up to 64 MiB
for each of them, several of them for each core.
"""

import ctypes
import functools
from collections.abc import Callable

_M_ARENA_MAX = -8
"""The parameter of glibc's ``mallopt``."""


def give_back() -> None:
    """Give back what is free; does nothing where the C library does so by itself."""
    trim = _library_function("malloc_trim")
    if trim is not None:
        trim(0)


def use_single_arena() -> None:
    """Have all threads share one heap, all of which can be given back; to be called before there are threads.

    Does nothing where the C library has no such choice.
    """
    choose = _library_function("mallopt")
    if choose is not None:
        choose(_M_ARENA_MAX, 1)


def materialize_random_state() -> None:
    """Compute the state of MLX's random numbers, to be called when a model was loaded.

    A network draws its weights before the real ones replace them. Nothing ever computes those, so that without this
    the state would remember every draw since the process began.
    """
    import mlx.core as mx

    mx.eval(mx.random.state)


@functools.cache
def _library_function(name: str) -> Callable[..., int] | None:
    try:
        function: Callable[..., int] = getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError):
        return None
    return function
