"""The watch: what a sample has of machine, command and servers, and that a slow server delays none."""

import threading
import time
from collections.abc import Callable, Sequence

import attrs
import pytest
from doubles.machine_probe import InMemoryMachineProbe
from doubles.running_servers import InMemoryRunningServers
from doubles.server_probe import InMemoryServerProbe

from mlxk.adapters.system import SystemClock
from mlxk.application.ports.measuring import CompletionServer
from mlxk.application.ports.other_processes import RunningServer, RunningServers
from mlxk.application.ports.text_generator import ResidentModel
from mlxk.application.use_cases.watch_machine import Watch, WatchMachine
from mlxk.domain.errors import AccessDeniedError
from mlxk.domain.generation.request import EngineFigures
from mlxk.domain.models.model import ModelHandle, Origin
from mlxk.domain.monitoring import MachineReading, MachineSample, MemoryKind, ProcessTree, ServerReading, WatchedModel

ENGINE = EngineFigures(1, 0, 10, 5, 3, 100, 7)
MODEL = ResidentModel(ModelHandle("org/b", "/models/b", Origin.CACHE), 50, None, in_use=True, tokens_per_second=9.5)
SERVER = RunningServer("key", 77, "http://a", "1", (MODEL,), ENGINE)
READING = ServerReading("http://a", 77, (WatchedModel("org/b", 50, True, 9.5),), ENGINE)
ASKED = CompletionServer("http://b")
TREE = ProcessTree(2, 1000, MemoryKind.RESIDENT)


def machine(**trees: ProcessTree) -> InMemoryMachineProbe:
    probe = InMemoryMachineProbe(MachineReading(100, 40))
    probe.trees.update({int(name.removeprefix("p")): tree for name, tree in trees.items()})
    return probe


def watching(
    probe: InMemoryMachineProbe | None = None,
    servers: RunningServers | None = None,
    asked: InMemoryServerProbe | None = None,
) -> WatchMachine:
    none = InMemoryServerProbe({})
    return WatchMachine(probe or machine(), servers or InMemoryRunningServers(), asked or none, SystemClock())


def taken(use: WatchMachine, watch: Watch, enough: Callable[[list[MachineSample]], bool]) -> list[MachineSample]:
    """Watch until the samples are enough, or a test would wait for ever."""
    found: list[MachineSample] = []
    deadline = time.monotonic() + 60

    def take(sample: MachineSample) -> None:
        found.append(sample)
        if enough(found) or time.monotonic() > deadline:
            watch.ended.set()

    use(watch, take)
    return found


def test_a_sample_has_the_machine_the_command_and_the_servers_with_their_memory() -> None:
    probe = machine(p5=TREE, p77=attrs.evolve(TREE, memory_bytes=2000))
    watch = Watch(0.02, command=5)
    first, *_, last = taken(watching(probe, InMemoryRunningServers(SERVER)), watch, lambda found: len(found) == 3)
    assert (first.elapsed < 60, first.time) == (True, pytest.approx(time.time(), abs=60))
    assert first.machine == MachineReading(100, 40)
    assert first.command == TREE
    assert first.servers == (attrs.evolve(READING, memory=attrs.evolve(TREE, memory_bytes=2000)),)
    assert last.elapsed > first.elapsed


def test_there_is_a_sample_at_once_and_one_at_the_end() -> None:
    found = taken(watching(), Watch(3600.0), lambda _: True)
    assert len(found) == 2
    assert found[1].elapsed < 60


def test_a_command_may_begin_and_end_meanwhile() -> None:
    watch = Watch(0.02)

    def enough(found: list[MachineSample]) -> bool:
        watch.command = {1: 5, 3: None}.get(len(found), watch.command)
        return len(found) == 5

    found = taken(watching(machine(p5=TREE)), watch, enough)
    assert [each.command for each in found[:5]] == [None, TREE, TREE, None, None]


class SlowServers(InMemoryRunningServers):
    """Answers the first time at once, and then not until the test ends."""

    def __init__(self) -> None:
        super().__init__(SERVER)
        self.asked = 0
        self.released = threading.Event()

    def servers(self, seconds: float | None = None) -> tuple[RunningServer, ...]:
        self.asked += 1
        if self.asked > 1:
            self.released.wait(60)
        return super().servers()


def test_a_server_that_does_not_answer_delays_no_sample() -> None:
    servers = SlowServers()
    found = taken(watching(servers=servers), Watch(0.05), lambda found: servers.asked > 1 and len(found) > 20)
    servers.released.set()
    assert len(found) > 20
    assert {each.servers[0].url for each in found} == {"http://a"}


class LateOnce(InMemoryMachineProbe):
    """Takes long for its second reading."""

    count = 0

    def read(self, roots: Sequence[int]) -> tuple[MachineReading, tuple[ProcessTree | None, ...]]:
        self.count += 1
        if self.count == 2:
            time.sleep(0.25)
        return super().read(roots)


def test_samples_keep_to_their_times_and_the_time_of_a_late_one_is_left_out() -> None:
    found = taken(watching(LateOnce()), Watch(0.1), lambda found: len(found) == 4)
    assert found[2].elapsed - found[1].elapsed > 0.19
    assert all(each.elapsed >= 0.1 * index - 0.01 for index, each in enumerate(found[:4]))


def test_a_server_that_is_named_is_the_only_one_that_is_asked() -> None:
    asked = InMemoryServerProbe({"http://b": ServerReading("http://b", None, (), ENGINE)})
    use = watching(servers=InMemoryRunningServers(SERVER), asked=asked)
    (first, *_) = taken(use, Watch(0.02, ASKED), lambda _: True)
    assert first.servers == (ServerReading("http://b", None, (), ENGINE),)


def test_why_a_server_is_missing_is_said_until_it_is_back() -> None:
    asked = InMemoryServerProbe({})

    def enough(found: list[MachineSample]) -> bool:
        asked.readings["http://b"] = ServerReading("http://b", None, ())
        return bool(found[-1].servers)

    found = taken(watching(asked=asked), Watch(0.02, ASKED), enough)
    assert found[0].faults == ("the server cannot be asked: nothing is there",)
    assert found[-1].faults == ()


def test_another_key_is_asked_for_before_any_sample_and_said_later() -> None:
    asked = InMemoryServerProbe({"http://b": ServerReading("http://b", None, ())}, key="sesame")
    with pytest.raises(AccessDeniedError):
        watching(asked=asked)(Watch(0.02, ASKED), lambda _: None)
    server = attrs.evolve(ASKED, api_key="sesame")

    def enough(found: list[MachineSample]) -> bool:
        asked.key = "melon"
        return bool(found[-1].faults)

    found = taken(watching(asked=asked), Watch(0.02, server), enough)
    assert found[-1].faults == ("the server wants another key",)


def test_what_a_listing_could_not_show_is_said() -> None:
    servers = InMemoryRunningServers()
    servers.hidden = ("the server with the process 7 does not respond",)
    (first, *_) = taken(watching(servers=servers), Watch(0.02), lambda _: True)
    assert first.faults == servers.hidden
