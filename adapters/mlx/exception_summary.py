"""A summary of an unexpected exception that is safe to report, and the exceptions of a process at its limits.

The summary is the exception's type and place; its message may quote text.
"""

import attrs

from mlxk.domain.errors import ExecutionError, InsufficientMemoryError, MlxkError, StorageError

_EXHAUSTED = (
    "bad_alloc",
    "can't start new thread",
    "Cannot allocate memory",
    "Insufficient Memory",
    "Resource temporarily unavailable",
    "Unable to allocate",
    "failed to map segment",
)
"""Parts of messages of MLX, NumPy and the system for too little memory or too few threads."""

_COMPILING = ("[Compile::eval_cpu]", "temp_directory_path")
"""Parts of messages of MLX when a kernel cannot be compiled in the folder for temporary files."""


def is_compile_failure(error: BaseException) -> bool:
    """Whether MLX could not compile a kernel; it can do without."""
    return isinstance(error, RuntimeError) and any(part in str(error) for part in _COMPILING)


def exhaustion(error: BaseException) -> MlxkError | None:
    """Return the error for an exception that says what the process ran out of; None for others."""
    if isinstance(error, MemoryError) or (
        isinstance(error, (RuntimeError, OSError, ImportError)) and any(part in str(error) for part in _EXHAUSTED)
    ):
        return InsufficientMemoryError(
            "This process may not have as much memory, or as many threads, as this takes.",
            hint="See its limits: ulimit -a",
        )
    if is_compile_failure(error):
        return StorageError(
            "A kernel cannot be compiled in the folder for temporary files.",
            hint="Set TMPDIR to a folder with free space.",
        )
    return None


def failed(error: BaseException, work: str) -> MlxkError:
    """Return the error for an unexpected exception of a library.

    Args:
        error: The exception.
        work: What failed, as the beginning of a sentence, such as "Loading 'name'".
    """
    summary = ExceptionSummary.of(error)
    return exhaustion(error) or ExecutionError(
        f"{work} failed in a library ({summary.kind} in {summary.place}).",
        hint="A setting in the model's config.json may be wrong, or the library has a fault: fetch the model again, try"
        " another conversion of it, or report this line.",
        detail={"where": summary.place},
    )


@attrs.frozen
class ExceptionSummary:
    """An exception's type and place."""

    kind: str
    """The name of its type."""
    place: str
    """The module and line that raised it."""

    @classmethod
    def of(cls, error: BaseException) -> "ExceptionSummary":
        """Summarize a caught exception; keeps no reference to its frames."""
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        if trace is None:
            return cls(type(error).__name__, "unknown")
        module = trace.tb_frame.f_globals.get("__name__", "unknown")
        return cls(type(error).__name__, f"{module}:{trace.tb_lineno}")
