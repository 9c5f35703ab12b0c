"""Samples over time: their summary, when which model was there, and their chart."""

import attrs

from mlxk.domain.monitoring import (
    CpuShares,
    EngineFigures,
    Extent,
    GpuReading,
    MachineReading,
    MemoryKind,
    ProcessTree,
    Region,
    Sample,
    ServedModel,
    ServerReading,
    Summary,
)

ENGINE = EngineFigures(1, 0, 100, 20, 10, 500, 5)


def server(*models: str, url: str = "http://a") -> ServerReading:
    memory = ProcessTree(2, 1000, MemoryKind.RESIDENT)
    return ServerReading(url, 1, tuple(ServedModel(each, 10) for each in models), ENGINE, memory)


def sample(elapsed: float, machine: MachineReading | None = None, *servers: ServerReading) -> Sample:
    return Sample(1e9 + elapsed, elapsed, machine or MachineReading(), None, servers)


def test_a_summary_has_extremes_and_means_of_what_is_known() -> None:
    machines = [
        MachineReading(100, 60, 30, swap_used_bytes=1, pressure=1),
        MachineReading(100, 40, 10, swap_used_bytes=3, pressure=4, cpu=CpuShares(20, 10, 70)),
        MachineReading(gpu=GpuReading(50.0), pressure=2),
    ]
    summary = Summary.of(sample(index, each) for index, each in enumerate(machines))
    assert (summary.seconds, summary.samples, summary.total_bytes, summary.pressure) == (2, 3, 100, 4)
    assert summary.free_bytes == Extent(10, 30, 20, 2)
    assert summary.used_bytes == Extent(40, 60, 50, 2)
    assert summary.swap_used_bytes == Extent(1, 3, 2, 2)
    assert (summary.cpu_percent, summary.gpu_percent) == (Extent(30, 30, 30), Extent(50, 50, 50))
    assert (summary.server_bytes, summary.array_bytes, summary.command) == (None, None, None)


def test_a_summary_of_nothing_says_nothing() -> None:
    assert Summary.of([]) == Summary()


def test_the_command_is_that_of_the_sample_with_the_most_memory() -> None:
    trees = [ProcessTree(1, 5, MemoryKind.RESIDENT), ProcessTree(3, 9, MemoryKind.RESIDENT), None]
    summary = Summary.of(attrs.evolve(sample(index), command=tree) for index, tree in enumerate(trees))
    assert summary.command == trees[1]


def test_models_have_a_region_from_the_sample_they_appear_in_to_the_one_they_are_gone_in() -> None:
    samples = [
        sample(0),
        sample(1, None, server("a")),
        sample(2, None, server("a", "b"), server("a", url="http://b")),
        sample(3, None, server("b")),
        sample(4, None, server("a", "b")),
    ]
    summary = Summary.of(samples)
    assert summary.models == (Region("a", 1, 3), Region("a", 2, 3), Region("b", 2, 4), Region("a", 4, 4))
    assert summary.server_bytes == Extent(1000, 2000, 1250, 4)
    assert summary.array_bytes == Extent(500, 1000, 625, 4)
