"""Loading and unloading, again and again: nothing is kept of it."""

import contextlib
import ctypes
import gc
import os
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from doubles.clock import InMemoryClock
from doubles.event_log import InMemoryEventLog
from models.tiny_embedding import build_bert
from models.tiny_models import build
from serving.running import eventually

from mlxk.adapters.mlx.embedding.embedder import MlxTextEmbedder
from mlxk.adapters.mlx.embedding.loading import EmbeddingModel, load_embedding_model
from mlxk.adapters.mlx.engine.engine import Engine
from mlxk.adapters.mlx.engine.model_pool import WantedModel
from mlxk.adapters.mlx.loading.text_model import load_tokenizer
from mlxk.adapters.mlx.memory import EngineLimits
from mlxk.adapters.mlx.text_generator import MlxTextGenerator
from mlxk.adapters.system import SystemClock
from mlxk.domain.embedding import EmbeddingRequest
from mlxk.domain.generation.request import Finished, GenerationRequest
from mlxk.domain.generation.settings import GenerationSettings

pytestmark = pytest.mark.mlx
LOADS = 100
MOST_BYTES_A_LOAD = 20 * 1024
TOKENIZERS = 300
WORDS = 200
MOST_BYTES_A_WORD = 20
GIVES_BACK = pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library gives back by itself"
)


def resident_bytes() -> int:
    """Return what this process has in memory."""
    gc.collect()
    shown = subprocess.run(["ps", "-o", "rss=", "-p", str(os.getpid())], capture_output=True, text=True, check=True)
    return int(shown.stdout) * 1024


def test_a_model_that_is_loaded_again_and_again_leaves_nothing_behind(tmp_path: Path) -> None:
    handle = build(tmp_path / "llama", num_hidden_layers=6)
    request = GenerationRequest(handle, "word", GenerationSettings(max_tokens=1, temperature=0))
    generator = MlxTextGenerator(InMemoryEventLog(), SystemClock())

    def load_and_unload(times: int) -> None:
        for _ in range(times):
            assert isinstance(list(generator.submit(request))[-1], Finished)
            assert generator.unload() == (handle,)

    try:
        load_and_unload(LOADS // 2)
        before = resident_bytes()
        load_and_unload(LOADS)
        assert resident_bytes() - before < LOADS * MOST_BYTES_A_LOAD
    finally:
        generator.close()


def test_a_tokenizer_that_is_gone_leaves_no_words_behind(tmp_path: Path) -> None:
    handle = build(tmp_path / "llama")
    text = " ".join(f"{number * 7919:x}" for number in range(WORDS))

    def load_and_encode(times: int) -> None:
        for _ in range(times):
            assert len(load_tokenizer(handle, None).encode(text)) > WORDS

    load_and_encode(TOKENIZERS // 3)
    before = resident_bytes()
    load_and_encode(TOKENIZERS)
    assert resident_bytes() - before < TOKENIZERS * WORDS * MOST_BYTES_A_WORD


def litter() -> tuple[list[bytearray], int]:
    """Leave much free memory that the heap does not give back by itself; return what pins it, and what it was before.

    It is measured while it is in use: afterwards an engine that rests may already have given it back.
    """
    held = [bytearray(b"x" * 4000) for _ in range(20_000)]
    pins, before = held[::1000], resident_bytes()
    held.clear()
    return pins, before


@contextlib.contextmanager
def given_back() -> Iterator[None]:
    """Expect memory that was littered before the block to be given back after what happens inside of it."""
    pins, before = litter()
    yield
    assert eventually(lambda: resident_bytes() < before - 40_000_000)
    assert len(pins) == 20


@pytest.fixture
def generator() -> Iterator[MlxTextGenerator]:
    generator = MlxTextGenerator(InMemoryEventLog(), SystemClock(), EngineLimits(keep_alive_seconds=2.5))
    yield generator
    generator.close()


@pytest.fixture
def short(tmp_path: Path) -> GenerationRequest:
    """Return what to ask for a short answer."""
    return GenerationRequest(build(tmp_path / "llama"), "word", GenerationSettings(max_tokens=3, temperature=0))


@GIVES_BACK
def test_an_engine_at_rest_gives_back_what_is_free(generator: MlxTextGenerator, short: GenerationRequest) -> None:
    list(generator.submit(short))
    time.sleep(1)  # it rests from this one
    with given_back():
        list(generator.submit(short))


@GIVES_BACK
def test_of_answers_that_follow_one_another_at_once_the_last_gives_back_too(
    generator: MlxTextGenerator, short: GenerationRequest
) -> None:
    list(generator.submit(short))
    with given_back():
        list(generator.submit(short))


@GIVES_BACK
def test_vectors_give_back_what_is_free(generator: MlxTextGenerator, tmp_path: Path) -> None:
    request = EmbeddingRequest(build_bert(tmp_path / "bert"), ("bread",))
    embedder = MlxTextEmbedder(generator.leases)
    embedder.embed(request)
    time.sleep(1)
    with given_back():
        embedder.embed(request)


@GIVES_BACK
def test_a_model_that_goes_after_its_keep_alive_gives_back_what_is_free(
    generator: MlxTextGenerator, short: GenerationRequest
) -> None:
    list(generator.submit(short))
    time.sleep(1)
    with given_back():
        time.sleep(2)


def test_a_model_that_waits_for_one_on_loan_takes_no_time(tmp_path: Path) -> None:
    engine = MlxTextGenerator(InMemoryEventLog(), SystemClock(), EngineLimits(model_budget_bytes=1))
    request = GenerationRequest(build(tmp_path / "llama"), "word", GenerationSettings(max_tokens=1))
    wanted = WantedModel(build_bert(tmp_path / "bert"), load=load_embedding_model)
    with ThreadPoolExecutor() as pool, engine.leases.lease(wanted, EmbeddingModel):
        waiting = pool.submit(lambda: list(engine.submit(request)))
        assert eventually(lambda: engine.state(1).waiting == 1)
        before = time.process_time()
        time.sleep(1)
        assert time.process_time() - before < 0.2
        assert not waiting.done()
    assert isinstance(waiting.result()[-1], Finished)
    engine.close()


def test_an_engine_without_work_rests_once_and_sleeps() -> None:
    clock = InMemoryClock()
    engine = Engine(InMemoryEventLog(), clock, EngineLimits())
    for _ in range(3):
        assert not engine.step(lambda: False)
        pause = engine.idle_seconds()
        assert pause == pytest.approx(0.2)
        clock.advance(pause)
        assert not engine.step(lambda: False)
        assert engine.idle_seconds() is None
        clock.advance(10)


def test_an_engine_that_is_kept_busy_with_little_rests_now_and_then() -> None:
    clock = InMemoryClock()
    engine = Engine(InMemoryEventLog(), clock, EngineLimits())
    pauses = []
    for _ in range(10):
        engine.step(lambda: False)
        pauses.append(engine.idle_seconds())
        clock.advance(1 / 16)
    assert pauses.count(None) == 2


def test_an_engine_that_failed_rests_as_well() -> None:
    engine = Engine(InMemoryEventLog(), InMemoryClock(), EngineLimits())
    engine.fail_all(ValueError())
    assert engine.idle_seconds() == pytest.approx(0.2)
