"""Chaos: clients ask a server while its surroundings fail one after the other; every request must get an answer.

    python benchmarks/chaos.py --seconds 600

Runs on Linux. Each fault lasts for a while, then ends; measured are the answers by kind, the probes, and the seconds
from the end of a fault to full service. The first half of the time the log is a pipe; the second half it is a file on
the disk of the temporary files, which gets full. The exit status is 1 when a request got neither an answer nor a typed
error (requests that a killed worker was computing are counted apart), a probe got no answer, or full service took
longer than ten seconds more than without a fault.

The clock is set by ``set_clock.c``, which needs a compiler (libfaketime makes every sleep of Python fail), and the
small disk is mounted, which needs permission to; it is said when these faults are left out.
"""

import argparse
import contextlib
import http.client
import json
import os
import random
import re
import resource
import shutil
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

MODELS = Path(__file__).parents[1] / "adapters" / "builtin" / "models"
SOUND = Path(__file__).parents[1] / "tests" / "sounds" / "hello.flac"
CLIENTS = 8
FULL_SERVICE_SECONDS = 10.0
NOTHING = "nothing"
"""The fault that is none: how long full service takes beside the clients on this machine, which is subtracted."""
ANSWER_SECONDS = 60.0
MESSAGES = [{"role": "user", "content": "What is mlxk?"}]
DISK_BYTES = 32 * 2**20


class WallClock:
    """The wall clock of one program, which can be set; where there is no compiler it cannot."""

    def __init__(self, home: Path) -> None:
        self._file, library = home / "clock", home / "set_clock.so"
        self._file.write_bytes(bytes(8))
        source = str(Path(__file__).parent / "set_clock.c")
        compiler = shutil.which("cc")
        command = [compiler, "-shared", "-fPIC", "-O2", "-o", str(library), source, "-ldl"] if compiler else ["false"]
        self.settable = subprocess.run(command, check=False).returncode == 0
        preloaded = {"LD_PRELOAD": str(library), "SET_CLOCK": str(self._file)}
        self.environment = preloaded if self.settable else {}

    def set(self, hours: int) -> None:
        """Set it to so many hours after the true time."""
        with open(self._file, "r+b") as file:
            file.write(struct.pack("q", 3600 * hours))


class SmallDisk:
    """A folder on a disk of its own that can be filled, or an ordinary one where mounting is not permitted."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
        self.mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0

    def fill(self) -> None:
        """Leave no byte free."""
        with contextlib.suppress(OSError), open(self.folder / "filling", "wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass

    def free(self) -> None:
        """Undo ``fill``."""
        (self.folder / "filling").unlink()

    def close(self) -> None:
        """Unmount it."""
        if self.mounted:
            subprocess.run(["umount", str(self.folder)], check=True)


class Server:
    """``mlxk serve`` with two models, a clock and a small disk of its own, and a log in a pipe or on that disk."""

    def __init__(self, home: Path, *, log_on_disk: bool) -> None:
        self.workspaces = home / "workspaces"
        for name in ("kept", "moved"):
            shutil.copytree(MODELS / "demo", self.workspaces / name)
        self.disk, self.clock = SmallDisk(home / "tmp"), WallClock(home)
        environment = {**os.environ, "HOME": str(home), "HF_HOME": str(home / "hf"), "TMPDIR": str(self.disk.folder)}
        environment |= self.clock.environment
        self.log_on_disk = log_on_disk
        reader, writer = os.pipe()
        if log_on_disk:
            os.close(writer)
            writer = os.open(self.disk.folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        with open(writer, "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlxk", "serve", "--port", "0", "--json", "--model", "kept"],
                stdout=subprocess.PIPE,
                stderr=log,
                env={**environment, "MLXK_WORKSPACE_HOME": str(self.workspaces)},
                text=True,
            )
        self.log_read = threading.Event()
        self.log_read.set()
        self.log_descriptor = reader
        self.errors: Counter[str] = Counter()
        threading.Thread(target=self._read_log, daemon=True).start()
        assert self.process.stdout is not None
        self.port: int = json.loads(self.process.stdout.readline())["data"]["port"]

    def worker(self) -> int:
        """Return the process id of the present worker."""
        while True:
            found = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
            if found:
                return int(found[-1])
            time.sleep(0.05)

    def _read_log(self) -> None:
        try:
            with open(self.log_descriptor, "rb", buffering=0, closefd=False) as log:
                while data := log.readline():
                    if data.startswith((b"[ERROR]", b"[WARN")) or b"error" in data:
                        self.errors[re.sub(r"request_id=\w+ ", "", data.decode(errors="replace"))[:300]] += 1
                    self.log_read.wait()
        except OSError:
            return


class Record:
    """What clients and probes saw, by the fault at the time."""

    def __init__(self) -> None:
        self.fault = "none"
        self.cutting = False
        """Whether connections may be cut, since a worker is killed."""
        self.answers: Counter[tuple[str, str]] = Counter()
        self.probes: Counter[tuple[str, str]] = Counter()
        self.slowest: dict[str, float] = {}
        self.stop = threading.Event()

    def count(self, outcome: str, seconds: float) -> None:
        """Count one answer."""
        self.answers[self.fault, outcome] += 1
        self.slowest[self.fault] = max(seconds, self.slowest.get(self.fault, 0.0))


def ask(port: int, method: str, path: str, body: bytes | None = None, kind: str = "application/json") -> str:
    """Send a request; return the status, the code of a typed error, or how the connection failed."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_SECONDS)
    try:
        connection.request(method, path, body, {"Content-Type": kind})
        response = connection.getresponse()
        data = response.read()
        if response.status < 400:
            whole = response.getheader("Content-Type") != "text/event-stream" or b"[DONE]" in data or b'"error"' in data
            return "200" if whole else "cut"
        return f"{response.status} {json.loads(data)['error']['type']}"
    except TimeoutError:
        return "no answer"
    except (OSError, http.client.HTTPException):
        return "cut"
    except (ValueError, KeyError):
        return "untyped"
    finally:
        connection.close()


