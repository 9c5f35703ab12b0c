"""The diagnosis: each fault is found, by the facts of a machine in memory, and a machine without any has none."""

import datetime
import json
import struct
from typing import Any

import attrs
import pytest
from doubles.backend_registry import InMemoryBackendRegistry
from doubles.clock import InMemoryClock
from doubles.installation_probe import InMemoryInstallationProbe
from doubles.memory_probe import InMemoryMemoryProbe
from doubles.model_cache import CachedModel, InMemoryModelCache
from doubles.model_files import InMemoryModelFiles
from doubles.model_hub import InMemoryModelHub
from doubles.model_source import InMemoryModelSource
from doubles.running_servers import InMemoryRunningServers
from doubles.workspace_store import InMemoryWorkspaceStore

from mlxk.application.ports.other_processes import RunningServer
from mlxk.application.use_cases.describe_model import DescribeModel
from mlxk.application.use_cases.diagnose import Configuration, DiagnoseInstallation
from mlxk.application.use_cases.resolve_model import ResolveModel
from mlxk.domain.diagnosis import (
    FAILURES,
    CheckGroup,
    CheckStatus,
    ComputingFacts,
    Fault,
    Finding,
    FolderFacts,
    PackageFacts,
    PlatformFacts,
    PortFacts,
)
from mlxk.domain.errors import AccessDeniedError, NetworkError, StorageError
from mlxk.domain.models.footprint import Matrices, MemoryReading
from mlxk.entrypoints.cli.render import findings as doctor

GIB = 1024**3
COMMIT = "a" * 40
LINUX = PlatformFacts("linux", "Linux 6.1", "x86_64", (3, 12, 1), descriptors=1024)
MAC = PlatformFacts("darwin", "macOS 15.1", "arm64", (3, 12, 1), macos=(15, 1))
METAL = ComputingFacts(device="gpu", metal=True, working_set_bytes=24 * GIB)
GOOD = PackageFacts("mlx", "<0.33,>=0.32.4", "0.32.4", places=("/opt/mlxk/lib",))
RIGHT = Configuration(
    model_folder="/cache",
    state_folder="/state",
    temporary_folder="/tmp",
    port=8000,
    address="https://huggingface.co",
    encrypted=True,
    has_token=True,
    offline=False,
    settings_path="/config.toml",
)


