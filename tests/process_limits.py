"""Limits of the test process, as where the system gives it no more: threads, and bytes of a file."""

import contextlib
import resource
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


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Have the system refuse writes beyond a size, in bytes, of any file in the block."""
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, usual[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