def chat(port: int, **fields: object) -> str:
    """Ask in a conversation."""
    body = {"model": "kept", "messages": MESSAGES, "max_tokens": 16, **fields}
    return ask(port, "POST", "/v1/chat/completions", json.dumps(body).encode())


def client(server: Server, record: Record, seed: int) -> None:
    """Ask in every way until told to stop."""
    chance = random.Random(seed)
    recording = (
        b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\ndemo-speech\r\n'
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.flac"\r\n\r\n'
        + SOUND.read_bytes()
        + b"\r\n--x--\r\n"
    )
    huge = json.dumps({"model": "kept", "prompt": "word " * 200_000}).encode()
    kinds: list[Callable[[], str]] = [
        lambda: chat(server.port),
        lambda: chat(server.port, stream=True, max_tokens=64),
        lambda: chat(server.port, model="moved"),
        lambda: chat(server.port, model="none of these"),
        lambda: ask(server.port, "GET", "/v1/models"),
        lambda: ask(server.port, "POST", "/v1/completions", huge),
        lambda: ask(server.port, "POST", "/v1/audio/transcriptions", recording, "multipart/form-data; boundary=x"),
    ]
    while not record.stop.is_set():
        began, cutting = time.monotonic(), record.cutting
        outcome = chance.choices(kinds, (6, 6, 4, 1, 2, 1, 1))[0]()
        if outcome == "cut" and (cutting or record.cutting):
            outcome = "cut by the kill"
        record.count(outcome, time.monotonic() - began)


def prober(server: Server, record: Record) -> None:
    """Probe until told to stop."""
    while not record.stop.is_set():
        for path in ("/livez", "/readyz", "/health"):
            outcome = ask(server.port, "GET", path).partition(" ")[0]
            outcome = "cut by the kill" if outcome == "cut" and record.cutting else outcome
            # The bodies of probes are no common errors.
            record.probes[record.fault, "503" if outcome == "untyped" else outcome] += 1
        time.sleep(0.5)


def faults(server: Server, home: Path) -> list[tuple[str, Callable[[], None], Callable[[], None]]]:
    """Return the faults: name, beginning, end."""

    def limit(kind: int, soft: int) -> None:
        hard = resource.prlimit(server.worker(), kind)[1]
        resource.prlimit(server.worker(), kind, (hard if soft == resource.RLIM_INFINITY else soft, hard))

    def used_descriptors() -> int:
        return max(map(int, os.listdir(f"/proc/{server.worker()}/fd")))

    normal = resource.prlimit(server.worker(), resource.RLIMIT_NOFILE)[0]
    moved, away = server.workspaces / "moved", home / "away"

    def replace() -> None:
        shutil.copytree(server.workspaces / "kept", home / "new")
        os.rename(moved, home / f"old-{time.monotonic()}")
        os.rename(home / "new", moved)

    nothing: Callable[[], None] = lambda: None  # noqa: E731 - a table of functions
    some = [(NOTHING, nothing, nothing)]
    if server.clock.settable:
        some += [
            ("clock set forward", lambda: server.clock.set(25), lambda: server.clock.set(0)),
            ("clock set back", lambda: server.clock.set(-25), lambda: server.clock.set(0)),
        ]
    if server.disk.mounted:
        name = "disk of log and temporary files full" if server.log_on_disk else "disk of temporary files full"
        some.append((name, server.disk.fill, server.disk.free))
    if not server.log_on_disk:
        some.append(("log not read", server.log_read.clear, server.log_read.set))
    return [
        *some,
        ("disks full", lambda: limit(resource.RLIMIT_FSIZE, 0), lambda: limit(resource.RLIMIT_FSIZE, -1)),
        ("model removed", lambda: os.rename(moved, away), lambda: os.rename(away, moved)),
        ("model replaced", replace, nothing),
        (
            "descriptors exhausted",
            lambda: limit(resource.RLIMIT_NOFILE, used_descriptors() + 3),
            lambda: limit(resource.RLIMIT_NOFILE, normal),
        ),
        (
            "worker stopped",
            lambda: os.kill(server.worker(), signal.SIGSTOP),
            lambda: os.kill(server.worker(), signal.SIGCONT),
        ),
        ("worker killed", lambda: os.kill(server.worker(), signal.SIGKILL), nothing),
        ("models unloaded", lambda: print(ask(server.port, "POST", "/v1/unload", b"{}")), nothing),
    ]


