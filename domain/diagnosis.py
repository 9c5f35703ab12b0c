"""The diagnosis: facts about an installation and its machine, and the rules that find faults in them.

Entrypoints word why a fault matters and how to fix it.
"""

import enum
from collections.abc import Iterator, Sequence

import attrs

from mlxk.domain.text import in_one_unit

OLDEST_MACOS = (14, 0)
"""The oldest release for which the array library is built."""

NEWEST_PYTHON = (3, 14)
"""The newest version that this program is tested with."""

LITTLE_SPACE_BYTES = 5 * 10**9
"""Free space below which a small model and its download do not fit."""

FEW_DESCRIPTORS = 256
"""A limit of open files below this is used up by a few clients of a server."""

LARGEST_WIRED_SHARE = 0.95
"""Share of the memory above which the GPU's limit leaves the system too little."""

CLOCK_TOLERANCE_SECONDS = 300.0
"""Clock error above which certificates and tokens may count as invalid."""


class CheckStatus(enum.Enum):
    """The result of one check; failures change the program's exit status, warnings do not."""

    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"


class CheckGroup(enum.Enum):
    """The subjects of the checks, in display order."""

    SYSTEM = "system"
    PACKAGES = "packages"
    COMPUTING = "computing"
    STORAGE = "storage"
    HUB = "hub"
    MODELS = "models"
    SERVER = "server"
    SETTINGS = "settings"
    HOSTS = "hosts"
    LINKS = "links"


class Fault(enum.Enum):
    """What can be wrong; the value is the stable name."""

    ADDRESS_ELSEWHERE = "address_elsewhere"
    ADDRESS_PUBLIC = "address_public"
    BACKEND_MISSING = "backend_missing"
    BACKEND_NOT_USED = "backend_not_used"
    BROKEN_IMPORT = "broken_import"
    BROKEN_MODEL = "broken_model"
    CLOCK_WRONG = "clock_wrong"
    CROWDED_PATH = "another_program_first"
    DUPLICATE_PACKAGE = "duplicate_package"
    EXPOSED_SECRET = "exposed_secret"
    FEW_DESCRIPTORS = "few_descriptors"
    FOLDER_MISSING_TARGET = "link_to_nowhere"
    FOLDER_NOT_A_FOLDER = "not_a_folder"
    FOLDER_NOT_WRITABLE = "not_writable"
    GPU_UNUSED = "gpu_unused"
    HOST_FAILED = "host_failed"
    HOST_KEY_CHANGED = "host_key_changed"
    HOST_KEY_UNKNOWN = "host_key_unknown"
    HOST_REFUSED = "host_refused"
    HOST_SILENT = "host_silent"
    HOST_UNREACHABLE = "host_unreachable"
    HUB_OFFLINE = "hub_offline"
    HUB_UNREACHABLE = "hub_unreachable"
    INTEL_MAC = "intel_mac"
    LINKS_NOT_MEASURED = "links_not_measured"
    LINK_BROKEN = "link_broken"
    LINK_ELSEWHERE = "link_elsewhere"
    LITTLE_ADDRESS_SPACE = "little_address_space"
    LITTLE_SPACE = "little_space"
    MEMORY_UNKNOWN = "memory_unknown"
    MISSING_PACKAGE = "missing_package"
    MODELS_UNREADABLE = "models_unreadable"
    MODEL_ABSENT = "model_absent"
    MODEL_DIFFERS = "model_differs"
    MODEL_INDIVISIBLE = "model_indivisible"
    MODEL_NOT_COMPARED = "model_not_compared"
    MODEL_TOO_LARGE = "model_too_large"
    NO_BLAS = "no_blas"
    NO_INTERPRETER = "no_interpreter"
    NO_METAL = "no_metal"
    NO_PROGRAM = "no_program"
    NO_SSH = "no_ssh"
    OLD_MACOS = "old_macos"
    PARTIAL_DOWNLOAD = "partial_download"
    PORTS_TAKEN = "ports_taken"
    PORT_TAKEN = "port_taken"
    PYTHON_UNTESTED = "python_untested"
    ROSETTA = "rosetta"
    SERVER_SILENT = "server_silent"
    SETTINGS_INVALID = "settings_invalid"
    SHARE_TOO_LARGE = "share_too_large"
    TOKEN_REJECTED = "token_rejected"
    UNENCRYPTED_HUB = "unencrypted_hub"
    UNKNOWN_VARIABLE = "unknown_variable"
    UNTESTED_VERSION = "untested_version"
    VERSION_DIFFERS = "version_differs"
    WIRED_LIMIT = "wired_limit"


