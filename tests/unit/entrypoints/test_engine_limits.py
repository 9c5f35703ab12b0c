"""The limits of the engine: from the machine's memory, and from what the operator of a server decided."""

import attrs
import pytest
from doubles.memory_probe import InMemoryMemoryProbe

from mlxk.adapters.mlx.memory import DiskLimits, EngineLimits
from mlxk.domain.models.footprint import MemoryReading
from mlxk.entrypoints.adapter_container import engine_limits
from mlxk.entrypoints.settings import ServerSettings

GIB = 1024**3


def of(reading: MemoryReading | None, server: ServerSettings | None = None) -> EngineLimits:
    return engine_limits(InMemoryMemoryProbe(reading), server)


@pytest.mark.parametrize("server", [None, ServerSettings()])
def test_limits_follow_from_the_memory_of_the_machine(server: ServerSettings | None) -> None:
    reading = MemoryReading(total=100 * GIB, available=3 * GIB)
    options = of(reading, server)
    assert options.model_budget_bytes == 70 * GIB
    assert options.cache_budget_bytes == options.prefix_cache_bytes == 20 * GIB


def test_an_accelerator_s_limit_counts_where_it_is_lower() -> None:
    options = of(MemoryReading(100 * GIB, 100 * GIB, accelerator_limit=50 * GIB))
    assert (options.model_budget_bytes, options.cache_budget_bytes) == (35 * GIB, 10 * GIB)


def test_prompts_are_kept_on_disk_where_the_operator_says() -> None:
    server = ServerSettings(prefix_cache_dir="/kept", prefix_cache_disk_gib=0.5)
    assert of(None, server).disk == DiskLimits("/kept", GIB // 2)
    assert of(None, ServerSettings()).disk is None


@pytest.mark.parametrize("mib", [0, 1, 512])
def test_features_of_images_are_kept_as_the_operator_says(mib: int) -> None:
    assert of(None, ServerSettings(vision_cache_mib=mib)).vision_cache_bytes == mib * 1024**2


def test_what_the_operator_says_wins() -> None:
    server = ServerSettings(memory_budget_mib=2048, max_streams=5, max_queue=7, keep_alive=60.0)
    options = of(MemoryReading(100 * GIB, 100 * GIB), server)
    assert (options.model_budget_bytes, options.cache_budget_bytes) == (2 * GIB, 20 * GIB)
    assert (options.max_rows, options.keep_alive_seconds) == (5, 60.0)


def test_a_machine_that_does_not_tell_sets_no_limits_but_one_on_prefixes() -> None:
    assert attrs.evolve(of(None), free_bytes=EngineLimits().free_bytes) == EngineLimits()
    assert of(None).free_bytes() is None
    assert of(None).prefix_cache_bytes > 0
    assert of(None, ServerSettings(memory_budget_mib=1)).model_budget_bytes == 1024**2
