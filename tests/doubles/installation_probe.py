"""In-memory double of the installation probe.

probe = InMemoryInstallationProbe(PlatformFacts("darwin", "macOS 13.6", "arm64", (3, 12, 1), (13, 6)))
probe.folders["/cache"] = FolderFacts("/cache", exists=False, leads_nowhere=True)
"""

import datetime

from mlxk.application.ports.installation import InstallationProbe
from mlxk.domain.diagnosis import ComputingFacts, FolderFacts, PackageFacts, PlatformFacts, PortFacts


class InMemoryInstallationProbe(InstallationProbe):
    """Returns given facts; a folder or port without given facts has no faults.

    Args:
        platform: The system.
        packages: Sorted by name.
        computing: The facts about the model libraries.
    """

    def __init__(
        self,
        platform: PlatformFacts,
        packages: tuple[PackageFacts, ...] = (),
        computing: ComputingFacts | None = None,
    ) -> None:
        self._platform = platform
        self._packages = packages
        self._computing = computing or ComputingFacts(device="cpu")
        self.folders: dict[str, FolderFacts] = {}
        self.exposed_files: set[str] = set()
        self.ports: dict[int, PortFacts] = {}
        self.found_programs = ("/opt/mlxk/bin/mlxk",)
        self.installed = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)

    def platform(self) -> PlatformFacts:
        return self._platform

    def packages(self) -> tuple[PackageFacts, ...]:
        return self._packages

    def computing(self) -> ComputingFacts:
        return self._computing

    def folder(self, path: str) -> FolderFacts:
        return self.folders.get(path, FolderFacts(path, exists=True, free_bytes=10**12))

    def exposed(self, path: str) -> bool:
        return path in self.exposed_files

    def port(self, number: int) -> PortFacts:
        return self.ports.get(number, PortFacts(number, taken=False))

    def programs(self) -> tuple[str, ...]:
        return self.found_programs

    def own_program(self) -> str:
        return "/opt/mlxk/bin/mlxk"

    def installed_at(self) -> datetime.datetime:
        return self.installed