FAILURES = frozenset(
    {
        Fault.ADDRESS_ELSEWHERE,
        Fault.BACKEND_MISSING,
        Fault.BROKEN_IMPORT,
        Fault.BROKEN_MODEL,
        Fault.FOLDER_MISSING_TARGET,
        Fault.FOLDER_NOT_A_FOLDER,
        Fault.FOLDER_NOT_WRITABLE,
        Fault.HOST_FAILED,
        Fault.HOST_KEY_CHANGED,
        Fault.HOST_KEY_UNKNOWN,
        Fault.HOST_REFUSED,
        Fault.HOST_SILENT,
        Fault.HOST_UNREACHABLE,
        Fault.HUB_UNREACHABLE,
        Fault.INTEL_MAC,
        Fault.LINK_BROKEN,
        Fault.LITTLE_ADDRESS_SPACE,
        Fault.MISSING_PACKAGE,
        Fault.MODELS_UNREADABLE,
        Fault.MODEL_ABSENT,
        Fault.MODEL_DIFFERS,
        Fault.MODEL_INDIVISIBLE,
        Fault.MODEL_NOT_COMPARED,
        Fault.NO_INTERPRETER,
        Fault.NO_METAL,
        Fault.NO_PROGRAM,
        Fault.NO_SSH,
        Fault.OLD_MACOS,
        Fault.PORTS_TAKEN,
        Fault.ROSETTA,
        Fault.SETTINGS_INVALID,
        Fault.TOKEN_REJECTED,
        Fault.VERSION_DIFFERS,
    }
)
"""Faults because of which something does not work; all other faults are warnings."""


_NAMED_PREFIXES = ("mlx", "huggingface")
"""Name prefixes of the packages that are listed even when all is well."""


@attrs.frozen
class Finding:
    """The result of one check."""

    check: str
    """Stable name of the check; several findings may have the same."""
    group: CheckGroup
    evidence: str
    """What the check observed, in words."""
    fault: Fault | None = None
    """None when all is well."""
    subject: str = ""
    """The path, package or name at fault, for the sentence that tells how to fix it."""
    host: str | None = None
    """The host of a hosts file; None for findings about this machine's installation, and about links."""

    @property
    def status(self) -> CheckStatus:
        """Its severity."""
        if self.fault is None:
            return CheckStatus.OK
        return CheckStatus.FAILURE if self.fault in FAILURES else CheckStatus.WARNING


@attrs.frozen
class PlatformFacts:
    """The system on which the program runs."""

    system: str
    """``darwin``, ``linux`` or another."""
    release: str
    """Name and version, for people."""
    machine: str
    """The processor's architecture, as this process sees it."""
    python: tuple[int, int, int]
    macos: tuple[int, int] | None = None
    translated: bool = False
    """Whether the process runs in an emulator of another architecture."""
    descriptors: int | None = None
    """Limit of open files; None without a limit."""
    address_space_bytes: int | None = None
    """Limit of the address space; None without a limit."""


@attrs.frozen
class PackageFacts:
    """A package that the program needs."""

    name: str
    wanted: str
    """The range of versions that the program is tested with, such as ``<0.33,>=0.32.4``."""
    version: str | None
    """None when it is not installed."""
    tested: bool = True
    """Whether the version is in the range."""
    places: tuple[str, ...] = ()
    """Every directory of the search path that has it; Python imports the first."""


