"""Memory that nobody needs any more, given back.

The C library keeps freed memory for later; between small and large, short-lived and kept allocations of many threads
it comes to hold more and more of it (glibc). MLX's arrays are among them where there is no GPU.
"""

import ctypes
import functools
from collections.abc import Callable


def give_back() -> None:
    """Give back what is free; does nothing where the C library does so by itself."""
    trim = _trim()
    if trim is not None:
        trim(0)


def settle_random_state() -> None:
    """Compute the state of MLX's random numbers, to be called when a model was loaded.

    A network draws its weights before the real ones replace them. Nothing ever computes those, so that without this
    the state would remember every draw since the process began.
    """
    import mlx.core as mx

    mx.eval(mx.random.state)


@functools.cache
def _trim() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return None
