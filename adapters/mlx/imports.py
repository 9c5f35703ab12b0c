"""Using mlx-lm and its siblings without what they do to the process on the way.

``import mlx_lm`` lowers the process's limit on open files, for good where the process may not raise it again, and fails
where the hard limit is lower than it expects. Here the limit stays as it was.

Loading a model may print to standard output, which is for data, and importing the code of some architectures ends the
program when a package of theirs is missing. Here neither reaches anybody.
"""

import contextlib
import io
from collections.abc import Iterator

from mlxk.domain.errors import IncompatibleModelError

_MAX_REASON = 300
"""Characters of what a library printed that are repeated; it is one line, as far as seen."""


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


@contextlib.contextmanager
def contained(model: str) -> Iterator[None]:
    """Keep libraries inside the block from writing to standard output and from ending the program.

    Args:
        model: What the block is about, as people call it.

    Raises:
        IncompatibleModelError: A library wanted to end the program; says what it printed before.
    """
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            yield
    except SystemExit as error:
        reason = " ".join(printed.getvalue().split())[:_MAX_REASON] or "it does not say why"
        raise IncompatibleModelError(f"'{model}' cannot be loaded; its library gives up: {reason}") from error
