"""Samples over time: their summary, when which model was there, and their chart."""

import attrs
import pytest

from mlxk.domain.charts import chart_of, joined
from mlxk.domain.generation.request import EngineFigures
from mlxk.domain.monitoring import (
    CpuShares,
    Extent,
    GpuReading,
    MachineReading,
    MachineSample,
    MemoryKind,
    Period,
    ProcessTree,
    Rates,
    ServerReading,
    WatchedModel,
    WatchSummary,
)

ENGINE = EngineFigures(1, 0, 100, 20, 10, 500, 5)


def server(*models: str, url: str = "http://a") -> ServerReading:
    memory = ProcessTree(2, 1000, MemoryKind.RESIDENT)
    return ServerReading(url, 1, tuple(WatchedModel(each, 10) for each in models), ENGINE, memory)


def sample(elapsed: float, machine: MachineReading | None = None, *servers: ServerReading) -> MachineSample:
    return MachineSample(1e9 + elapsed, elapsed, machine or MachineReading(), None, servers)


def test_a_summary_has_extremes_and_means_of_what_is_known() -> None:
    machines = [
        MachineReading(100, 60, 30, swap_used_bytes=1, pressure=1),
        MachineReading(100, 40, 10, swap_used_bytes=3, pressure=4, cpu=CpuShares(20, 10, 70)),
        MachineReading(gpu=GpuReading(50.0), pressure=2),
    ]
    summary = WatchSummary.of(sample(index, each) for index, each in enumerate(machines))
    assert (summary.seconds, summary.samples, summary.total_bytes, summary.pressure) == (2, 3, 100, 4)
    assert summary.free_bytes == Extent(10, 30, 20, 2)
    assert summary.used_bytes == Extent(40, 60, 50, 2)
    assert summary.swap_used_bytes == Extent(1, 3, 2, 2)
    assert (summary.cpu_percent, summary.gpu_percent) == (Extent(30, 30, 30), Extent(50, 50, 50))
    assert (summary.server_bytes, summary.array_bytes, summary.command) == (None, None, None)


def test_a_summary_of_nothing_says_nothing() -> None:
    assert WatchSummary.of([]) == WatchSummary()


def test_the_command_is_that_of_the_sample_with_the_most_memory() -> None:
    trees = [ProcessTree(1, 5, MemoryKind.RESIDENT), ProcessTree(3, 9, MemoryKind.RESIDENT), None]
    summary = WatchSummary.of(attrs.evolve(sample(index), command=tree) for index, tree in enumerate(trees))
    assert summary.command == trees[1]


def test_models_have_a_region_from_the_sample_they_appear_in_to_the_one_they_are_gone_in() -> None:
    samples = [
        sample(0),
        sample(1, None, server("a")),
        sample(2, None, server("a", "b"), server("a", url="http://b")),
        sample(3, None, server("b")),
        sample(4, None, server("a", "b")),
    ]
    summary = WatchSummary.of(samples)
    assert summary.models == (
        Period("a", 1, 3),
        Period("a", 2, 3),
        Period("b", 2, 4),
        Period("a", 4, 4),
    )
    assert summary.server_bytes == Extent(1000, 2000, 1250, 4)
    assert summary.array_bytes == Extent(500, 1000, 625, 4)


def test_regions_of_one_label_that_follow_one_another_are_one() -> None:
    regions = [
        Period("a", 5, 6),
        Period("a", 0, 2),
        Period("b", 1, 9),
        Period("a", 2.5, 4),
        Period("a", 8, 9),
    ]
    assert joined(regions) == (Period("a", 0, 6), Period("b", 1, 9), Period("a", 8, 9))


@pytest.mark.parametrize(
    ("change", "seconds", "rates"),
    [
        ({"prompt_tokens": 300, "cached_tokens": 120, "generated_tokens": 30}, 2.0, Rates(50.0, 10.0)),
        ({}, 2.0, Rates(0.0, 0.0)),
        ({"generated_tokens": 9}, 2.0, None),
        ({"prompt_tokens": 50}, 2.0, None),
        ({"prompt_tokens": 300}, 0.0, None),
    ],
)
def test_rates_are_of_computed_tokens_and_unknown_when_the_server_began_anew(
    change: dict[str, int], seconds: float, rates: Rates | None
) -> None:
    assert Rates.between(ENGINE, attrs.evolve(ENGINE, **change), seconds) == rates


def test_a_chart_has_three_rows_with_the_curves_that_have_values() -> None:
    machine = MachineReading(4 * 10**9, 10**9, 10**9, pressure=1, cpu=CpuShares(20, 10, 70))
    samples = [sample(0), sample(1, machine, server("a"))]
    chart = chart_of(samples, [Period("a", -5, 0.5), Period("b", 0.9, 7), Period("c", 2, 3)], "title")
    assert [row.title for row in chart.rows] == ["Memory", "Processor and GPU", "Swap and pressure"]
    memory, busy, pressure = chart.rows
    assert [each.name for each in memory.series] == ["used", "free", "servers", "arrays of the servers"]
    assert memory.series[0].values == (None, 3.0)
    assert [(each.name, each.values) for each in busy.series] == [
        ("processor", (None, 30)),
        ("the system's part of it", (None, 10)),
    ]
    assert (pressure.series, pressure.right_levels[0]) == ((), (1, "normal"))
    assert [each.values for each in pressure.right_series] == [(None, 1)]
    assert chart.regions == (Period("a", 0, 0.5), Period("b", 0.9, 1))
    assert chart.seconds == (0, 1)


def test_memory_that_only_the_gpu_has_is_a_curve_of_its_own() -> None:
    own, shared = GpuReading(1.0, used_bytes=10**9, total_bytes=10**10), GpuReading(1.0, used_bytes=10**9)
    names = [
        [each.name for each in chart_of([sample(0, MachineReading(gpu=gpu))], [], "").rows[0].series]
        for gpu in (own, shared)
    ]
    assert names == [["GPU's own"], []]
