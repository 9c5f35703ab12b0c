"""The system calls and programs of macOS, by fakes of them and by their output."""

import contextlib
import os
import plistlib
import resource
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from serving.running import eventually
from serving.shared import SharedServer, is_taken, socket_folder_of

from mlxk.adapters.installation import SystemInstallationProbe
from mlxk.adapters.mlx.library_imports import raise_file_limit
from mlxk.adapters.system.machine_meter import SystemMachineMeter
from mlxk.adapters.unix_socket.protocol import is_own_peer
from mlxk.adapters.unix_socket.servers import socket_folders, socket_name
from mlxk.domain.errors import PortInUseError
from mlxk.entrypoints.cli.chat.terminal import copy_with_program
from mlxk.entrypoints.http.process import sockets
from mlxk.entrypoints.http.process.log_stream import LossyStream
from mlxk.entrypoints.http.process.worker import raise_descriptor_limit

GIB = 1024**3


class BsdSocket(socket.socket):
    """A socket that may be bound to one address while another is bound to all of them, as macOS lets it."""

    def bind(self, address: Any) -> None:
        self.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        super().bind(address)


@pytest.fixture
def port_of_all(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Have a server on all interfaces, on macOS, and return its port."""
    monkeypatch.setattr(socket, "socket", BsdSocket)
    monkeypatch.setattr(sys, "platform", "darwin")
    with socket.socket() as server:
        server.bind(("0.0.0.0", 0))
        server.listen()
        yield server.getsockname()[1]


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "localhost"])
def test_a_port_of_a_server_on_all_interfaces_is_in_use(host: str, port_of_all: int) -> None:
    with socket.socket() as shared:
        shared.bind(("127.0.0.1", port_of_all))  # the system has no objection
    with pytest.raises(PortInUseError, match=str(port_of_all)):
        sockets.listen(host, port_of_all)


def test_a_free_port_is_listened_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]
    for each in sockets.listen("127.0.0.1", number):
        each.close()


def probe_of(said: str) -> SystemInstallationProbe:
    return SystemInstallationProbe("", lambda _: said, lambda: False, "darwin")


def test_the_diagnosis_sees_a_server_on_all_interfaces(port_of_all: int) -> None:
    facts = probe_of("p77\ncollama\nf3\n").port(port_of_all)
    assert (facts.taken, facts.holder) == (True, "ollama (process 77)")


@pytest.mark.parametrize(
    ("said", "release", "version"),
    [
        ("kern.osproductversion: 26.1\nsysctl.proc_translated: 0\n", "macOS 26.1", (26, 1)),
        ("kern.osproductversion: 14\n", "macOS 14", (14, 0)),
        ("kern.osproductversion: 15.7.2\n", "macOS 15.7.2", (15, 7)),
    ],
)
def test_the_version_is_that_of_the_system_not_the_one_that_old_programs_are_told(
    said: str, release: str, version: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.mac_ver", lambda: ("16.0", ("", "", ""), "arm64"))
    facts = probe_of(said).platform()
    assert (facts.release, facts.macos) == (release, version)


class ResourceUsage:
    """``proc_pid_rusage``, whose structure has an identifier of 16 bytes and 36 numbers."""

    def __init__(self, largest: int, status: int = 0) -> None:
        self._numbers = [*range(1, 29), largest, *range(30, 37)]
        self._status = status

    def proc_pid_rusage(self, process: int, version: int, buffer: Any) -> int:
        assert (process, version) == (os.getpid(), 4)
        packed = bytes(16) + struct.pack("=36Q", *self._numbers)
        buffer[: len(packed)] = packed
        return self._status


def test_the_peak_is_the_footprint_which_has_what_the_gpu_holds() -> None:
    meter = SystemMachineMeter("darwin", library=lambda: ResourceUsage(20 * GIB))
    assert meter.peak_process_bytes() == 20 * GIB


def test_without_a_footprint_the_peak_is_the_resident_memory() -> None:
    meter = SystemMachineMeter("darwin", library=lambda: ResourceUsage(20 * GIB, status=-1))
    peak = meter.peak_process_bytes()
    assert peak is not None
    assert 0 < peak < 20 * GIB


class MacConnection:
    """The end of a Unix socket, whose peer macOS describes by ``struct xucred``."""

    def __init__(self, user: int, gone: bool = False) -> None:
        self._user, self._gone = user, gone

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        assert (level, option) == (0, 1)  # SOL_LOCAL, LOCAL_PEERCRED
        if self._gone:
            raise OSError(57, "Socket is not connected")
        return struct.pack("=IIh2x16I", 0, self._user, 3, 20, 12, 61, *[0] * 13)[:size]


def test_the_user_at_the_other_end_is_read_from_the_credentials_of_macos(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "SO_PEERCRED", raising=False)
    ends: list[Any] = [MacConnection(os.geteuid()), MacConnection(os.geteuid() + 1), MacConnection(0, gone=True)]
    assert [is_own_peer(each) for each in ends] == [True, False, False]


def test_a_server_with_more_callers_than_may_wait_keeps_its_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux lets such callers wait, macOS refuses them as if nobody listened."""
    server = SharedServer(socket_folder_of(tmp_path))
    os.makedirs(server.folder, mode=0o700)
    with subprocess.Popen(["sleep", "0"]) as ended:
        pass
    busy, dead = (f"{server.folder}/{socket_name(process)}" for process in (os.getppid(), ended.pid))
    for path in (busy, dead):
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(path)  # and does not listen, which refuses callers as well
    with server.listening():
        assert is_taken(server)
        assert (os.path.exists(busy), os.path.exists(dead)) == (True, False)


def test_the_socket_of_a_server_is_short_enough_for_macos(tmp_path: Path) -> None:
    home = "/Users/" + "n" * 31
    folders = socket_folders(f"{home}/.local/state/mlxk/servers"), socket_folders("/private/var/folders/" + "x" * 60)
    assert {len(f"{folder}/{socket_name(99_999)}") < 104 for each in folders for folder in each} == {True}


def test_the_kernel_may_allow_fewer_open_files_than_the_limit_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, resource.RLIM_INFINITY))

    def refuse(*_: object) -> None:
        raise ValueError("current limit exceeds maximum limit")

    monkeypatch.setattr(resource, "setrlimit", refuse)
    raise_file_limit()
    assert raise_descriptor_limit(1024) == 256


