"""Providers of the engine, and its limits. Part of the composition root; ``container`` registers them.

The limits follow from the memory that is available to MLX, as the memory probe reads it when the engine is built
(``domain.models.memory`` has the shares):

    weights of all models together                        70 %, or what the operator of a server says
    caches of running answers and kept prefixes together  20 %
    prefixes when nothing runs                            all of that; they make room for whatever starts

A machine that does not tell its memory sets no limits but the one on prefixes that ``EngineLimits`` has.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlxk.adapters.mlx.engine.engine_limits import EngineLimits
    from mlxk.adapters.mlx.engine.model_lease import ModelLeases
    from mlxk.application.ports.clock import Clock
    from mlxk.application.ports.event_log import EventLog
    from mlxk.application.ports.memory_probe import MemoryProbe
    from mlxk.application.ports.text_generator import TextGenerator
    from mlxk.entrypoints.server_settings import ServerSettings

_MIB = 1024 * 1024


def engine_options(memory: "MemoryProbe", server: "ServerSettings | None") -> "EngineLimits":
    """Set the limits of the engine.

    Args:
        memory: Says how much there is.
        server: What the operator of a server decided; None for commands.
    """
    from mlxk.adapters.mlx.engine.engine_limits import EngineLimits

    reading, limits = memory.read(), {}
    if reading is not None:
        limits = {
            "model_budget_bytes": reading.budget,
            "cache_budget_bytes": reading.cache_budget,
            "prefix_cache_bytes": reading.cache_budget,
        }
    if server is None:
        return EngineLimits(**limits)
    if server.memory_budget_mib is not None:
        limits["model_budget_bytes"] = server.memory_budget_mib * _MIB
    return EngineLimits(
        **limits,
        max_rows=server.max_streams,
        keep_alive_seconds=server.keep_alive,
    )


def text_generator(
    log: "EventLog", clock: "Clock", memory: "MemoryProbe", server: "ServerSettings | None"
) -> "TextGenerator":
    """Generate text with MLX."""
    from mlxk.adapters.mlx.engine import malloc
    from mlxk.adapters.mlx.text_generator import MlxTextGenerator

    if server is not None:
        malloc.use_single_arena()
    return MlxTextGenerator(log, clock, engine_options(memory, server))


def lender(generator: "TextGenerator") -> "ModelLeases":
    """Lend models of other kinds, in the memory and on the thread of the engine that generates text."""
    from mlxk.adapters.mlx.text_generator import MlxTextGenerator

    if not isinstance(generator, MlxTextGenerator):
        raise TypeError(f"{type(generator).__name__} lends no models")
    return generator.lender
