"""A process that may start no further thread, as where the limit of the system is reached."""

import contextlib
import threading
from collections.abc import Iterator

_MORE_THAN_ANY_MACHINE = 2**50
"""Bytes of a stack for which there are no addresses."""


@contextlib.contextmanager
def no_further_threads() -> Iterator[None]:
    """Have the system refuse every thread that starts in the block."""
    former = threading.stack_size(_MORE_THAN_ANY_MACHINE)
    try:
        yield
    finally:
        threading.stack_size(former)
