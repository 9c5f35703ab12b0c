"""The installation of this program and the machine, read with the standard library; Linux and macOS.

The compute libraries are imported in a child process: an import that crashes does not end the diagnosis, and the other
checks load no library.
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
"""Modules of the packages whose imports fail in practice."""

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
report = {"failures": failures, "device": None, "metal": False, "working_set": None}
if "mlx.core" in sys.modules and "mlx.core" not in [name for name, _ in failures]:
    mx = sys.modules["mlx.core"]
    report["device"] = mx.default_device().type.name
    report["metal"] = mx.metal.is_available()
    if report["device"] == "gpu":
        report["working_set"] = mx.device_info().get("max_recommended_working_set_size")
os.write(int(sys.argv[1]), json.dumps(report).encode())
"""
"""Imports modules and writes a JSON report to a descriptor of its own, since libraries print to the standard ones."""

_PROC = "/proc"
_SYSCTL = ("/usr/sbin/sysctl", "kern.osproductversion", "sysctl.proc_translated", "iogpu.wired_limit_mb")
_LSOF = ("/usr/sbin/lsof", "-nP", "-sTCP:LISTEN", "-Fc")


class SystemInstallationProbe(InstallationProbe):
    """Reads this process, its environment's packages, and the system.

    Args:
        search_path: Directories of programs, as in ``PATH``.
        run: Runs a system command, program and arguments; returns its output, empty when it cannot be run.
        has_nvidia_gpu: Whether there is an NVIDIA GPU with its driver.
        system: As in ``sys.platform``.
        packages: Directories in which packages are found; None for those of this process.
        modules: Modules whose import is tried.
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
        # To programs that were built for an older macOS, the system reports an older release.
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
            requirements = importlib.metadata.requires(DISTRIBUTION) or []
        except importlib.metadata.PackageNotFoundError:
            requirements = []
        packages = []
        for text in requirements:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                packages.append(self._package(requirement))
        return tuple(sorted(packages, key=lambda package: package.name))

    def _package(self, requirement: Requirement) -> PackageFacts:
        folders, version = [], None
        for distribution in importlib.metadata.distributions(name=requirement.name, path=self._packages):
            folder = os.path.realpath(str(distribution.locate_file("")))
            if folder not in folders:
                folders.append(folder)
                version = version or distribution.version
        tested = version is not None and requirement.specifier.contains(version, prereleases=True)
        return PackageFacts(requirement.name, str(requirement.specifier), version, tested, tuple(folders))

    def computing(self) -> ComputingFacts:
        report = _try_imports(self._modules)
        wired = int(self._sysctl().get("iogpu.wired_limit_mb", "0")) if self._system == "darwin" else 0
        return ComputingFacts(
            failures=tuple((name, reason) for name, reason in report["failures"]),
            device=report["device"],
            metal=report["metal"],
            nvidia=self._has_nvidia_gpu(),
            working_set_bytes=report["working_set"],
            wired_limit_bytes=wired * 1024**2 or None,
        )

    def folder(self, path: str) -> FolderFacts:
        exists = os.path.lexists(path)
        ancestor = path
        while not os.path.lexists(ancestor) and os.path.dirname(ancestor) != ancestor:
            ancestor = os.path.dirname(ancestor)
        if not os.path.exists(ancestor):
            return FolderFacts(path, exists=exists, leads_nowhere=True)
        is_directory = os.path.isdir(ancestor)
        writable = is_directory and os.access(ancestor, os.W_OK | os.X_OK)
        try:
            free = shutil.disk_usage(ancestor).free
        except OSError:
            free = None
        return FolderFacts(path, exists, is_directory, leads_nowhere=False, writable=writable, free_bytes=free)

    def exposed(self, path: str) -> bool:
        try:
            return bool(os.stat(path).st_mode & (stat.S_IRGRP | stat.S_IROTH))
        except OSError:
            return False

    def port(self, number: int) -> PortFacts:
        if self._system == "darwin" and _is_listening(number):
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
        """Return name and process id of the program that listens on a port; None where this user may not see it."""
        if self._system == "darwin":
            lines = self._run((*_LSOF, f"-iTCP:{port}")).splitlines()
            process = next((line[1:] for line in lines if line.startswith("p")), None)
            name = next((line[1:] for line in lines if line.startswith("c")), None)
            return f"{name} (process {process})" if name and process else None
        sockets = {f"socket:[{inode}]" for inode in self._listening(port)}
        for process in filter(str.isdecimal, os.listdir(_PROC)):
            try:
                files = f"{_PROC}/{process}/fd"
                if any(os.readlink(f"{files}/{descriptor}") in sockets for descriptor in os.listdir(files)):
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


def _is_listening(port: int) -> bool:
    """Whether a connection to a port succeeds; on macOS a port bound to all addresses can still be bound to one."""
    with socket.socket() as probe:
        probe.settimeout(_CONNECT_SECONDS)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _limit(kind: int) -> int | None:
    """Return the hard limit, to which a process may raise its own; of the address space the soft one. None without."""
    limit = resource.getrlimit(kind)[0 if kind == resource.RLIMIT_AS else 1]
    return None if limit == resource.RLIM_INFINITY else limit


def _try_imports(modules: Sequence[str]) -> dict[str, Any]:
    """Import the modules in a child process and return its report."""
    reading, writing = os.pipe()
    command = [sys.executable, "-c", _IMPORTS, str(writing), *modules]
    with open(reading, "rb") as pipe:
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
        text = pipe.read()
    if not text:
        return {"failures": [["mlx.core", reason]], "device": None, "metal": False, "working_set": None}
    report: dict[str, Any] = json.loads(text)
    return report
