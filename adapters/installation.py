"""The installation of this program and the machine, read with the standard library; Linux and macOS.

What the libraries that compute say is read in a process of its own: an import that crashes must not end the diagnosis,
and the others of its checks load no library.
"""

import datetime
import errno
import importlib.metadata
import json
import os
import platform
import re
import resource
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from packaging.requirements import Requirement

from mlxk.application.ports.installation import InstallationProbe
from mlxk.domain.diagnosis import ComputingFacts, FolderFacts, PackageFacts, PlatformFacts, PortFacts

Run = Callable[[tuple[str, ...]], str]

DISTRIBUTION = "mlxk"
MODULES = ("mlx.core", "mlx_lm", "mlx_vlm", "mlx_audio", "huggingface_hub", "falcon", "PIL")
"""Modules of the packages that fail in most ways."""

_IMPORT_SECONDS = 120.0
_CONNECT_SECONDS = 1.0
_IMPORTS = """
import importlib, json, os, sys
failures = []
for name in sys.argv[2:]:
    try:
        importlib.import_module(name)
    except BaseException as error:
        failures.append([name, f"{type(error).__name__}: {error}".splitlines()[0][:300]])
said = {"failures": failures, "device": None, "metal": False, "working_set": None}
if "mlx.core" in sys.modules and "mlx.core" not in [name for name, _ in failures]:
    mx = sys.modules["mlx.core"]
    said["device"] = mx.default_device().type.name
    said["metal"] = mx.metal.is_available()
    if said["device"] == "gpu":
        said["working_set"] = mx.device_info().get("max_recommended_working_set_size")
os.write(int(sys.argv[1]), json.dumps(said).encode())
"""
"""Imports modules and writes what it saw as JSON to a descriptor of its own; libraries print to the usual ones."""

_PROC = "/proc"
_SYSCTL = ("/usr/sbin/sysctl", "kern.osproductversion", "sysctl.proc_translated", "iogpu.wired_limit_mb")
_LSOF = ("/usr/sbin/lsof", "-nP", "-sTCP:LISTEN", "-Fc")


