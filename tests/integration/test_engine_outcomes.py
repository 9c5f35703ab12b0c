"""Who waits for the engine gets an outcome, whatever fails or is interrupted meanwhile, and no model stays in use."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest
from doubles.event_log import InMemoryEventLog
from models.answers import oracle, read
from models.tiny_models import build

from mlxk.adapters.mlx.engine.model_pool import Hold
from mlxk.adapters.mlx.loading.model_files import weight_bytes
from mlxk.adapters.mlx.memory import EngineLimits
from mlxk.adapters.mlx.text_generator import MlxTextGenerator
from mlxk.adapters.system import SystemClock
from mlxk.domain.errors import ExecutionError, StorageError
from mlxk.domain.generation.request import GenerationRequest
from mlxk.domain.generation.settings import GenerationSettings
from mlxk.domain.models.model import ModelHandle

pytestmark = pytest.mark.mlx
PATIENCE_SECONDS = 60.0
Engines = Callable[..., MlxTextGenerator]


@pytest.fixture
def engines() -> Iterator[Engines]:
    """Return a function that makes engines, which end with the test."""
    with contextlib.ExitStack() as stack:

        def make(hold: Hold, budget_bytes: int | None = None) -> MlxTextGenerator:
            limits = EngineLimits(model_budget_bytes=budget_bytes)
            generator = MlxTextGenerator(InMemoryEventLog(), SystemClock(), limits, hold)
            stack.callback(generator.close)
            return generator

        yield make


def asking(handle: ModelHandle) -> GenerationRequest:
    settings = GenerationSettings(temperature=0, max_tokens=8, ignore_eos=True, logprobs=0)
    return GenerationRequest(handle, "Hello world", settings)


class Holds:
    """Marks models as in use, of which the first mark cannot be removed.

    Args:
        error: What its removal raises.
    """

    def __init__(self, error: Exception) -> None:
        self._errors = [error]

    @contextlib.contextmanager
    def __call__(self, _: ModelHandle) -> Iterator[None]:
        yield
        if self._errors:
            raise self._errors.pop()


@pytest.mark.parametrize("error", [StorageError("the disk is gone"), RuntimeError("surprise"), OSError("refused")])
def test_unloading_that_fails_is_an_error_and_the_engine_goes_on(
    engines: Engines, tmp_path: Path, error: Exception
) -> None:
    handle = build(tmp_path / "a")
    engine = engines(Holds(error))
    engine.load(asking(handle))
    with pytest.raises(StorageError if isinstance(error, StorageError) else ExecutionError):
        engine.unload(handle)
    assert read(engine.submit(asking(handle))).tokens == oracle(handle, "Hello world", 8)
    assert engine.unload(handle) == (handle,)


@pytest.mark.parametrize("error", [StorageError("the disk is gone"), RuntimeError("surprise")])
def test_a_load_that_cannot_make_room_fails_and_the_next_one_is_served(
    engines: Engines, tmp_path: Path, error: Exception
) -> None:
    first, second = build(tmp_path / "a"), build(tmp_path / "b", seed=1)
    engine = engines(Holds(error), weight_bytes(first.directory))
    engine.load(asking(first))
    with pytest.raises(StorageError if isinstance(error, StorageError) else ExecutionError):
        engine.load(asking(second))
    assert read(engine.submit(asking(second))).tokens == oracle(second, "Hello world", 8)


@pytest.mark.parametrize("submits", [False, True])
def test_an_interrupt_as_the_model_arrives_leaves_no_lease(engines: Engines, tmp_path: Path, submits: bool) -> None:
    handle = build(tmp_path / "a")
    waited = threading.Event()

    @contextlib.contextmanager
    def hold(_: ModelHandle) -> Iterator[None]:
        assert waited.wait(PATIENCE_SECONDS)
        yield

    engine = engines(hold)

    def interrupted() -> bool:
        waited.set()
        while not engine.state(PATIENCE_SECONDS).models:
            pass
        raise KeyboardInterrupt

    request = attrs.evolve(asking(handle), is_abandoned=interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.submit(request) if submits else engine.load(request)
    assert engine.unload(handle) == (handle,)
