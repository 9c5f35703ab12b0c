"""An optimised BLAS of this machine in place of the plain one that MLX's library for CPUs comes with.

MLX multiplies matrices of 32 bits by the standard functions of BLAS. A library that is loaded for all others before
MLX is, and has these functions, is the one that they come from. Names without a path are found as the system finds
libraries of any program; nothing is looked for elsewhere, and none comes with this program.

It does not import MLX.
"""

import ctypes
import resource
import subprocess
import sys
from collections.abc import Sequence

CANDIDATES = (
    # OpenBLAS: of Fedora with threads and with OpenMP; of the others, and of Fedora without threads.
    "libopenblasp.so.0",
    "libopenblaso.so.0",
    "libopenblas.so.0",
    "libblis-mt.so.4",
    "libblis.so.4",
    "libmkl_rt.so.3",
    "libmkl_rt.so.2",
    "libmkl_rt.so",
)
"""Names of libraries, the first choice first."""

_FUNCTIONS = ("cblas_sgemm", "cblas_dgemm", "cblas_cgemm")
"""What MLX takes of a BLAS."""

_TRIAL_SECONDS = 30


def take(candidates: Sequence[str] = CANDIDATES) -> str | None:
    """Load the first of some libraries that is here and fits; call before MLX is imported.

    Nothing is loaded where a library is there already, such as a preloaded one, where it would be too late, or where
    the process may not have all the address space it wants: these libraries end the process that refuses them memory.

    Args:
        candidates: Names as the system's loader takes them.

    Returns:
        The library in use, as ``in_use`` names it.
    """
    is_limited = resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY
    if in_use() is None and "mlx.core" not in sys.modules and not is_limited:
        name = next(filter(_fits, candidates), None)
        if name is not None:
            ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
    return in_use()


def in_use() -> str | None:
    """Return the optimised BLAS that all libraries of this process see, such as "OpenBLAS 0.3.21"; None without one."""
    everything = ctypes.CDLL(None)
    config = _text_of(everything, "openblas_get_config")
    if config is not None:
        return " ".join(config.split()[:2])  # then come the options that it was built with
    version = _text_of(everything, "bli_info_get_version_str")
    if version is not None:
        return f"BLIS {version}"
    return "MKL" if hasattr(everything, "MKL_Get_Version_String") else None


def multiplies(name: str) -> bool:
    """Whether a library multiplies two small matrices; it may end the process."""
    matrix = (ctypes.c_float * 4)(1, 2, 3, 4)
    product = (ctypes.c_float * 4)()
    one, zero, size = ctypes.c_float(1), ctypes.c_float(0), 2
    row_major, as_it_is = 101, 111
    multiply = ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL).cblas_sgemm
    shape = (row_major, as_it_is, as_it_is, size, size, size)
    multiply(*shape, one, matrix, size, matrix, size, zero, product, size)
    return list(product) == [7, 10, 15, 22]


def _fits(name: str) -> bool:
    """Whether a library is here, and has the functions for integers of 32 bits."""
    try:
        library = ctypes.CDLL(name)
    except OSError:
        return False
    has_long_integers = "USE64BITINT" in (_text_of(library, "openblas_get_config") or "")
    if has_long_integers or not all(hasattr(library, each) for each in _FUNCTIONS):
        return False
    return "mkl" not in name or _succeeds_elsewhere(name)


def _succeeds_elsewhere(name: str) -> bool:
    """Whether a library works in a process of its own: MKL ends its process when parts of it are not installed."""
    trial = f"import sys; from {__name__} import multiplies; sys.exit(not multiplies({name!r}))"
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", trial], capture_output=True, check=False, timeout=_TRIAL_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _text_of(library: ctypes.CDLL, function: str) -> str | None:
    """Return what a function without arguments returns; None where the library has no such function."""
    if not hasattr(library, function):
        return None
    called = library[function]  # of its own, so that its type changes for no one else
    called.restype = ctypes.c_char_p
    text: bytes = called()
    return text.decode(errors="replace")
