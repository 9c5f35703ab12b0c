"""Any number of requests, sound and unsound, cancelled at random: nothing dies, nobody is lost, nothing is left behind.

pytest tests/integration/test_mlx_engine_soak.py --soak-requests 10000
"""

import gc
import json
import math
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from doubles.event_log import InMemoryEventLog
from models.answers import oracle
from models.tiny_models import build, write_adapter

from mlxk.adapters.mlx.memory import EngineLimits
from mlxk.adapters.mlx.text_generator import MlxTextGenerator
from mlxk.adapters.system import SystemClock
from mlxk.domain.errors import MlxkError
from mlxk.domain.generation.conversation import Conversation
from mlxk.domain.generation.grammar import Grammar
from mlxk.domain.generation.request import Finished, GenerationRequest, TextDelta
from mlxk.domain.generation.settings import EngineOptions, GenerationSettings
from mlxk.domain.models.model import ModelHandle

pytestmark = pytest.mark.mlx
READERS = 12
WITNESS_PROMPTS = ("Hello world", "The quick brown fox", "Count: 1, 2, 3", "Die Sonne scheint")
FLAWS: tuple[dict[str, Any], ...] = (
    {"temperature": math.nan},
    {"temperature": "hot"},
    {"top_k": -1},
    {"top_k": 10**9, "temperature": 1.0},
    {"top_p": 0.0},
    {"stop": (1,)},
    {"stop": ("",)},
    {"logit_bias": ((10**6, 1.0),)},
    {"logit_bias": ((5, math.inf),)},
    {"seed": -1},
    {"max_tokens": 0},
    {"logprobs": 99},
    {"thinking_budget": 3},
    {"grammar": Grammar.json_schema("[")},
    {"grammar": Grammar.json_schema('{"type": "nonsense"}')},
)


