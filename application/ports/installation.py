"""The port to the program's installation, for the diagnosis and for benchmarks."""

import datetime
from abc import abstractmethod
from typing import Protocol

from mlxk.domain.diagnosis import ComputingFacts, FolderFacts, PackageFacts, PlatformFacts, PortFacts


class InstallationProbe(Protocol):
    """Reads facts about the program's installation and this machine; never raises, and changes nothing."""

    @abstractmethod
    def platform(self) -> PlatformFacts:
        """Return the operating system, the processor's architecture and the Python version."""

    @abstractmethod
    def packages(self) -> tuple[PackageFacts, ...]:
        """Return the packages that the program requires on this platform, sorted by name."""

    @abstractmethod
    def computing(self) -> ComputingFacts:
        """Return the device that models run on, or why the model libraries fail to load.

        They are imported in a child process, which takes seconds.
        """

    @abstractmethod
    def folder(self, path: str) -> FolderFacts:
        """Return the state of a directory, or of the place where it would be created.

        Args:
            path: Absolute.
        """

    @abstractmethod
    def exposed(self, path: str) -> bool:
        """Whether other users of this machine may read a file; False when it does not exist."""

    @abstractmethod
    def port(self, number: int) -> PortFacts:
        """Return whether a TCP port of the loopback interface is taken, and by which process."""

    @abstractmethod
    def programs(self) -> tuple[str, ...]:
        """Return the executables named like this program, in the order of the search path, links resolved."""

    @abstractmethod
    def own_program(self) -> str:
        """Return the executable of this program, links resolved."""

    @abstractmethod
    def installed_at(self) -> datetime.datetime:
        """Return when the program was installed, UTC: a lower bound for the current time."""
