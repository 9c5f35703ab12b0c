"""Examination of the hosts on which ranks would be started; ``examined`` is the hosts' side.

The program of a rank is started on each host in the same way as for computing, kept running while the links between
hosts are measured, and ended.
"""

import contextlib
import json
import os
import queue
import re
import secrets
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any

import attrs

from mlxk.adapters.mlx.ranks.launch import RankPlace, last_line, place_of
from mlxk.domain.diagnosis import Fault
from mlxk.domain.host_checks import Examination, HostFacts, HostQuestion, LinkFacts, Notify, links_between
from mlxk.domain.models.footprint import MemoryReading
from mlxk.domain.ranks import HostAccount, RankHost

_HASHING_SECONDS = 900.0
"""Time limit for a host's account of a model: enough to hash hundreds of gigabytes."""

_END_SECONDS = 2.0
"""Time for the programs on the hosts to exit by themselves."""

_SSH_FAILED = 255
"""Exit status of ssh itself, not of the remote command."""
_NOT_RUNNABLE, _NOT_FOUND = 126, 127
"""Exit statuses of a shell that cannot run or find a program."""

_SSH_FAULTS = (
    (Fault.HOST_KEY_CHANGED, r"REMOTE HOST IDENTIFICATION HAS CHANGED"),
    (Fault.HOST_KEY_UNKNOWN, r"Host key verification failed|host key is known"),
    (Fault.HOST_REFUSED, r"Permission denied|Too many authentication failures"),
)
"""Faults by patterns of ssh's messages about a reachable host; the first match counts."""

_DEAF = {"taken": Fault.PORTS_TAKEN, "elsewhere": Fault.ADDRESS_ELSEWHERE, None: None}


class _Unanswered(Exception):  # noqa: N818 - a result of the examination, not an error of this program
    """A host does not answer."""

    def __init__(self, fault: Fault, message: str) -> None:
        super().__init__(message)
        self.fault = fault
        self.message = message


def examine(
    module: str, orders: Mapping[str, Any], hosts: Sequence[RankHost], question: HostQuestion, notify: Notify
) -> Examination:
    """Query all hosts at once, then measure their links one by one if requested; ends all programs that it starts.

    Args:
        module: Python module that runs a rank.
        orders: Further orders for every rank.
        hosts: The hosts; the first one is this machine.
        question: What to examine.
        notify: Receives progress messages.
    """
    probes = [_HostProbe(host, place_of(rank, host, module), question.seconds) for rank, host in enumerate(hosts)]
    pending = _PendingHosts([host.ssh for host in hosts], notify)
    orders_by_rank = [
        {
            **orders,
            "examined": {
                "address": host.address,
                "towards": hosts[0].address,
                "seconds": question.seconds,
                "name": question.name,
                "backends": list(question.backends),
                "divided": None if rank else len(hosts),
            },
        }
        for rank, host in enumerate(hosts)
    ]
    try:
        with ThreadPoolExecutor(len(hosts)) as threads:
            try:
                # Signals interrupt the main thread only, so never between the start of a process and its record.
                facts = tuple(threads.map(lambda *each: pending.remove(_facts(*each)), probes, orders_by_rank))
            except BaseException:
                _end(probes, 0.0)  # the threads wait for these processes
                raise
        links = []
        for source, target in links_between(len(hosts)) if question.links else ():
            if facts[source].answers and facts[target].can_listen:
                notify(f"measuring {hosts[source].ssh} to {hosts[target].ssh}")
                links.append(_link(probes[source], probes[target]))
    except BaseException:
        _end(probes, 0.0)
        raise
    _end(probes, _END_SECONDS)
    return Examination(facts, tuple(links))


def _facts(probe: "_HostProbe", orders: dict[str, Any]) -> HostFacts:
    probe.start(orders)
    return probe.facts()


class _PendingHosts:
    """Reports which hosts have not answered yet.

    Args:
        names: Names of all hosts.
        notify: Receives the messages.
    """

    def __init__(self, names: list[str], notify: Notify) -> None:
        self._names, self._notify = names, notify
        self._lock = threading.Lock()

    def remove(self, facts: HostFacts) -> HostFacts:
        """Remove the host of some facts, and return the facts."""
        with self._lock:
            self._names.remove(facts.host.ssh)
            named, more = self._names[:_NAMED], len(self._names) - _NAMED
        if named:
            self._notify(f"waiting for {', '.join(named)}" + (f" and {more} more" if more > 0 else ""))
        return facts


_NAMED = 3
"""Maximum number of hosts that a message names."""


def _end(probes: "Sequence[_HostProbe]", grace: float) -> None:
    for probe in probes:
        probe.leave()  # all of them before waiting for the first one
    deadline = time.monotonic() + grace
    for probe in probes:
        probe.end(deadline)


def _link(source: "_HostProbe", target: "_HostProbe") -> LinkFacts:
    key = secrets.token_hex(32)
    link = LinkFacts(source.host, target.host)
    try:
        listening = target.ask("port", do="listen", key=key)
        if listening["port"] is None:
            return attrs.evolve(link, problem=f"{target.host.ssh} cannot listen there: {listening['problem']}")
        measured = source.ask("link", do="measure", address=target.host.address, port=listening["port"], key=key)
    except _Unanswered as unanswered:
        return attrs.evolve(link, problem=unanswered.message)
    if "problem" in measured:
        return attrs.evolve(link, problem=measured["problem"])
    return attrs.evolve(
        link,
        round_trip_seconds=measured["round_trip"],
        bytes_per_second=measured["rate"],
        came_from=measured["came_from"],
    )


