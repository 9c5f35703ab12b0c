"""Examining hosts before ranks are started there; what they answer is in ``examined``.

It runs the program of a rank on each host, started as ranks are, keeps it while links are measured, and ends it.
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
"""Enough for reading a model of hundreds of gigabytes."""

_END_SECONDS = 2.0
"""Time for programs on hosts to end by themselves."""

_SSH_FAILED = 255
"""The status of ssh itself, not of what it runs."""
_NOT_RUNNABLE, _NOT_FOUND = 126, 127
"""Statuses of a shell that cannot run a program, or find it."""

_SSH_FAULTS = (
    (Fault.HOST_KEY_CHANGED, r"REMOTE HOST IDENTIFICATION HAS CHANGED"),
    (Fault.HOST_KEY_UNKNOWN, r"Host key verification failed|host key is known"),
    (Fault.HOST_REFUSED, r"Permission denied|Too many authentication failures"),
)
"""What ssh says of a host that is there; the first that is found counts."""

_DEAF = {"taken": Fault.PORTS_TAKEN, "elsewhere": Fault.ADDRESS_ELSEWHERE, None: None}


class _Unanswered(Exception):  # noqa: N818 - it is no error of this program
    """A host does not answer."""

    def __init__(self, fault: Fault, said: str) -> None:
        super().__init__(said)
        self.fault = fault
        self.said = said


def examine(
    module: str, orders: Mapping[str, Any], hosts: Sequence[RankHost], question: HostQuestion, notify: Notify
) -> Examination:
    """Ask all hosts at once, then measure one link after the other if need be; nothing of it is left running.

    Args:
        module: The one that runs a rank.
        orders: What every rank is told beside.
        hosts: The first one is this machine.
        question: What they are asked.
        notify: Receives the progress.
    """
    asked = [_Asked(host, place_of(rank, host, module), question.seconds) for rank, host in enumerate(hosts)]
    waiting = _Waiting([host.ssh for host in hosts], notify)
    told = [
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
                # A signal is raised in the main thread only, never between the start of a process and its record.
                facts = tuple(threads.map(lambda *each: waiting.leave(_facts(*each)), asked, told))
            except BaseException:
                _end(asked, 0.0)  # the threads wait for them
                raise
        links = []
        for source, target in links_between(len(hosts)) if question.links else ():
            if facts[source].answers and facts[target].can_listen:
                notify(f"measuring {hosts[source].ssh} to {hosts[target].ssh}")
                links.append(_link(asked[source], asked[target]))
    except BaseException:
        _end(asked, 0.0)
        raise
    _end(asked, _END_SECONDS)
    return Examination(facts, tuple(links))


def _facts(asked: "_Asked", orders: dict[str, Any]) -> HostFacts:
    asked.start(orders)
    return asked.facts()


class _Waiting:
    """Says which hosts have not answered yet.

    Args:
        names: Of all hosts.
        notify: Receives it.
    """

    def __init__(self, names: list[str], notify: Notify) -> None:
        self._names, self._notify = names, notify
        self._lock = threading.Lock()

    def leave(self, facts: HostFacts) -> HostFacts:
        """Take what is known of a host, which is waited for no more, and return it."""
        with self._lock:
            self._names.remove(facts.host.ssh)
            named, more = self._names[:_NAMED], len(self._names) - _NAMED
        if named:
            self._notify(f"waiting for {', '.join(named)}" + (f" and {more} more" if more > 0 else ""))
        return facts


_NAMED = 3
"""Hosts that are named while they are waited for."""


def _end(asked: "Sequence[_Asked]", grace: float) -> None:
    for each in asked:
        each.leave()  # all of them before the first one is waited for
    deadline = time.monotonic() + grace
    for each in asked:
        each.end(deadline)


def _link(source: "_Asked", target: "_Asked") -> LinkFacts:
    key = secrets.token_hex(32)
    link = LinkFacts(source.host, target.host)
    try:
        listening = target.ask("port", do="listen", key=key)
        if listening["port"] is None:
            return attrs.evolve(link, problem=f"{target.host.ssh} cannot listen there: {listening['problem']}")
        found = source.ask("link", do="measure", address=target.host.address, port=listening["port"], key=key)
    except _Unanswered as unanswered:
        return attrs.evolve(link, problem=unanswered.said)
    if "problem" in found:
        return attrs.evolve(link, problem=found["problem"])
    return attrs.evolve(
        link,
        round_trip_seconds=found["round_trip"],
        bytes_per_second=found["rate"],
        came_from=found["came_from"],
    )


class _Asked:
    """A host while it is asked.

    Args:
        host: From the file.
        place: How the program of a rank is started there.
        seconds: How long it may be silent.
    """

    def __init__(self, host: RankHost, place: RankPlace, seconds: float) -> None:
        self.host = host
        self._place = place
        self._seconds = seconds
        self._lock = threading.Lock()
        self._is_over = False
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        self._unstarted = ""
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by ``end``
        self._answers: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._began = time.monotonic()

    def start(self, orders: dict[str, Any]) -> None:
        """Start the program there with its orders, unless ``leave`` was called."""
        with self._lock:
            if self._is_over:
                return
            try:
                # A session of its own keeps Ctrl-C of the terminal from it, and the terminal from what would ask there.
                self._process = subprocess.Popen(
                    self._place.command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=self._errors,
                    start_new_session=True,
                )
            except OSError as error:
                self._unstarted = f"{self._place.command[0]} cannot be started: {error.strerror}"
                return
            self._reader = threading.Thread(
                target=self._read, args=(self._process.stdout,), name="mlxk-asked", daemon=True
            )
            self._reader.start()
        self._tell(orders)

    def facts(self) -> HostFacts:
        """Return what the host says; it is what keeps it from answering when it does not."""
        try:
            hello = self._hear("hello", self._seconds)
            seconds = time.monotonic() - self._began
            said = self._hear("account", _HASHING_SECONDS)
            reading = None if hello["reading"] is None else MemoryReading(*hello["reading"])
            known = {name: said[name] for name in attrs.fields_dict(HostAccount) if name in said}
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
            return self._without_answer(unanswered.fault, unanswered.said)
        except (LookupError, TypeError) as error:
            return self._without_answer(Fault.HOST_FAILED, f"its answer lacks something: {error}"[:300])

    def _without_answer(self, fault: Fault, said: str) -> HostFacts:
        self.end(0.0)
        return HostFacts(self.host, fault, said, account=HostAccount(problem=said))

    def ask(self, kind: str, **order: object) -> dict[str, Any]:
        """Give an order, and return the answer of a kind."""
        self._tell(order)
        # What is done at the other end of a link has its own time-outs, a part after the other.
        return self._hear(kind, 3 * self._seconds)

    def leave(self) -> None:
        """Have the program there end: its input ends."""
        with self._lock:
            self._is_over = True
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()

    def end(self, deadline: float) -> None:
        """Wait until the program has ended, and end it, with all that it has started here, when that is too late."""
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

    def _tell(self, order: Mapping[str, object]) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        # One that has ended is seen when it is heard; a value error: ``leave`` was called meanwhile.
        with contextlib.suppress(OSError, ValueError):
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()

    def _read(self, printed: IO[bytes]) -> None:
        with printed:
            for line in printed:
                with contextlib.suppress(ValueError):  # a shell may greet
                    answer = json.loads(line)
                    if isinstance(answer, dict) and "kind" in answer:
                        self._answers.put(answer)
        self._answers.put(None)

    def _hear(self, kind: str, most_seconds: float) -> dict[str, Any]:
        """Wait for an answer of a kind, beside signs of life."""
        if self._process is None:
            raise _Unanswered(Fault.NO_SSH if self._is_remote else Fault.HOST_FAILED, self._unstarted)
        deadline = time.monotonic() + most_seconds
        while True:
            try:
                answer = self._answers.get(timeout=max(0.0, min(self._seconds, deadline - time.monotonic())))
            except queue.Empty:
                said = last_line(self._errors)
                silence = f"no answer within {min(self._seconds, most_seconds):g} seconds"
                raise _Unanswered(Fault.HOST_SILENT, f"{silence}: {said}" if said else silence) from None
            if answer is None:
                self._answers.put(None)
                raise self._ended(self._process)
            if answer.pop("kind") == kind:
                return answer

    @property
    def _is_remote(self) -> bool:
        return self._place.command[0] == "ssh"

    def _ended(self, process: "subprocess.Popen[bytes]") -> _Unanswered:
        """Return why the program has ended before it answered."""
        try:
            status = process.wait(self._seconds)
        except subprocess.TimeoutExpired:
            return _Unanswered(Fault.HOST_SILENT, f"no answer within {self._seconds:g} seconds")
        said = last_line(self._errors) or f"it ended with status {status} and no answer"
        if self._is_remote and status == _SSH_FAILED:
            self._errors.seek(0)
            text = self._errors.read(65536).decode(errors="replace")
            for fault, words in _SSH_FAULTS:
                lines = [line.strip() for line in text.splitlines() if re.search(words, line)]
                if lines:
                    return _Unanswered(fault, lines[-1][:300])
            return _Unanswered(Fault.HOST_UNREACHABLE, said)
        if status in (_NOT_RUNNABLE, _NOT_FOUND):
            return _Unanswered(Fault.NO_INTERPRETER, said)
        if re.search(r"No module named '?mlxk\b", said):
            return _Unanswered(Fault.NO_PROGRAM, said)
        return _Unanswered(Fault.HOST_FAILED, said)