def weights(numbers: int) -> bytes:
    """Return a weight file of so many numbers, which ends after its header."""
    tensor = {"dtype": "F32", "shape": [numbers], "data_offsets": [0, 4 * numbers]}
    header = json.dumps({"__metadata__": {"format": "mlx"}, "w": tensor}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(4)


class Machine:
    """A machine in memory with one model; its facts may be changed before it is diagnosed."""

    def __init__(self, platform: PlatformFacts = LINUX, computing: ComputingFacts | None = None) -> None:
        self.probe = InMemoryInstallationProbe(platform, (GOOD,), computing)
        self.memory = InMemoryMemoryProbe(MemoryReading(32 * GIB, 16 * GIB))
        self.clock = InMemoryClock(datetime.datetime(2026, 6, 1, tzinfo=datetime.UTC))
        self.cache = InMemoryModelCache({"org/m": CachedModel((COMMIT,))})
        self.servers = InMemoryRunningServers()
        self.hub = InMemoryModelHub()
        self.configuration = RIGHT
        self.numbers = 1

    def diagnose(self, *, online: bool = False, **changes: Any) -> tuple[Finding, ...]:
        text = {"config.json": b'{"model_type": "llama"}', "tokenizer.json": b"{}"}
        files = InMemoryModelFiles({f"/cache/org/m/{COMMIT}": {**text, "model.safetensors": weights(self.numbers)}})
        workspaces = InMemoryWorkspaceStore({}, home="/ws")
        resolve = ResolveModel(self.cache, workspaces, InMemoryModelSource({}))
        describe = DescribeModel(files, workspaces, InMemoryBackendRegistry({"mlx-lm": {"llama"}}), self.cache, "org")
        looked_at = (self.probe, self.memory, self.clock, self.cache, resolve, describe, self.servers)
        use_case = DiagnoseInstallation(*looked_at, lambda: self.hub)
        return use_case(attrs.evolve(self.configuration, **changes), online=online)

    def faults(self, **options: Any) -> list[Fault]:
        return [each.fault for each in self.diagnose(**options) if each.fault]


@pytest.mark.parametrize("machine", [Machine(), Machine(MAC, METAL)], ids=["linux", "mac"])
def test_a_machine_without_a_fault_has_none(machine: Machine) -> None:
    findings = machine.diagnose(online=True)
    assert [each for each in findings if each.fault] == []
    assert doctor.summary(findings) == "All is well."
    assert {each.group for each in findings} == set(doctor.TITLES) - {CheckGroup.HOSTS, CheckGroup.LINKS}


@pytest.mark.parametrize(
    ("faults", "said"),
    [
        ([None, Fault.INTEL_MAC], "1 failure, 0 warnings"),
        ([Fault.INTEL_MAC, Fault.OLD_MACOS, Fault.PYTHON_UNTESTED], "2 failures, 1 warning"),
        ([Fault.PYTHON_UNTESTED], "0 failures, 1 warning"),
        ([None, None], "All is well."),
    ],
)
def test_failures_and_warnings_are_counted(faults: list[Fault | None], said: str) -> None:
    assert doctor.summary([Finding("one", CheckGroup.HOSTS, "seen", each) for each in faults]) == said


def test_only_links_without_a_fault_are_in_their_table() -> None:
    link = Finding("link", CheckGroup.LINKS, "fast")
    others = (attrs.evolve(link, fault=Fault.INTEL_MAC), attrs.evolve(link, check="ring"))
    assert [doctor.is_in_table(each) for each in (link, *others)] == [True, False, False]


@pytest.mark.parametrize(
    ("platform", "computing", "fault"),
    [
        (attrs.evolve(MAC, machine="x86_64", translated=True), METAL, Fault.ROSETTA),
        (attrs.evolve(MAC, machine="x86_64"), METAL, Fault.INTEL_MAC),
        (attrs.evolve(MAC, macos=(13, 7)), METAL, Fault.OLD_MACOS),
        (MAC, ComputingFacts(device="cpu"), Fault.NO_METAL),
        (MAC, attrs.evolve(METAL, wired_limit_bytes=32 * GIB), Fault.WIRED_LIMIT),
        (attrs.evolve(LINUX, python=(3, 15, 0)), None, Fault.PYTHON_UNTESTED),
        (attrs.evolve(LINUX, descriptors=64), None, Fault.FEW_DESCRIPTORS),
        (attrs.evolve(LINUX, address_space_bytes=1), None, Fault.LITTLE_ADDRESS_SPACE),
        (LINUX, ComputingFacts(device="cpu", nvidia=True), Fault.GPU_UNUSED),
        (LINUX, ComputingFacts(failures=(("mlx.core", "ImportError: no"),)), Fault.BROKEN_IMPORT),
    ],
    ids=lambda value: value.value if isinstance(value, Fault) else None,
)
def test_a_fault_of_the_platform_is_found(
    platform: PlatformFacts, computing: ComputingFacts | None, fault: Fault
) -> None:
    assert Machine(platform, computing).faults(least_address_space=GIB) == [fault]


@pytest.mark.parametrize(
    ("package", "fault"),
    [
        (attrs.evolve(GOOD, version=None, tested=False, places=()), Fault.MISSING_PACKAGE),
        (attrs.evolve(GOOD, version="0.40", tested=False), Fault.UNTESTED_VERSION),
        (attrs.evolve(GOOD, places=("/a", "/b")), Fault.DUPLICATE_PACKAGE),
    ],
    ids=lambda value: value.value if isinstance(value, Fault) else None,
)
def test_a_fault_of_a_package_is_found(package: PackageFacts, fault: Fault) -> None:
    machine = Machine()
    machine.probe = InMemoryInstallationProbe(LINUX, (package, attrs.evolve(GOOD, name="mlx-lm")))
    assert machine.faults() == [fault]


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"exists": False, "leads_nowhere": True}, Fault.FOLDER_MISSING_TARGET),
        ({"exists": True, "is_directory": False}, Fault.FOLDER_NOT_A_FOLDER),
        ({"exists": False, "writable": False}, Fault.FOLDER_NOT_WRITABLE),
        ({"exists": True, "free_bytes": GIB}, Fault.LITTLE_SPACE),
    ],
    ids=lambda value: value.value if isinstance(value, Fault) else None,
)
def test_a_fault_of_the_cache_is_found(changes: dict[str, Any], fault: Fault) -> None:
    machine = Machine()
    machine.probe.folders["/cache"] = FolderFacts("/cache", **changes)
    assert machine.faults() == [fault]


def test_only_the_cache_needs_much_space() -> None:
    machine = Machine()
    machine.probe.folders["/state"] = FolderFacts("/state", exists=True, free_bytes=1)
    assert machine.faults() == []


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"offline": True}, Fault.HUB_OFFLINE),
        ({"encrypted": False}, Fault.UNENCRYPTED_HUB),
        ({"settings_faults": ("line 3: it is not valid TOML",)}, Fault.SETTINGS_INVALID),
        ({"unknown_variables": ("MLXK2_PROT has no effect.",)}, Fault.UNKNOWN_VARIABLE),
    ],
    ids=lambda value: value.value if isinstance(value, Fault) else None,
)
def test_a_fault_of_the_configuration_is_found(changes: dict[str, Any], fault: Fault) -> None:
    assert Machine().faults(**changes) == [fault]


def test_the_hub_is_asked_only_when_that_is_wanted() -> None:
    machine = Machine()
    machine.diagnose()
    assert machine.hub.requests == 0
    machine.hub.failure = AccessDeniedError("the hub does not accept the token")
    assert machine.faults(online=True) == [Fault.TOKEN_REJECTED]
    machine.hub.failure = NetworkError("no route to host")
    assert machine.faults(online=True) == [Fault.HUB_UNREACHABLE]


