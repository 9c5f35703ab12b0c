"""The port to the program's installation, as far as its diagnosis needs it."""

import datetime
from abc import abstractmethod
from typing import Protocol

from mlxk.domain.diagnosis import ComputingFacts, FolderFacts, PackageFacts, PlatformFacts, PortFacts


class InstallationProbe(Protocol):
    """Reads what the program's installation and this machine are like; never raises, and changes nothing."""

    @abstractmethod
    def platform(self) -> PlatformFacts:
        """Return the system."""

    @abstractmethod
    def packages(self) -> tuple[PackageFacts, ...]:
        """Return the packages that the program requires on this platform, sorted by name."""

    @abstractmethod
    def computing(self) -> ComputingFacts:
        """Import the libraries that compute in a process of its own, which takes seconds, and return what they say."""

    @abstractmethod
    def folder(self, path: str) -> FolderFacts:
        """Return a directory, or the place where it would be made.

        Args:
            path: Absolute.
        """

    @abstractmethod
    def exposed(self, path: str) -> bool:
        """Whether other users of this machine may read a file; False where there is none."""

    @abstractmethod
    def port(self, number: int) -> PortFacts:
        """Return whether a port of the loopback interface is taken, and by whom."""

    @abstractmethod
    def programs(self) -> tuple[str, ...]:
        """Return the files that the program's name runs, in the order of the search path; links are resolved."""

    @abstractmethod
    def own_program(self) -> str:
        """Return the file of this program, with links resolved."""

    @abstractmethod
    def installed_at(self) -> datetime.datetime:
        """Return when the program was installed; a clock that is right can never be before."""