class Soak:
    """Twelve readers with one engine, and what became of their requests."""

    def __init__(self, handles: list[ModelHandle], engine: MlxTextGenerator, switches: list[EngineOptions]) -> None:
        self.outcomes: Counter[str] = Counter()
        self.lost: list[str] = []
        self._handles = handles
        self._engine = engine
        self._switches = switches
        self._witness = {prompt: b"".join(oracle(handles[0], prompt)) for prompt in WITNESS_PROMPTS}

    def run(self, requests: int, seed: int) -> None:
        """Make so many requests, shared among the readers."""
        share = -(-requests // READERS)
        readers = [threading.Thread(target=self._read, args=(random.Random(seed + n), share)) for n in range(READERS)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()

    def _read(self, dice: random.Random, requests: int) -> None:
        for _ in range(requests):
            kinds: list[Callable[[random.Random], str]] = [self._witnessed, self._flawed, self._sound, self._sound]
            try:
                self.outcomes[dice.choice(kinds)(dice)] += 1
            except MlxkError as error:
                self.outcomes[error.code] += 1
            except Exception as error:  # noqa: BLE001 - what is not a typed error is what this test is about
                self.lost.append(f"{type(error).__name__}: {error}")

    def _witnessed(self, dice: random.Random) -> str:
        prompt = dice.choice(WITNESS_PROMPTS)
        settings = GenerationSettings(temperature=0, max_tokens=24)
        text = "".join(
            event.text
            for event in self._engine.submit(GenerationRequest(self._handles[0], prompt, settings))
            if isinstance(event, TextDelta)
        )
        if text != self._witness[prompt].decode("utf-8", "replace"):
            self.lost.append(f"a neighbour changed the answer to {prompt!r}")
        return "witnessed"

    def _flawed(self, dice: random.Random) -> str:
        prompt: Any = dice.choice(["", "word " * 9000, "Hello", [1, 2], Conversation(())])
        flaw = dice.choice(FLAWS) if prompt == "Hello" else {}
        settings = GenerationSettings(**{"max_tokens": 5, **flaw})
        return self._follow(GenerationRequest(dice.choice(self._handles), prompt, settings), dice)

    def _sound(self, dice: random.Random) -> str:
        settings = GenerationSettings(
            max_tokens=dice.randrange(1, 30),
            temperature=dice.choice([0.0, 1e-9, 0.7, 1.5, 5.0]),
            top_p=dice.choice([None, 1e-9, 0.5, 1.0]),
            top_k=dice.choice([None, 0, 1, 40, 512, 10**6]),
            min_p=dice.choice([None, 0.0, 0.3, 1.0]),
            repetition_penalty=dice.choice([None, 0.1, 1.3, 10.0]),
            presence_penalty=dice.choice([None, -2.0, 2.0]),
            frequency_penalty=dice.choice([None, -2.0, 2.0]),
            logit_bias=dice.choice([(), ((7, 100.0), (7, -100.0)), tuple((token, -100.0) for token in range(300))]),
            seed=dice.choice([None, 1, 2**64 - 1]),
            stop=dice.choice([(), ("e",), (" ", "\n"), ("日本", "🙂")]),
            logprobs=dice.choice([None, None, 0, 20]),
            ignore_eos=False,
            grammar=dice.choice([None] * 6 + [Grammar.choice(("yes", "no")), Grammar.json_object()]),
        )
        handle = dice.choice(self._handles)
        engine_options = dice.choice([EngineOptions()] * len(self._switches) + self._switches)
        prompt = " ".join(dice.choice(WITNESS_PROMPTS) for _ in range(dice.choice([1, 1, 5, 60])))
        request = GenerationRequest(handle, prompt, settings, engine_options=engine_options)
        return self._follow(request, dice)

    def _follow(self, request: GenerationRequest, dice: random.Random) -> str:
        """Read an answer, perhaps giving it up somewhere; return how it ended."""
        last = dice.choice([None, None, 0, 1, 5])
        stream = self._engine.submit(request)
        if last == 0:
            stream.cancel()
        for index, event in enumerate(stream, start=1):
            if isinstance(event, Finished):
                return event.reason.value
            if index == last:
                stream.cancel()
        raise AssertionError("an answer without an end")


def test_a_soak_of_requests_leaves_the_engine_as_it_was(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    requests: int = request.config.getoption("--soak-requests")
    handles = [
        build(tmp_path / "llama", head_dim=32),
        build(tmp_path / "gemma", "gemma3_text", seed=1),
        build(tmp_path / "lfm2", "lfm2", seed=2),
    ]
    switches = allowed_switches(build(tmp_path / "draft", seed=3), write_adapter(tmp_path / "lora", handles[0]))
    # What a first use of everything leaves for good must not count.
    engine = MlxTextGenerator(InMemoryEventLog(), SystemClock())
    soak = Soak(handles, engine, switches)
    soak.run(READERS * 8, seed=1)
    engine.close()
    before = _holdings()
    log = InMemoryEventLog()
    budgets = EngineLimits(max_rows=8, prefix_cache_bytes=2**21, cache_budget_bytes=2**23, model_budget_bytes=2**20)
    engine = MlxTextGenerator(log, SystemClock(), budgets)
    soak = Soak(handles, engine, switches)
    soak.run(requests, seed=2)
    state = engine.state(10)
    assert state.responding
    assert (state.running, state.waiting) == (0, 0)
    assert state.prefix_cache_bytes <= 2**21
    engine.close()
    assert soak.lost == []
    assert sum(soak.outcomes.values()) >= requests
    assert {"stop", "length", "cancelled", "witnessed", "validation_error", "context_length_exceeded"} <= set(
        soak.outcomes
    )
    assert [event for event in log.events if event.level == "error"] == []
    assert json.dumps(_holdings()) == json.dumps(before)


def allowed_switches(draft: ModelHandle, adapter: Path) -> list[EngineOptions]:
    """Return every combination of adapter, draft model, and kind of cache that is allowed."""
    caches: list[dict[str, Any]] = [
        {},
        {"max_kv_size": 16},
        {"kv_bits": 8},
        {"kv_bits": 4, "kv_group_size": 32},
        {"kv_bits": 3.5, "kv_scheme": "turboquant"},
        {"kv_bits": 2, "kv_scheme": "turboquant", "cache_required": False},
    ]
    drafts: list[dict[str, Any]] = [
        {},
        {"draft_model": draft},
        {"draft_model": draft, "draft_required": False, "draft_tokens": 5},
    ]
    found = [
        EngineOptions(**cache, **drafted, adapter=adapted)
        for cache in caches
        for drafted in drafts
        for adapted in (None, str(adapter))
    ]
    return [each for each in found if each.max_kv_size is None or not each.draft_required or each.draft_model is None]


def _holdings() -> dict[str, int]:
    """Return what this process holds, once it has settled."""
    gc.collect()
    deadline = time.monotonic() + 5
    while threading.active_count() > 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    mx.clear_cache()
    return {
        "threads": threading.active_count(),
        "open files": len(os.listdir("/dev/fd")),
        "bytes of MLX": mx.get_active_memory(),
    }
