"""The first import of mlx-lm, without its side effects; and errors for exceptions of the libraries.

Importing this module imports mlx-lm. The packages ``engine``, ``prompting``, ``loading``, ``vision``, ``speech`` and
``embedding`` import it before anything else, so that their modules can import the libraries at the top.

``import mlx_lm`` lowers the process's limit on open files, permanently where the process may not raise it again, and
fails where the hard limit is lower than it expects. The import here only raises the limit: each file of a model's
weights stays open until it has been read, and macOS allows 256 open files.

An unexpected exception is reported by its type and place; its message is not, since it may quote user text.

Raises:
    BackendNotInstalledError: mlx or mlx-lm is not installed.
    ExecutionError: One of them cannot be imported; the ``ImportError`` is its cause.
"""

import contextlib
import importlib.util
import io
import resource
from collections.abc import Iterator

import attrs

from mlxk.domain.errors import (
    BackendNotInstalledError,
    ExecutionError,
    IncompatibleModelError,
    InsufficientMemoryError,
    MlxkError,
    RankLostError,
    StorageError,
)

_EXHAUSTED = (
    "bad_alloc",
    "can't start new thread",
    "Cannot allocate memory",
    "Insufficient Memory",
    "Resource temporarily unavailable",
    "Unable to allocate",
    "failed to map segment",
)
"""Substrings of the messages of MLX, NumPy and the system for lack of memory or threads."""

_COMPILING = ("[Compile::eval_cpu]", "temp_directory_path")
"""Substrings of MLX's messages when a kernel cannot be compiled in the folder for temporary files."""


def is_compile_failure(error: BaseException) -> bool:
    """Whether MLX failed to compile a kernel, which it can do without."""
    return isinstance(error, RuntimeError) and any(part in str(error) for part in _COMPILING)


def exhaustion(error: BaseException) -> MlxkError | None:
    """Return the error for an exception caused by lack of memory, threads or temporary space; None for others."""
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


_RING = "[ring]"
"""Beginning of MLX's message when another process of a distributed model has gone."""


def failed(error: BaseException, work: str) -> MlxkError:
    """Return the error for an unexpected exception of a library.

    Args:
        error: The exception.
        work: What failed, as the beginning of a sentence, such as "Loading 'name'".
    """
    if str(error).startswith(_RING):
        return RankLostError(
            "The model was spread over several processes, and one of them has gone.",
            hint="They are started again; send the request again in a moment.",
        )
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


_MAX_REASON_LENGTH = 300
"""Characters of a library's output that an error quotes."""


def import_failure(error: ImportError, purpose: str, *packages: str) -> MlxkError:
    """Return the error for libraries that cannot be imported: one is absent, or an installed one is broken.

    Args:
        error: The exception of the import.
        purpose: What needs the libraries, as the beginning of a sentence.
        packages: Packages whose name on PyPI is their module's name, with a hyphen for an underscore.
    """
    if (limit := exhaustion(error)) is not None:
        return type(limit)(f"{purpose} is not possible. {limit.message}", hint=limit.hint)
    module = (error.name or "").partition(".")[0]
    if isinstance(error, ModuleNotFoundError) and module and importlib.util.find_spec(module) is None:
        package = module.replace("_", "-")
        known = package in packages
        return BackendNotInstalledError(
            f"{purpose} needs {package if known else module}, which is not installed.",
            hint=f"Install it: pip install {package}" if known else "See what else is missing: pip check",
        )
    culprit = f"{error.name}, which" if module else "a library that"
    return ExecutionError(
        f"{purpose} needs {culprit} cannot be imported.", hint="See what does not fit together: pip check"
    )


@contextlib.contextmanager
def contained(model: str) -> Iterator[None]:
    """Keep libraries inside the block from writing to standard output and from exiting the process.

    Loading a model may print, and importing some architectures exits when a package is missing.

    Args:
        model: Name of the model, for the error.

    Raises:
        IncompatibleModelError: A library called ``exit``; quotes what it printed before.
    """
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            yield
    except SystemExit as error:
        reason = " ".join(printed.getvalue().split())[:_MAX_REASON_LENGTH] or "it does not say why"
        raise IncompatibleModelError(f"'{model}' cannot be loaded; its library gives up: {reason}") from error


FILES_OF_A_MODEL = 4096
"""Wanted limit of open files; the system may allow less."""


def raise_file_limit() -> None:
    """Raise this process's limit of open files as far as allowed, up to ``FILES_OF_A_MODEL``; never lower it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = FILES_OF_A_MODEL if hard == resource.RLIM_INFINITY else min(FILES_OF_A_MODEL, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        with contextlib.suppress(OSError, ValueError):  # the kernel of macOS may allow less than the hard limit
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


@contextlib.contextmanager
def _unchanged_file_limit() -> Iterator[None]:
    """Disable ``resource.setrlimit`` inside the block."""
    original = resource.setrlimit
    resource.setrlimit = lambda *_: None
    try:
        yield
    finally:
        resource.setrlimit = original


raise_file_limit()
try:
    with _unchanged_file_limit():
        import mlx_lm  # noqa: F401
except ImportError as error:
    raise import_failure(error, "Running text models", "mlx", "mlx-lm") from error
