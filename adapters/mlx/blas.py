"""An optimised BLAS of this machine, in place of the plain one that comes with MLX's CPU library.

MLX multiplies fp32 matrices with the standard BLAS functions. A library with these functions that is loaded globally
before MLX takes precedence. Libraries are loaded by name, so the system's loader searches its usual directories; this
program contains none, and does not search elsewhere.

This module does not import MLX.
"""

import ctypes
import resource
import subprocess
import sys
from collections.abc import Sequence

CANDIDATES = (
    # OpenBLAS: Fedora's with threads, Fedora's with OpenMP, then other distributions' and Fedora's without threads.
    "libopenblasp.so.0",
    "libopenblaso.so.0",
    "libopenblas.so.0",
    "libblis-mt.so.4",
    "libblis.so.4",
    "libmkl_rt.so.3",
    "libmkl_rt.so.2",
    "libmkl_rt.so",
)
"""Names of libraries in order of preference."""

_FUNCTIONS = ("cblas_sgemm", "cblas_dgemm", "cblas_cgemm")
"""The BLAS functions that MLX calls."""

_TRIAL_SECONDS = 30


def take(candidates: Sequence[str] = CANDIDATES) -> str | None:
    """Load the first usable library; call before MLX is imported.

    Nothing is loaded when such a library is in use already (preloaded, for example), when MLX is already imported, or
    when the process's address space is limited: these libraries end the process when they get no memory.

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
    """Return the optimised BLAS that is loaded globally in the process, such as "OpenBLAS 0.3.21"; None without one."""
    everything = ctypes.CDLL(None)
    config = _text_of(everything, "openblas_get_config")
    if config is not None:
        return " ".join(config.split()[:2])  # build options follow
    version = _text_of(everything, "bli_info_get_version_str")
    if version is not None:
        return f"BLIS {version}"
    return "MKL" if hasattr(everything, "MKL_Get_Version_String") else None


def multiplies(name: str) -> bool:
    """Whether a library multiplies two small matrices correctly; the call may end the process."""
    matrix = (ctypes.c_float * 4)(1, 2, 3, 4)
    product = (ctypes.c_float * 4)()
    one, zero, size = ctypes.c_float(1), ctypes.c_float(0), 2
    row_major, no_transpose = 101, 111
    multiply = ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL).cblas_sgemm
    shape = (row_major, no_transpose, no_transpose, size, size, size)
    multiply(*shape, one, matrix, size, matrix, size, zero, product, size)
    return list(product) == [7, 10, 15, 22]


def _fits(name: str) -> bool:
    """Whether a library is installed, and has the functions with 32-bit integers."""
    try:
        library = ctypes.CDLL(name)
    except OSError:
        return False
    has_long_integers = "USE64BITINT" in (_text_of(library, "openblas_get_config") or "")
    if has_long_integers or not all(hasattr(library, each) for each in _FUNCTIONS):
        return False
    return "mkl" not in name or _succeeds_elsewhere(name)


def _succeeds_elsewhere(name: str) -> bool:
    """Test a library in a separate process, since MKL ends its process when parts of it are not installed."""
    trial = f"import sys; from {__name__} import multiplies; sys.exit(not multiplies({name!r}))"
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", trial], capture_output=True, check=False, timeout=_TRIAL_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _text_of(library: ctypes.CDLL, function: str) -> str | None:
    """Call a function without arguments that returns text; None where the library has no such function."""
    if not hasattr(library, function):
        return None
    foreign = library[function]  # a new object, unlike an attribute, so that the return type changes for this call only
    foreign.restype = ctypes.c_char_p
    text: bytes = foreign()
    return text.decode(errors="replace")