def test_the_agent_of_launchd_finds_programs_and_gets_the_time_to_drain(
    mlxk: Callable[..., "subprocess.CompletedProcess[str]"],
) -> None:
    shown = ("service", "install", "--manager", "launchd", "--print")
    path = "/opt/homebrew/bin:relative:/usr/bin:"
    known = plistlib.loads(mlxk(*shown, "--", "--drain-timeout", "300", PATH=path).stdout.encode())
    assert known["EnvironmentVariables"]["PATH"] == "/opt/homebrew/bin:/usr/bin"
    assert (known["ExitTimeOut"], known["ProcessType"]) == (315, "Interactive")
    assert plistlib.loads(mlxk(*shown).stdout.encode())["ExitTimeOut"] == 45


def test_the_unit_of_systemd_gets_the_time_to_drain(mlxk: Callable[..., "subprocess.CompletedProcess[str]"]) -> None:
    done = mlxk("service", "install", "--manager", "systemd", "--print", "--", "--drain-timeout", "300")
    assert "TimeoutStopSec=315\n" in done.stdout


PBCOPY = '#!/bin/sh\nlocale charmap > "$0.charmap" 2>/dev/null; echo "$LC_ALL" > "$0.locale"; cat > "$0.copied"\n'


def test_the_clipboard_of_macos_is_told_that_the_text_is_utf8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "pbcopy"
    program.write_text(PBCOPY)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("LC_ALL", "C")
    assert copy_with_program("Grüße") == "pbcopy"
    assert (tmp_path / "pbcopy.copied").read_text(encoding="utf-8") == "Grüße"
    assert (tmp_path / "pbcopy.locale").read_text() == "en_US.UTF-8\n"


class NoDevices:
    """``poll`` of macOS, which takes no terminals."""

    def register(self, descriptor: int, events: int) -> None:
        self._descriptor = descriptor

    def poll(self, milliseconds: int) -> list[tuple[int, int]]:
        return [(self._descriptor, select.POLLNVAL)]


def test_a_log_on_a_terminal_on_hold_waits_without_work(monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[float] = []
    write = os.write

    def counted(descriptor: int, data: bytes) -> int:
        tries.append(time.monotonic())
        return write(descriptor, data)

    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, b"x" * 4096)
    monkeypatch.setattr(select, "poll", NoDevices)
    monkeypatch.setattr(os, "write", counted)
    stream = LossyStream(writing)
    stream.write("a line\n")
    assert eventually(lambda: bool(tries))
    time.sleep(0.5)
    assert len(tries) <= 8
    while b"a line" not in os.read(reading, 2**20):
        time.sleep(0.01)
    stream.close()
    for each in (reading, writing):
        os.close(each)