@attrs.frozen
class ComputingFacts:
    """The computing libraries and their device, probed in a separate process."""

    failures: tuple[tuple[str, str], ...] = ()
    """Module that cannot be imported, and the reason."""
    device: str | None = None
    """The default device; None when the array library cannot be imported."""
    metal: bool = False
    nvidia: bool = False
    """Whether there is a GPU of this vendor, with its driver."""
    working_set_bytes: int | None = None
    """Recommended maximum of the GPU's working set; None where the system does not report it."""
    wired_limit_bytes: int | None = None
    """The user's limit for GPU memory; None for the system's default."""


@attrs.frozen
class FolderFacts:
    """A directory, or the path where one would be created."""

    path: str
    exists: bool
    is_directory: bool = True
    leads_nowhere: bool = False
    """Whether it, or a parent directory, is a dangling link."""
    writable: bool = True
    """Whether files can be created in it; if it does not exist, whether it can be created."""
    free_bytes: int | None = None


@attrs.frozen
class PortFacts:
    """A port that a server would use."""

    number: int
    taken: bool
    holder: str | None = None
    """The program that uses it; None where this user may not see that."""


def judge_platform(facts: PlatformFacts, least_address_space: int) -> Iterator[Finding]:
    """Yield a finding for each aspect of the system.

    Args:
        facts: The system.
        least_address_space: Bytes of address space that the libraries need.
    """
    group = CheckGroup.SYSTEM
    fault = None
    if facts.system == "darwin" and facts.translated:
        fault = Fault.ROSETTA
    elif facts.system == "darwin" and facts.machine != "arm64":
        fault = Fault.INTEL_MAC
    elif facts.macos is not None and facts.macos < OLDEST_MACOS:
        fault = Fault.OLD_MACOS
    yield Finding("system", group, f"{facts.release}, {facts.machine}", fault)
    version = ".".join(map(str, facts.python))
    yield Finding(
        "python", group, f"Python {version}", Fault.PYTHON_UNTESTED if facts.python[:2] > NEWEST_PYTHON else None
    )
    few = facts.descriptors is not None and facts.descriptors < FEW_DESCRIPTORS
    limit = "no limit" if facts.descriptors is None else f"at most {facts.descriptors}"
    yield Finding("open_files", group, f"open files: {limit}", Fault.FEW_DESCRIPTORS if few else None)
    if facts.address_space_bytes is not None:
        little = facts.address_space_bytes < least_address_space
        seen = f"limit of address space: {facts.address_space_bytes // 2**20} MiB"
        yield Finding("address_space", group, seen, Fault.LITTLE_ADDRESS_SPACE if little else None)


def judge_packages(packages: Sequence[PackageFacts]) -> Iterator[Finding]:
    """Yield a finding for each package at fault, and one for all others."""
    group, good = CheckGroup.PACKAGES, []
    for package in packages:
        name, version, places = package.name, package.version, package.places
        if version is None:
            yield Finding("package", group, f"{name} is not installed", Fault.MISSING_PACKAGE, name)
        elif len(places) > 1:
            seen = f"{name} {version} is installed {len(places)} times: {', '.join(places)}"
            yield Finding("package", group, seen, Fault.DUPLICATE_PACKAGE, name)
        elif not package.tested:
            seen = f"{name} {version}, tested: {package.wanted}"
            yield Finding("package", group, seen, Fault.UNTESTED_VERSION, f"{name}{package.wanted}")
        else:
            good.append(f"{name} {version}")
    if good:
        named = [package for package in good if package.startswith(_NAMED_PREFIXES)]
        others = len(good) - len(named)
        seen = ", ".join([*named, f"{others} others"] if named and others else named or [f"{others} packages"])
        yield Finding("package", group, f"as tested: {seen}")