def full_service(server: Server) -> float:
    """Wait until everything is answered three times in a row; return the seconds."""
    began, row = time.monotonic(), 0
    while row < 3 and time.monotonic() - began < 60:
        good = chat(server.port) == chat(server.port, model="moved") == ask(server.port, "GET", "/readyz") == "200"
        row = row + 1 if good else 0
        if row == 1:
            first = time.monotonic()
        if not good:
            time.sleep(0.1)
    return (first if row == 3 else time.monotonic()) - began


def main() -> int:
    """Run it and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--fault-seconds", type=float, default=6, help="how long each fault lasts")
    arguments = parser.parse_args()
    recoveries: dict[str, list[float]] = {}
    record, statuses = Record(), list[int]()
    for log_on_disk in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            statuses.append(run(Path(folder), arguments, record, recoveries, log_on_disk=log_on_disk))
    return report(record, recoveries, max(statuses, key=abs))


def run(
    home: Path, arguments: argparse.Namespace, record: Record, recoveries: dict[str, list[float]], *, log_on_disk: bool
) -> int:
    """Run one server for half of the time; return its exit status."""
    server = Server(home, log_on_disk=log_on_disk)
    if not server.clock.settable:
        print("without a compiler: the clock is not set", file=sys.stderr)
    if not server.disk.mounted:
        print("without permission to mount a small disk: it does not get full", file=sys.stderr)
    record.stop.clear()
    threads = [threading.Thread(target=client, args=(server, record, each)) for each in range(CLIENTS)]
    threads.append(threading.Thread(target=prober, args=(server, record)))
    for thread in threads:
        thread.start()
    end = time.monotonic() + arguments.seconds / 2
    while time.monotonic() < end:
        for name, begin, finish in faults(server, home):
            record.fault, record.cutting = name, name == "worker killed"
            begin()
            time.sleep(arguments.fault_seconds)
            finish()
            recoveries.setdefault(name, []).append(full_service(server))
            print(f"{name}: full service after {recoveries[name][-1]:.1f} s", file=sys.stderr, flush=True)
            record.fault, record.cutting = "none", False
    if not log_on_disk:
        record.fault = "log closed"
        os.close(server.log_descriptor)
        time.sleep(arguments.fault_seconds)
        recoveries["log closed"] = [full_service(server)]
    record.stop.set()
    for thread in threads:
        thread.join()
    server.process.send_signal(signal.SIGTERM)
    status = server.process.wait(60)
    for line, count in server.errors.most_common():
        print(f"logged {count} times: {line.strip()}", file=sys.stderr)
    server.disk.close()
    return status


def report(record: Record, recoveries: dict[str, list[float]], status: int) -> int:
    """Print the figures; return the exit status."""
    for fault in ["none", *recoveries]:
        answers = {outcome: count for (each, outcome), count in sorted(record.answers.items()) if each == fault}
        probes = {outcome: count for (each, outcome), count in sorted(record.probes.items()) if each == fault}
        seconds = [round(each, 1) for each in recoveries.get(fault, ())]
        print(f"{fault}: answers {answers}, slowest {record.slowest.get(fault, 0):.1f} s, probes {probes}, {seconds}")
    bad = sum(count for (_, outcome), count in record.answers.items() if outcome in {"cut", "no answer", "untyped"})
    bad_probes = sum(count for (_, outcome), count in record.probes.items() if outcome in {"cut", "no answer"})
    internal = sum(count for (_, outcome), count in record.answers.items() if "internal_error" in outcome)
    usual = statistics.median(recoveries[NOTHING])
    slowest = max(max(each) for each in recoveries.values()) - usual
    print(
        f"{sum(record.answers.values())} requests, {bad} without an answer, {internal} internal errors;"
        f" {sum(record.probes.values())} probes, {bad_probes} without an answer;"
        f" full service at most {slowest:.1f} s later than without a fault ({usual:.1f} s); exit status {status}"
    )
    return int(bad + bad_probes + internal > 0 or slowest > FULL_SERVICE_SECONDS or status != 0)


if __name__ == "__main__":
    sys.exit(main())
