"""Importing mlx-lm and its siblings without what they do to the process on the way.

``import mlx_lm`` lowers the process's limit on open files, for good where the process may not raise it again, and fails
where the hard limit is lower than it expects. Here the limit stays as it was.
"""

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def open_file_limit_kept() -> Iterator[None]:
    """Make ``resource.setrlimit`` do nothing inside the block."""
    import resource

    original = resource.setrlimit
    resource.setrlimit = lambda *_: None
    try:
        yield
    finally:
        resource.setrlimit = original


def import_mlx_lm() -> None:
    """Import mlx-lm, so that later imports of its parts find it loaded.

    Raises:
        ImportError: It is not installed.
    """
    with open_file_limit_kept():
        import mlx_lm  # noqa: F401