def judge_computing(facts: ComputingFacts, total_bytes: int | None, platform: PlatformFacts) -> Iterator[Finding]:
    """Yield findings about the computing libraries and their device.

    Args:
        facts: The libraries and their device.
        total_bytes: The machine's memory; None when unknown.
        platform: The system.
    """
    for module, reason in facts.failures:
        seen = f"{module} cannot be imported: {reason}"
        yield Finding("import", CheckGroup.PACKAGES, seen, Fault.BROKEN_IMPORT, module)
    if facts.device is None:
        return
    fault = None
    if platform.system == "darwin" and not facts.metal:
        fault = Fault.NO_METAL
    elif facts.nvidia and facts.device == "cpu":
        fault = Fault.GPU_UNUSED
    seen = f"models are computed on the {facts.device.upper()}"
    if facts.working_set_bytes is not None:
        seen += f", whose working set is {in_one_unit(facts.working_set_bytes)[0]}"
    yield Finding("device", CheckGroup.COMPUTING, seen, fault)
    if facts.wired_limit_bytes and total_bytes:
        wired, total = in_one_unit(facts.wired_limit_bytes, total_bytes)
        seen = f"the GPU may use {wired} of {total}"
        large = facts.wired_limit_bytes > LARGEST_WIRED_SHARE * total_bytes
        yield Finding("wired_limit", CheckGroup.COMPUTING, seen, Fault.WIRED_LIMIT if large else None)


def judge_folder(check: str, facts: FolderFacts, *, holds_models: bool = False) -> Finding:
    """Return the finding about a directory.

    Args:
        check: Name of the check.
        facts: The directory.
        holds_models: Whether models are stored there, so that it needs space.
    """
    fault, seen = None, facts.path
    if facts.leads_nowhere:
        fault, seen = Fault.FOLDER_MISSING_TARGET, f"{facts.path} is a link to nowhere"
    elif not facts.is_directory:
        fault, seen = Fault.FOLDER_NOT_A_FOLDER, f"{facts.path} is not a folder"
    elif not facts.writable:
        missing = "" if facts.exists else " does not exist and"
        fault, seen = Fault.FOLDER_NOT_WRITABLE, f"{facts.path}{missing} cannot be written"
    else:
        seen += "" if facts.exists else " (made when it is needed)"
        if facts.free_bytes is not None:
            seen += f", {in_one_unit(facts.free_bytes)[0]} free"
            fault = Fault.LITTLE_SPACE if holds_models and facts.free_bytes < LITTLE_SPACE_BYTES else None
    return Finding(check, CheckGroup.STORAGE, seen, fault, facts.path)


def judge_port(facts: PortFacts, *, own_server: bool) -> Finding:
    """Return the finding about the port of the server.

    Args:
        facts: The port.
        own_server: Whether a server of this program, run by this user, has the port.
    """
    if not facts.taken:
        return Finding("port", CheckGroup.SERVER, f"port {facts.number} is free")
    if own_server:
        return Finding("port", CheckGroup.SERVER, f"port {facts.number} is that of your running server")
    holder = facts.holder or "another program"
    seen = f"port {facts.number} is taken by {holder}"
    return Finding("port", CheckGroup.SERVER, seen, Fault.PORT_TAKEN, str(facts.number))


def judge_clock(difference_seconds: float, compared_with: str) -> Finding:
    """Return the finding about the clock.

    Args:
        difference_seconds: This clock minus the reference clock.
        compared_with: Name of the reference clock.
    """
    if abs(difference_seconds) <= CLOCK_TOLERANCE_SECONDS:
        return Finding("clock", CheckGroup.SYSTEM, f"the clock agrees with {compared_with}")
    direction = "ahead of" if difference_seconds > 0 else "behind"
    seen = f"the clock is {abs(difference_seconds) / 3600:.1f} hours {direction} {compared_with}"
    return Finding("clock", CheckGroup.SYSTEM, seen, Fault.CLOCK_WRONG)
