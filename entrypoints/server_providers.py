"""Providers of what the server asks. Part of the composition root; ``container`` registers them."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlxk.application.ports.clock import Clock
    from mlxk.application.ports.event_log import EventLog
    from mlxk.application.ports.memory_probe import MemoryProbe
    from mlxk.application.ports.text_generator import TextGenerator
    from mlxk.application.use_cases.describe_model import DescribeModel
    from mlxk.application.use_cases.list_models import ListModels
    from mlxk.application.use_cases.resolve_model import ResolveModel
    from mlxk.application.use_cases.serve_catalogue import ServeCatalogue
    from mlxk.application.use_cases.serve_text import ServeText
    from mlxk.entrypoints.server_settings import ServerSettings


def serve_catalogue(
    resolve: "ResolveModel",
    list_models: "ListModels",
    describe: "DescribeModel",
    resident: "TextGenerator",
    clock: "Clock",
    server: "ServerSettings | None",
) -> "ServeCatalogue":
    """Offer models to clients."""
    from mlxk.application.use_cases.serve_catalogue import ServeCatalogue

    return ServeCatalogue(resolve, list_models, describe, resident, clock, server is not None and server.allow_paths)


def serve_text(
    catalogue: "ServeCatalogue",
    generator: "TextGenerator",
    memory: "MemoryProbe",
    log: "EventLog",
    server: "ServerSettings | None",
) -> "ServeText":
    """Answer clients."""
    from mlxk.application.use_cases.serve_text import ServeText

    return ServeText(catalogue, generator, memory, log, server is not None and server.strict_memory)
