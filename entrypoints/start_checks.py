"""Checks before models are loaded: limits and folders of the process, optional packages, and the reach of a server."""

import ipaddress
import resource
import tempfile
from importlib.util import find_spec

from mlxk.domain.errors import BackendNotInstalledError, InsufficientMemoryError, StorageError
from mlxk.entrypoints.settings import ServerSettings

FEWEST_DESCRIPTORS = 64
"""Open files that a server with one connection needs, with some to spare."""

FEWEST_BYTES = 384 * 2**20
"""Address space that the libraries and the smallest model need."""

_NEEDED_BYTES = 256 * 1024
"""Free space that the folder for temporary files must have."""


def is_loopback(host: str) -> bool:
    """Whether a host is reachable from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def offers_page(server: ServerSettings) -> bool:
    """Whether a server has the chat page; by default only one that is reachable from this machine only."""
    enabled = is_loopback(server.host) if server.page is None else server.page
    return enabled and server.embed_model is None


def require_temporary_folder(folder: str | None) -> None:
    """Check that temporary files can be written: MLX compiles kernels there, and uploads of recordings go there.

    Args:
        folder: The folder of TMPDIR; None for the default of the system.

    Raises:
        StorageError: It cannot be written.
    """
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(_NEEDED_BYTES))
            file.flush()
    except OSError as error:
        name = f" '{folder}'" if folder else ""
        raise StorageError(
            f"the folder for temporary files{name} cannot be used: {error.strerror}",
            hint="Set TMPDIR to a folder with free space.",
        ) from error


def require_address_space() -> None:
    """Check that the libraries fit into the address space; their import would otherwise abort the process.

    Raises:
        InsufficientMemoryError: The limit of the process is too small.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY and soft < FEWEST_BYTES:
        raise InsufficientMemoryError(
            f"the limit of address space is {soft // 2**20} MiB, and models need at least {FEWEST_BYTES // 2**20} MiB",
            hint="Raise it: ulimit -v unlimited",
        )


def require_descriptors() -> None:
    """Check that a server may open enough files to answer one client.

    Raises:
        StorageError: The limit of the process is too small.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < FEWEST_DESCRIPTORS:
        raise StorageError(
            f"the limit of open files is {hard}, and a server needs at least {FEWEST_DESCRIPTORS}",
            hint="Raise it: ulimit -n 1024",
        )


_EXPORTER = ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http")


def require_exporter() -> None:
    """Check that the packages that send traces are installed.

    Raises:
        BackendNotInstalledError: One is missing.
    """
    try:
        installed = all(find_spec(name) is not None for name in _EXPORTER)
    except (ImportError, ValueError):  # a parent package is missing, or another module has its name
        installed = False
    if not installed:
        raise BackendNotInstalledError(
            "--otlp needs the OpenTelemetry SDK, which is not installed", hint="Install it: pip install 'mlxk[otel]'"
        )
