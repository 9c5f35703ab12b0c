"""Loading and unloading, again and again: nothing is kept of it."""

import ctypes
import gc
import os
import subprocess
import time
from pathlib import Path

import pytest
from models.tiny_models import build
from serving.running import eventually

from mlxk.adapters.in_memory.event_log import InMemoryEventLog
from mlxk.adapters.mlx.loading import load_tokenizer
from mlxk.adapters.mlx.text import MlxTextGenerator
from mlxk.adapters.system.clock import SystemClock
from mlxk.domain.generation import Finished, GenerationRequest, GenerationSettings

pytestmark = pytest.mark.mlx
LOADS = 100
MOST_BYTES_A_LOAD = 20 * 1024
TOKENIZERS = 300
WORDS = 200
MOST_BYTES_A_WORD = 20


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


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library gives back by itself")
def test_an_engine_at_rest_gives_back_what_is_free(tmp_path: Path) -> None:
    handle = build(tmp_path / "llama")
    request = GenerationRequest(handle, "word", GenerationSettings(max_tokens=3, temperature=0))
    generator = MlxTextGenerator(InMemoryEventLog(), SystemClock())
    try:
        list(generator.submit(request))
        time.sleep(1)  # it rests from this one
        held = [bytearray(b"x" * 4000) for _ in range(20_000)]
        pins = held[::1000]  # keep the heap from shrinking by itself
        held.clear()
        before = resident_bytes()
        list(generator.submit(request))
        assert eventually(lambda: resident_bytes() < before - 40_000_000, 5)
        assert len(pins) == 20
    finally:
        generator.close()