class SystemInstallationProbe(InstallationProbe):
    """Reads this process, its environment's packages, and the system.

    Args:
        search_path: The directories in which programs are found, as in the variable.
        run: Runs a command of the system, program and arguments; returns its output, empty when it cannot be run.
        has_nvidia_gpu: Whether there is a GPU of this vendor, with its driver.
        system: As in ``sys.platform``.
        packages: Directories in which packages are found; None means those of this process.
        modules: Those that are imported to see whether they can be.
    """

    def __init__(
        self,
        search_path: str,
        run: Run,
        has_nvidia_gpu: Callable[[], bool],
        system: str = sys.platform,
        packages: Sequence[str] | None = None,
        modules: Sequence[str] = MODULES,
    ) -> None:
        self._search_path = search_path
        self._system = system
        self._run = run
        self._has_nvidia_gpu = has_nvidia_gpu
        self._modules = modules
        self._packages = list(sys.path if packages is None else packages)

    def platform(self) -> PlatformFacts:
        settings = self._sysctl() if self._system == "darwin" else {}
        # To programs that were built for an older macOS, the system says that it is an older one.
        release = settings.get("kern.osproductversion", platform.mac_ver()[0])
        digits = [int(part) for part in release.split(".")[:2] if part.isdecimal()]
        macos = (digits[0], digits[1] if len(digits) > 1 else 0) if digits else None
        return PlatformFacts(
            system=self._system,
            release=f"macOS {release}" if release else f"{platform.system()} {platform.release()}",
            machine=platform.machine(),
            python=sys.version_info[:3],
            macos=macos,
            translated=settings.get("sysctl.proc_translated") == "1",
            descriptors=_limit(resource.RLIMIT_NOFILE),
            address_space_bytes=_limit(resource.RLIMIT_AS),
        )

    def packages(self) -> tuple[PackageFacts, ...]:
        try:
            wanted = importlib.metadata.requires(DISTRIBUTION) or []
        except importlib.metadata.PackageNotFoundError:
            wanted = []
        found = []
        for text in wanted:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                found.append(self._package(requirement))
        return tuple(sorted(found, key=lambda each: each.name))

    def _package(self, requirement: Requirement) -> PackageFacts:
        places, version = [], None
        for each in importlib.metadata.distributions(name=requirement.name, path=self._packages):
            place = os.path.realpath(str(each.locate_file("")))
            if place not in places:
                places.append(place)
                version = version or each.version
        tested = version is not None and requirement.specifier.contains(version, prereleases=True)
        return PackageFacts(requirement.name, str(requirement.specifier), version, tested, tuple(places))

    def computing(self) -> ComputingFacts:
        said = _imported(self._modules)
        wired = int(self._sysctl().get("iogpu.wired_limit_mb", "0")) if self._system == "darwin" else 0
        return ComputingFacts(
            failures=tuple((name, reason) for name, reason in said["failures"]),
            device=said["device"],
            metal=said["metal"],
            nvidia=self._has_nvidia_gpu(),
            working_set_bytes=said["working_set"],
            wired_limit_bytes=wired * 1024**2 or None,
        )

    def folder(self, path: str) -> FolderFacts:
        exists = os.path.lexists(path)
        above = path
        while not os.path.lexists(above) and os.path.dirname(above) != above:
            above = os.path.dirname(above)
        if not os.path.exists(above):
            return FolderFacts(path, exists=exists, leads_nowhere=True)
        is_directory = os.path.isdir(above)
        writable = is_directory and os.access(above, os.W_OK | os.X_OK)
        try:
            free = shutil.disk_usage(above).free
        except OSError:
            free = None
        return FolderFacts(path, exists, is_directory, leads_nowhere=False, writable=writable, free_bytes=free)

    def exposed(self, path: str) -> bool:
        try:
            return bool(os.stat(path).st_mode & (stat.S_IRGRP | stat.S_IROTH))
        except OSError:
            return False

    def port(self, number: int) -> PortFacts:
        if self._system == "darwin" and _answers(number):
            return PortFacts(number, True, self._holder(number))
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", number))
                probe.listen()
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    return PortFacts(number, True, self._holder(number))
        return PortFacts(number, False)

    def programs(self) -> tuple[str, ...]:
        found = []
        for folder in self._search_path.split(os.pathsep):
            path = shutil.which(DISTRIBUTION, path=folder) if folder else None
            if path is not None and (real := os.path.realpath(path)) not in found:
                found.append(real)
        return tuple(found)

    def own_program(self) -> str:
        beside = os.path.join(os.path.dirname(sys.executable), DISTRIBUTION)
        return os.path.realpath(beside if os.path.exists(beside) else sys.argv[0])

    def installed_at(self) -> datetime.datetime:
        return datetime.datetime.fromtimestamp(os.path.getmtime(__file__), datetime.UTC)

    def _sysctl(self) -> dict[str, str]:
        return dict(re.findall(r"^([\w.]+): (\d[\d.]*)$", self._run(_SYSCTL), re.MULTILINE))

    def _holder(self, port: int) -> str | None:
        """Return the name and process of the program that listens on a port; None where this user may not know."""
        if self._system == "darwin":
            lines = self._run((*_LSOF, f"-iTCP:{port}")).splitlines()
            process = next((line[1:] for line in lines if line.startswith("p")), None)
            name = next((line[1:] for line in lines if line.startswith("c")), None)
            return f"{name} (process {process})" if name and process else None
        sockets = {f"socket:[{inode}]" for inode in self._listening(port)}
        for process in filter(str.isdecimal, os.listdir(_PROC)):
            try:
                files = f"{_PROC}/{process}/fd"
                if any(os.readlink(f"{files}/{each}") in sockets for each in os.listdir(files)):
                    with open(f"{_PROC}/{process}/comm", encoding="utf-8", errors="replace") as file:
                        return f"{file.read().strip()} (process {process})"
            except OSError:
                continue  # of another user, or it has ended
        return None

    def _listening(self, port: int) -> Iterator[str]:
        """Yield the inodes of the sockets that listen on a port."""
        for table in ("net/tcp", "net/tcp6"):
            try:
                with open(f"{_PROC}/{table}", encoding="ascii") as file:
                    lines = file.read().splitlines()[1:]
            except OSError:
                continue
            for fields in map(str.split, lines):
                if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                    yield fields[9]


def _answers(port: int) -> bool:
    """Whether a program listens on a port, also on all addresses: with that macOS lets another take one of them."""
    with socket.socket() as probe:
        probe.settimeout(_CONNECT_SECONDS)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _limit(kind: int) -> int | None:
    """Return the limit that a process may set for itself; None without one."""
    hard = resource.getrlimit(kind)[0 if kind == resource.RLIMIT_AS else 1]
    return None if hard == resource.RLIM_INFINITY else hard


def _imported(modules: Sequence[str]) -> dict[str, Any]:
    """Import the modules in another process and return what it says."""
    reading, writing = os.pipe()
    command = [sys.executable, "-c", _IMPORTS, str(writing), *modules]
    with open(reading, "rb") as said:
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(writing,),
                timeout=_IMPORT_SECONDS,
                check=False,
            )
            reason = f"the process ended with status {done.returncode}"
        except (OSError, subprocess.TimeoutExpired) as error:
            reason = f"the process did not end: {type(error).__name__}"
        finally:
            os.close(writing)
        text = said.read()
    if not text:
        return {"failures": [["mlx.core", reason]], "device": None, "metal": False, "working_set": None}
    answer: dict[str, Any] = json.loads(text)
    return answer
