"""What a GPU of Apple's asks of the engine, by fakes of MLX's calls: one thread, wired memory, the working set."""

import threading
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import pytest
from models.answers import read
from models.tiny_models import build
from models.workshop import Workshop

from mlxk.adapters.mlx.loading.text_model import load_model
from mlxk.adapters.mlx.text_generator import MlxTextGenerator
from mlxk.domain.generation.request import GenerationRequest
from mlxk.domain.generation.settings import GenerationSettings
from mlxk.domain.models.model import ModelHandle

pytestmark = pytest.mark.mlx
WORKING_SET = 12 * 1024**3
COMPUTING = ("eval", "async_eval", "synchronize", "clear_cache", "load")


@pytest.fixture(scope="module")
def handle(tmp_path_factory: pytest.TempPathFactory) -> ModelHandle:
    return build(tmp_path_factory.mktemp("tiny") / "llama", max_position_embeddings=8192)


def answer(engine: MlxTextGenerator, handle: ModelHandle) -> None:
    read(engine.submit(GenerationRequest(handle, "one two three", GenerationSettings(max_tokens=4, logprobs=2))))


def test_one_thread_computes_whoever_asks(
    engine: MlxTextGenerator, handle: ModelHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream of Metal belongs to the thread that made it."""
    threads: set[str] = set()

    def noting(call: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*given: Any, **options: Any) -> Any:
            threads.add(threading.current_thread().name)
            return call(*given, **options)

        return noted

    for name in COMPUTING:
        monkeypatch.setattr(mx, name, noting(getattr(mx, name)))
    asking = [threading.Thread(target=answer, args=(engine, handle)) for _ in range(3)]
    for each in asking:
        each.start()
    for each in asking:
        each.join()
    engine.unload(handle)
    engine.close()
    assert threads == {"mlx-owner"}


@pytest.fixture
def metal(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Have a GPU with a recommended working set; return the wired limits that are set, the first one in force."""
    limits = [0]

    def set_wired_limit(size: int) -> int:
        assert size <= WORKING_SET, "MLX refuses more"
        limits.append(size)
        return limits[-2]

    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx, "device_info", lambda *_: {"max_recommended_working_set_size": WORKING_SET})
    monkeypatch.setattr(mx, "set_wired_limit", set_wired_limit)
    return limits


def test_a_gpu_keeps_models_wired_while_the_engine_runs_and_gets_its_limit_back(
    engine: MlxTextGenerator, handle: ModelHandle, metal: list[int]
) -> None:
    answer(engine, handle)
    answer(engine, handle)
    assert metal == [0, WORKING_SET]
    engine.close()
    assert metal == [0, WORKING_SET, 0]


def test_what_the_working_set_has_left_is_what_is_free(
    handle: ModelHandle, metal: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    used = WORKING_SET - 100 * 2**20
    workshop = Workshop(load_model(handle), free_bytes=lambda: None)
    workshop.pooled.bytes_per_token = 2**20
    monkeypatch.setattr(mx, "get_active_memory", lambda: used)
    streams = [workshop.start("word " * 80)[1] for _ in range(2)]
    workshop.step()
    assert (workshop.scheduler.running, workshop.memory.decisions.waits) == (1, 1)
    monkeypatch.setattr(mx, "get_active_memory", lambda: 0)
    workshop.run()
    assert all(read(stream).text for stream in streams)


def test_without_a_recommendation_no_limit_is_set(
    engine: MlxTextGenerator, handle: ModelHandle, metal: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mx.metal, "is_available", lambda: False)
    monkeypatch.setattr(mx, "device_info", lambda *_: {})
    answer(engine, handle)
    engine.close()
    assert metal == [0]
