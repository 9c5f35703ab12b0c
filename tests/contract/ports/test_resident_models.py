"""What every engine says of itself, run on the double and on MLX."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from doubles.event_log import InMemoryEventLog
from doubles.text_generator import InMemoryTextGenerator
from models.answers import read
from models.tiny_models import build

from mlxk.adapters.mlx.text_generator import MlxTextGenerator
from mlxk.adapters.system.clock import SystemClock
from mlxk.domain.generation.request import GenerationRequest, GenerationSettings
from mlxk.domain.models.model import ModelHandle

pytestmark = pytest.mark.mlx
Engine = MlxTextGenerator | InMemoryTextGenerator
PATIENCE_SECONDS = 10.0


@pytest.fixture
def handle(tmp_path: Path) -> ModelHandle:
    return build(tmp_path / "llama")


@pytest.fixture(params=["in memory", "mlx"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    mlx = request.param == "mlx"
    adapter: Engine = (
        MlxTextGenerator(InMemoryEventLog(), SystemClock()) if mlx else InMemoryTextGenerator(step_seconds=0.0005)
    )
    yield adapter
    adapter.close()


def asking(handle: ModelHandle, max_tokens: int) -> GenerationRequest:
    settings = GenerationSettings(temperature=0, max_tokens=max_tokens, ignore_eos=True)
    return GenerationRequest(handle, "word " * 1000, settings)


def test_an_engine_that_was_never_used_responds_and_holds_nothing(engine: Engine) -> None:
    state = engine.state(PATIENCE_SECONDS)
    assert state.responding
    assert (state.running, state.waiting, state.models) == (0, 0, ())


def test_a_model_is_resident_once_it_has_answered(engine: Engine, handle: ModelHandle) -> None:
    read(engine.submit(asking(handle, 2)))
    state = engine.state(PATIENCE_SECONDS)
    assert state.responding
    assert state.models == (handle,)


def test_a_running_answer_counts_as_running(engine: Engine, handle: ModelHandle) -> None:
    with engine.submit(asking(handle, 900)) as stream:
        next(stream)
        assert engine.state(PATIENCE_SECONDS).running == 1
    read(stream)
    assert engine.state(PATIENCE_SECONDS).running == 0


def test_an_idle_model_is_unloaded_on_request_and_comes_back_when_asked(engine: Engine, handle: ModelHandle) -> None:
    read(engine.submit(asking(handle, 2)))
    assert engine.unload(handle) == (handle,)
    assert engine.unload() == ()
    assert engine.state(PATIENCE_SECONDS).models == ()
    read(engine.submit(asking(handle, 2)))
    assert engine.unload() == (handle,)


def test_a_model_in_use_stays(engine: Engine, handle: ModelHandle) -> None:
    with engine.submit(asking(handle, 900)) as stream:
        next(stream)
        assert engine.unload() == ()
        assert engine.state(PATIENCE_SECONDS).models == (handle,)
    read(stream)
