"""Adapters that are built when they are needed, and not before."""

from doubles.event_log import InMemoryEventLog, LoggedEvent
from doubles.text_generator import InMemoryTextGenerator

from mlxk.application.ports.text_generator import TextGenerator
from mlxk.domain.generation.request import GenerationRequest
from mlxk.domain.models.model import ModelHandle, Origin
from mlxk.entrypoints.providers import DeferredEventLog, DeferredTextGenerator

MODEL = ModelHandle("org/one", "/cache/one", Origin.CACHE, "1" * 40)


def test_a_log_is_built_with_its_first_event_and_gets_every_event() -> None:
    built: list[InMemoryEventLog] = []

    def build() -> InMemoryEventLog:
        built.append(InMemoryEventLog())
        return built[-1]

    log = DeferredEventLog(build)
    assert built == []
    for write in (log.debug, log.info, log.warning, log.error):
        write("it happened", model="m")
    (only,) = built
    levels = ("debug", "info", "warning", "error")
    assert only.events == [LoggedEvent(level, "it happened", {"model": "m"}) for level in levels]


def test_an_engine_that_was_not_built_holds_nothing_and_is_not_built_to_say_so() -> None:
    def build() -> TextGenerator:
        raise AssertionError

    engine = DeferredTextGenerator(build)
    assert (engine.state(1.0).responding, engine.state(1.0).models, engine.unload()) == (True, (), ())
    kept = engine.kept_prompts()
    assert (kept.entries, kept.bytes, kept.disk) == (0, 0, None)
    engine.forget_prompts()
    engine.close()


def test_an_engine_that_was_built_is_asked() -> None:
    engine = DeferredTextGenerator(InMemoryTextGenerator)
    engine.load(GenerationRequest(MODEL, "a"))
    assert engine.state(1.0).models == engine.engine.state(1.0).models != ()
    assert engine.unload() == (MODEL,)
    engine.close()
