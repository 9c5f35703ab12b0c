"""The server's application on the program's own adapters, its engine included; only its log is kept in memory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from dependency_injector import providers
from doubles.event_log import InMemoryEventLog

from mlxk.entrypoints.container import build
from mlxk.entrypoints.http.app import Application
from mlxk.entrypoints.http.process.worker import services_of
from mlxk.entrypoints.settings import ServerSettings, read_settings

PATH = "/v1/chat/completions"
QUESTION: dict[str, Any] = {
    "model": "demo",
    "messages": [{"role": "user", "content": "What is mlxk?"}],
    "temperature": 0,
}
"""A request with a short answer."""
ENDLESS = {**QUESTION, "max_tokens": 1900, "logit_bias": {"0": -100, "1": -100, "2": -100, "3": -100}}
"""A request whose answer takes seconds: the tokens that end it are forbidden."""


class WholeProgram:
    """What ``RunningServer`` serves.

    Args:
        home: The home directory.
        settings: The operator's.
        variables: Of the environment, beside the home directory.
    """

    def __init__(self, home: Path, settings: ServerSettings | None = None, **variables: str) -> None:
        settings = settings or ServerSettings()
        self.log = InMemoryEventLog()
        container = build(read_settings({"HOME": str(home), **variables}), settings)
        container.adapters.event_log.override(providers.Object(self.log))
        self.generator: Any = container.adapters.text_generator()
        services = services_of(container)
        services.catalogue.offer_all(settings.model, settings.aliases, settings.default_model, settings.ready)
        self.application = Application(services, settings)
        self.application.lifecycle.preloaded = True

    def do_in_loop(self, work: Callable[[], None]) -> None:
        """Have something done in the engine's thread, outside of everything that expects failures."""
        self.generator._thread.post(lambda engine: work())

    def running(self) -> int:
        """Return how many answers are computed."""
        return int(self.generator.state(0.5).running)

    def close(self) -> None:
        """End everything."""
        self.application.close()
        self.generator.close()
