"""What a program that runs models needs of its process and machine, checked before anything is loaded; its reach."""

import ipaddress
import resource
import tempfile
from importlib.util import find_spec

from mlxk.domain.errors import BackendNotInstalledError, InsufficientMemoryError, StorageError
from mlxk.entrypoints.settings import ServerSettings

FEWEST_DESCRIPTORS = 64
"""Open files that a server with one connection needs, with some to spare."""

FEWEST_BYTES = 384 * 2**20
"""Address space of the libraries and the smallest model."""

_NEEDED_BYTES = 256 * 1024


def is_loopback(host: str) -> bool:
    """Whether a host is reachable from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def offers_page(server: ServerSettings) -> bool:
    """Whether a server has the chat page: where nothing says so, if it is reachable from this machine only."""
    wanted = is_loopback(server.host) if server.page is None else server.page
    return wanted and server.embed_model is None


def require_temporary_folder(folder: str | None) -> None:
    """Refuse to start without a folder for temporary files: kernels are compiled and recordings received there.

    Args:
        folder: As the environment names it; None for the default of the system.

    Raises:
        StorageError: It cannot be written.
    """
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(_NEEDED_BYTES))
            file.flush()
    except OSError as error:
        named = f" '{folder}'" if folder else ""
        raise StorageError(
            f"the folder for temporary files{named} cannot be used: {error.strerror}",
            hint="Set TMPDIR to a folder with free space.",
        ) from error


def require_address_space() -> None:
    """Refuse to start where not even the libraries fit, whose imports would abort the process.

    Raises:
        InsufficientMemoryError: The process may have too little address space.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY and soft < FEWEST_BYTES:
        raise InsufficientMemoryError(
            f"the limit of address space is {soft // 2**20} MiB, and models need at least {FEWEST_BYTES // 2**20} MiB",
            hint="Raise it: ulimit -v unlimited",
        )


def require_descriptors() -> None:
    """Refuse to start a server that could not answer anybody.

    Raises:
        StorageError: The process may have too few open files.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < FEWEST_DESCRIPTORS:
        raise StorageError(
            f"the limit of open files is {hard}, and a server needs at least {FEWEST_DESCRIPTORS}",
            hint="Raise it: ulimit -n 1024",
        )


_EXPORTER = ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http")


def require_exporter() -> None:
    """Refuse to start a server that could not send its traces.

    Raises:
        BackendNotInstalledError: The packages for it are not installed.
    """
    try:
        found = all(find_spec(name) is not None for name in _EXPORTER)
    except (ImportError, ValueError):  # a package above it is missing, or is not what its name says
        found = False
    if not found:
        raise BackendNotInstalledError(
            "--otlp needs the OpenTelemetry SDK, which is not installed", hint="Install it: pip install 'mlxk[otel]'"
        )