class _HostProbe:
    """The program that answers for one host, and its pipes.

    Args:
        host: The host, from the file of hosts.
        place: How the program of a rank is started there.
        seconds: Time without output after which the host counts as silent.
    """

    def __init__(self, host: RankHost, place: RankPlace, seconds: float) -> None:
        self.host = host
        self._place = place
        self._seconds = seconds
        self._lock = threading.Lock()
        self._is_over = False
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        self._start_error = ""
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by ``end``
        self._answers: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._began = time.monotonic()

    def start(self, orders: dict[str, Any]) -> None:
        """Start the program and send its orders, unless ``leave`` was called before."""
        with self._lock:
            if self._is_over:
                return
            try:
                # A new session: Ctrl-C in the terminal does not reach it, and ssh cannot prompt on the terminal.
                self._process = subprocess.Popen(
                    self._place.command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=self._errors,
                    start_new_session=True,
                )
            except OSError as error:
                self._start_error = f"{self._place.command[0]} cannot be started: {error.strerror}"
                return
            self._reader = threading.Thread(
                target=self._read, args=(self._process.stdout,), name="mlxk-asked", daemon=True
            )
            self._reader.start()
        self._send(orders)

    def facts(self) -> HostFacts:
        """Return the host's facts, or the fault that keeps it from answering."""
        try:
            hello = self._receive("hello", self._seconds)
            seconds = time.monotonic() - self._began
            account = self._receive("account", _HASHING_SECONDS)
            reading = None if hello["reading"] is None else MemoryReading(*hello["reading"])
            known = {name: account[name] for name in attrs.fields_dict(HostAccount) if name in account}
            return HostFacts(
                host=self.host,
                seconds=seconds,
                python=hello["python"],
                versions=hello["versions"],
                reading=reading,
                listen_fault=_DEAF[hello["deaf"]],
                own_address=hello["own_address"],
                account=HostAccount(**{**known, "reading": reading, "versions": hello["versions"]}),
            )
        except _Unanswered as unanswered:
            return self._without_answer(unanswered.fault, unanswered.message)
        except (LookupError, TypeError) as error:
            return self._without_answer(Fault.HOST_FAILED, f"its answer lacks something: {error}"[:300])

    def _without_answer(self, fault: Fault, message: str) -> HostFacts:
        self.end(0.0)
        return HostFacts(self.host, fault, message, account=HostAccount(problem=message))

    def ask(self, kind: str, **order: object) -> dict[str, Any]:
        """Send an order, and return the answer of a kind."""
        self._send(order)
        # The host applies its own time limit to each part of an exchange, one after the other.
        return self._receive(kind, 3 * self._seconds)

    def leave(self) -> None:
        """Close the program's input, which makes it exit."""
        with self._lock:
            self._is_over = True
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()

    def end(self, deadline: float) -> None:
        """Wait for the program to exit; kill its process group after the deadline."""
        process = self._process
        if process is not None and self._reader is not None:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            self._reader.join(_END_SECONDS)
        self._errors.close()

    def _send(self, order: Mapping[str, object]) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        # OSError: the program has ended, which ``_receive`` reports; ValueError: ``leave`` was called meanwhile.
        with contextlib.suppress(OSError, ValueError):
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()

    def _read(self, output: IO[bytes]) -> None:
        with output:
            for line in output:
                with contextlib.suppress(ValueError):  # a login shell may print a greeting
                    answer = json.loads(line)
                    if isinstance(answer, dict) and "kind" in answer:
                        self._answers.put(answer)
        self._answers.put(None)

    def _receive(self, kind: str, most_seconds: float) -> dict[str, Any]:
        """Wait for an answer of a kind; other answers, such as heartbeats, only show that the host is alive.

        Raises:
            _Unanswered: The host is silent, the time is over, or the program has ended or could not be started.
        """
        if self._process is None:
            raise _Unanswered(Fault.NO_SSH if self._is_remote else Fault.HOST_FAILED, self._start_error)
        deadline = time.monotonic() + most_seconds
        while True:
            try:
                answer = self._answers.get(timeout=max(0.0, min(self._seconds, deadline - time.monotonic())))
            except queue.Empty:
                output = last_line(self._errors)
                silence = f"no answer within {min(self._seconds, most_seconds):g} seconds"
                raise _Unanswered(Fault.HOST_SILENT, f"{silence}: {output}" if output else silence) from None
            if answer is None:
                self._answers.put(None)
                raise self._ended(self._process)
            if answer.pop("kind") == kind:
                return answer

    @property
    def _is_remote(self) -> bool:
        return self._place.command[0] == "ssh"

    def _ended(self, process: "subprocess.Popen[bytes]") -> _Unanswered:
        """Return the reason for which the program has ended before it answered."""
        try:
            status = process.wait(self._seconds)
        except subprocess.TimeoutExpired:
            return _Unanswered(Fault.HOST_SILENT, f"no answer within {self._seconds:g} seconds")
        message = last_line(self._errors) or f"it ended with status {status} and no answer"
        if self._is_remote and status == _SSH_FAILED:
            self._errors.seek(0)
            text = self._errors.read(65536).decode(errors="replace")
            for fault, pattern in _SSH_FAULTS:
                lines = [line.strip() for line in text.splitlines() if re.search(pattern, line)]
                if lines:
                    return _Unanswered(fault, lines[-1][:300])
            return _Unanswered(Fault.HOST_UNREACHABLE, message)
        if status in (_NOT_RUNNABLE, _NOT_FOUND):
            return _Unanswered(Fault.NO_INTERPRETER, message)
        if re.search(r"No module named '?mlxk\b", message):
            return _Unanswered(Fault.NO_PROGRAM, message)
        return _Unanswered(Fault.HOST_FAILED, message)
