"""The queue of requests whose models are not in memory: served in the order they came."""

import threading
from pathlib import Path

import pytest
from doubles.event_log import InMemoryEventLog
from models.answers import read
from models.tiny_models import build

from mlxk.adapters.mlx.loading.model_files import weight_bytes
from mlxk.adapters.mlx.memory import EngineLimits
from mlxk.adapters.mlx.text_generator import MlxTextGenerator
from mlxk.adapters.system import SystemClock
from mlxk.application.ports.text_generator import TextStream
from mlxk.domain.errors import ExecutionError
from mlxk.domain.generation.request import GenerationRequest
from mlxk.domain.generation.settings import GenerationSettings
from mlxk.domain.models.model import ModelHandle

pytestmark = pytest.mark.mlx
PATIENCE_SECONDS = 20.0


def asking(handle: ModelHandle, max_tokens: int = 5) -> GenerationRequest:
    settings = GenerationSettings(temperature=0, max_tokens=max_tokens, ignore_eos=True)
    return GenerationRequest(handle, "Hello world", settings)


def decoding(engine: MlxTextGenerator, handle: ModelHandle) -> TextStream:
    """Start a long completion and wait for its first token, so that nothing of it waits in a queue."""
    stream = engine.submit(asking(handle, max_tokens=50_000))
    next(stream)
    return stream


def eventually(happened: threading.Event | None, engine: MlxTextGenerator, waiting: int) -> None:
    """Wait until so many requests wait for their models, or an event has happened."""
    end = SystemClock().monotonic() + PATIENCE_SECONDS
    while engine.state(PATIENCE_SECONDS).waiting < waiting and not (happened and happened.is_set()):
        assert SystemClock().monotonic() < end


def test_a_request_for_a_loaded_model_does_not_overtake_one_that_waits_for_room(tmp_path: Path) -> None:
    first, second = build(tmp_path / "a", max_position_embeddings=65536), build(tmp_path / "b", seed=1)
    engine = MlxTextGenerator(
        InMemoryEventLog(), SystemClock(), EngineLimits(model_budget_bytes=weight_bytes(first.directory))
    )
    running, started = decoding(engine, first), [threading.Event(), threading.Event()]

    def submit(handle: ModelHandle, started: threading.Event) -> None:
        stream = engine.submit(asking(handle))
        started.set()
        read(stream)

    threads = [threading.Thread(target=submit, args=each) for each in zip((second, first), started, strict=True)]
    threads[0].start()
    eventually(None, engine, 1)
    threads[1].start()
    eventually(started[1], engine, 2)
    overtaken = [each.is_set() for each in started]
    running.cancel()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    engine.close()
    assert overtaken == [False, False]
    assert all(each.is_set() for each in started)


def test_a_request_that_waits_for_room_is_refused_when_the_engine_closes(tmp_path: Path) -> None:
    first, second = build(tmp_path / "a", max_position_embeddings=65536), build(tmp_path / "b", seed=1)
    engine = MlxTextGenerator(
        InMemoryEventLog(), SystemClock(), EngineLimits(model_budget_bytes=weight_bytes(first.directory))
    )
    running = decoding(engine, first)
    refused: list[str] = []

    def submit() -> None:
        try:
            engine.submit(asking(second))
        except ExecutionError as error:
            refused.append(error.message)

    thread = threading.Thread(target=submit)
    thread.start()
    eventually(None, engine, 1)
    engine.close()
    thread.join(PATIENCE_SECONDS)
    assert len(refused) == 1
    running.cancel()