def test_faults_of_models_are_found() -> None:
    machine = Machine()
    machine.cache.models["org/half"] = CachedModel(unfinished=1)
    assert machine.faults() == [Fault.PARTIAL_DOWNLOAD]
    machine.numbers = 10  # more than the file has
    found = [each for each in machine.diagnose() if each.fault is Fault.BROKEN_MODEL]
    assert [each.subject for each in found] == ["org/m"]
    assert "mlxk pull org/m --force-resume" in str(doctor.remedy(found[0]))


def test_models_that_cannot_be_read_are_one_fault() -> None:
    class Unreadable(InMemoryModelCache):
        def names(self) -> tuple[str, ...]:
            raise StorageError("/cache cannot be read: Permission denied")

    machine = Machine()
    machine.cache = Unreadable()
    found = [each for each in machine.diagnose() if each.group is CheckGroup.MODELS]
    assert [(each.evidence, each.fault) for each in found] == [
        ("/cache cannot be read: Permission denied", Fault.MODELS_UNREADABLE)
    ]


def test_the_largest_model_is_held_against_the_memory() -> None:
    machine = Machine()
    machine.memory.reading = MemoryReading(1024, 1024)
    assert machine.faults() == [Fault.MODEL_TOO_LARGE]
    machine.memory.reading = None
    assert machine.faults() == [Fault.MEMORY_UNKNOWN]


def test_a_cpu_multiplies_by_a_library_that_is_made_for_it() -> None:
    machine = Machine()
    machine.memory.multiplied_by = Matrices(on_cpu=True)
    assert machine.faults() == [Fault.NO_BLAS]
    for matrices in (Matrices(on_cpu=True, library="OpenBLAS 0.3.21"), Matrices(on_cpu=True, wanted=False)):
        machine.memory.multiplied_by = matrices
        assert machine.faults() == []


def test_a_port_is_somebodys_or_that_of_an_own_server() -> None:
    machine = Machine()
    machine.probe.ports[8000] = PortFacts(8000, taken=True, holder="ControlCe (process 512)")
    (found,) = [each for each in machine.diagnose() if each.fault]
    assert (found.fault, found.evidence) == (Fault.PORT_TAKEN, "port 8000 is taken by ControlCe (process 512)")
    machine.servers = InMemoryRunningServers(RunningServer("", 7, "http://127.0.0.1:8000", "1", ()))
    assert machine.faults() == []
    machine.servers.hidden = ("A server (process 9) does not respond.",)
    assert machine.faults() == [Fault.SERVER_SILENT]


def test_a_clock_before_the_installation_is_wrong() -> None:
    machine = Machine()
    machine.clock = InMemoryClock(datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC))
    assert machine.faults() == [Fault.CLOCK_WRONG]


def test_another_program_of_the_same_name_is_a_fault_where_it_comes_first() -> None:
    machine = Machine()
    machine.probe.found_programs = ("/opt/mlxk/bin/mlxk", "/usr/bin/mlxk")
    assert machine.faults() == []
    machine.probe.found_programs = ("/usr/bin/mlxk", "/opt/mlxk/bin/mlxk")
    assert machine.faults() == [Fault.CROWDED_PATH]


def test_files_with_secrets_are_for_their_owner() -> None:
    machine = Machine()
    machine.probe.exposed_files.add("/token")
    assert machine.faults(secret_files=("/token", "/other")) == [Fault.EXPOSED_SECRET]


def test_every_fault_has_its_sentences() -> None:
    assert doctor.ADVICE.keys() == set(Fault)
    for fault in Fault:
        finding = Finding("check", next(iter(doctor.TITLES)), "seen", fault, "subject")
        assert finding.status is (CheckStatus.FAILURE if fault in FAILURES else CheckStatus.WARNING)
        assert "{" not in f"{doctor.reason(finding)}{doctor.remedy(finding)}"


def test_a_report_names_nobody() -> None:
    group = next(iter(doctor.TITLES))
    findings = (
        Finding("a", group, "org/secret-model in /home/olga/models and /Users/olga/x"),
        Finding("b", group, "/srv/olga/.cache/hub, 3 GB free"),
    )
    text = doctor.report(findings, "/srv/olga/", ["org/secret-model", "secret-model"])
    assert "olga" not in text
    assert "secret" not in text
    assert "MODEL in /home/USER/models and /Users/USER/x" in text
    assert "~/.cache/hub, 3 GB free" in text


def test_lines_fit_a_terminal_and_follow_their_mark() -> None:
    machine = Machine()
    machine.probe.folders["/cache"] = FolderFacts("/cache", exists=True, leads_nowhere=True)
    (found,) = [each for each in machine.diagnose() if each.fault]
    assert doctor.finding_lines(found, 44) == (
        "[x]  /cache is a link to nowhere",
        "     Nothing can be read or written there.",
        "     Connect the disk that it leads to, or",
        "     remove the link: rm /cache",
    )
    assert len(doctor.finding_lines(found, None)) == 3
