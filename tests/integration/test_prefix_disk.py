"""The disk tier of the prefix cache: what a restart finds again, and every way in which a file may not be used."""

import itertools
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import mlx.core as mx
import pytest
from doubles.event_log import InMemoryEventLog
from mlx_lm.models.cache import CacheList, make_prompt_cache
from models.answers import loaded
from models.tiny_models import build

from mlxk.adapters.mlx.engine.disk_tier import MIN_TOKENS
from mlxk.adapters.mlx.engine.snapshot_folder import FOLDER
from mlxk.adapters.mlx.engine.snapshots import Snapshot, Tensor, restored_cache, stored_layer
from mlxk.adapters.mlx.memory import DiskLimits, EngineLimits
from mlxk.adapters.mlx.text_generator import MlxTextGenerator
from mlxk.adapters.system import SystemClock
from mlxk.application.ports.text_generator import DiskPrefixes
from mlxk.domain.generation.conversation import Conversation, Message, Role
from mlxk.domain.generation.request import Finished, GenerationEvent, GenerationRequest, TextDelta, TokenLogprob, Usage
from mlxk.domain.generation.settings import EngineOptions, GenerationSettings
from mlxk.domain.models.model import ModelHandle

pytestmark = pytest.mark.mlx
TURBOQUANT = EngineOptions(kv_bits=3.5, kv_scheme="turboquant")
KINDS = ("llama", "gemma3_text", "lfm2", "mamba2")
SYSTEM = "You are an agent with tools. The quick brown fox jumps over the lazy dog. " * 6
RESULTS = ("Count: 1, 2, 3. Die Sonne scheint über München. " * 3, "Hello world! How are you today? " * 5)
LARGE = 2**30


def turns(count: int, system: str = SYSTEM) -> Conversation:
    """Return the first turns of an agent."""
    messages = [Message(Role.SYSTEM, system), Message(Role.USER, "What is there? " * 40)]
    for result in RESULTS[:count]:
        messages += [Message(Role.ASSISTANT, "I look."), Message(Role.USER, result)]
    return Conversation(tuple(messages))


@attrs.frozen
class Answer:
    """An answer, with every number of it."""

    text: str
    logprobs: tuple[TokenLogprob, ...]
    usage: Usage

    @classmethod
    def of(cls, events: list[GenerationEvent]) -> "Answer":
        """Return the answer that some events are."""
        end, deltas = events[-1], [event for event in events if isinstance(event, TextDelta)]
        assert isinstance(end, Finished)
        logprobs = tuple(each for delta in deltas for each in delta.logprobs)
        return cls("".join(delta.text for delta in deltas), logprobs, end.usage)


@attrs.define
class Machine:
    """A folder, and servers that are started on it one after the other."""

    folder: Path
    log: InMemoryEventLog = attrs.field(factory=InMemoryEventLog)
    state: DiskPrefixes | None = None
    """Of the last server when it ended."""

    @contextmanager
    def server(self, *, max_bytes: int = LARGE, free_share: float = 0.0) -> Iterator[MlxTextGenerator]:
        """Run a server until what it keeps is on disk."""
        limits = EngineLimits(disk=DiskLimits(str(self.folder), max_bytes, free_share))
        engine = MlxTextGenerator(self.log, SystemClock(), limits)
        yield engine
        engine.close()
        self.state = engine.state(1.0).disk

    @property
    def files(self) -> list[Path]:
        """The snapshots."""
        return sorted((self.folder / FOLDER).glob("*.safetensors"))

    def answer(self, handle: ModelHandle, prompt: Conversation | None = None, **options: Any) -> Answer:
        """Return the answer of a server that has just been started."""
        with self.server() as engine:
            return ask(engine, handle, prompt, **options)


def ask(
    engine: MlxTextGenerator,
    handle: ModelHandle,
    prompt: Conversation | None = None,
    tenant: str = "",
    engine_options: EngineOptions | None = None,
) -> Answer:
    """Return an answer with the log probabilities of its tokens in full."""
    settings = GenerationSettings(temperature=0, max_tokens=8, ignore_eos=True, logprobs=20)
    options = engine_options or EngineOptions()
    asked = GenerationRequest(handle, prompt or turns(0), settings, engine_options=options, tenant=tenant)
    return Answer.of(list(engine.submit(asked)))


def cached(answer: Answer) -> int:
    """Return how many tokens of the prompt were not computed."""
    return answer.usage.cached_tokens


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "kept")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> ModelHandle:
    return build(tmp_path_factory.mktemp("tiny") / "llama")


@pytest.mark.parametrize("kind", KINDS)
def test_an_agent_goes_on_after_a_restart(machine: Machine, tmp_path: Path, kind: str) -> None:
    handle = build(tmp_path / kind, kind)
    cold = MlxTextGenerator(InMemoryEventLog(), SystemClock(), EngineLimits(prefix_cache_bytes=0))
    found = [machine.answer(handle, turns(count)) for count in range(3)]
    assert [each.text for each in found] == [ask(cold, handle, turns(count)).text for count in range(3)]
    cold.close()
    for before, after in itertools.pairwise(found):
        assert cached(after) >= before.usage.prompt_tokens - 12 > MIN_TOKENS
    other = Conversation((turns(0).messages[0], Message(Role.USER, "Something else.")))
    assert cached(machine.answer(handle, other)) >= MIN_TOKENS, "the system prompt is kept by itself"
    assert "tokens" in mx.load(str(machine.files[0])), "any reader of safetensors can read the files"
    assert (machine.folder / FOLDER).stat().st_mode & 0o777 == 0o700
    assert {each.stat().st_mode & 0o777 for each in (machine.folder / FOLDER).iterdir()} == {0o600}


@pytest.mark.parametrize(
    "options", [EngineOptions(), EngineOptions(kv_bits=8), TURBOQUANT, EngineOptions(max_kv_size=64)], ids=str
)
def test_every_kind_of_cache_comes_back_to_the_bit(machine: Machine, tmp_path: Path, options: EngineOptions) -> None:
    handle = build(tmp_path / "wide", head_dim=32)
    cold, warm = (machine.answer(handle, engine_options=options) for _ in range(2))
    assert cached(cold) == 0
    assert cached(warm) >= cold.usage.prompt_tokens - 12
    assert len(cold.logprobs) == 8
    assert (warm.text, warm.logprobs) == (cold.text, cold.logprobs)


@pytest.mark.parametrize("kind", KINDS)
def test_a_restored_cache_gives_the_same_logits(tmp_path: Path, kind: str) -> None:
    network, _ = loaded(build(tmp_path / kind, kind))
    cache = make_prompt_cache(network)
    for start in range(0, 120, 40):
        network(mx.arange(start, start + 40)[None], cache=cache)
    # Some models have a list of caches in each layer.
    stored = [CacheList(layer, layer) for layer in cache]
    tensors: list[Tensor] = []
    snapshot = Snapshot({}, b"", [stored_layer(layer, tensors) for layer in stored], tuple(tensors))
    restored = [layer[0] for layer in restored_cache(snapshot)]
    for token in (7, 8, 9):
        before, after = (network(mx.array([[token]]), cache=each) for each in (cache, restored))
        assert mx.array_equal(before, after)


def flip(path: Path, place: float) -> None:
    """Flip a bit of a file, at a part of its length."""
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    """Truncate a file."""
    os.truncate(path, path.stat().st_size // 2)


def swap(path: Path) -> None:
    """Give a file the content of another one, itself valid."""
    other = next(each for each in sorted(path.parent.glob("*.safetensors")) if each != path)
    shutil.copyfile(other, path)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "a bit of the size": lambda path: flip(path, 0.0),
    "a bit of the header": lambda path: flip(path, 0.001),
    "a bit of the numbers": lambda path: flip(path, 0.7),
    "the last bit": lambda path: flip(path, 0.999999),
    "cut": cut,
    "empty": lambda path: os.truncate(path, 0),
    "another prompt's": swap,
}


def test_a_damaged_file_is_deleted_and_the_prompt_computed(machine: Machine, llama: ModelHandle) -> None:
    expected = machine.answer(llama)
    shortest, longest = sorted(machine.files, key=lambda path: path.stat().st_size)
    for name, damage in DAMAGES.items():
        damage(longest)
        found = machine.answer(llama)  # which writes the file again
        assert found.text == expected.text, name
        assert 0 < cached(found) < expected.usage.prompt_tokens // 2, "the other one is used"
        assert machine.state is not None
        assert machine.state.faults == 1, name
    for path in (shortest, longest):
        flip(path, 0.5)
    assert cached(machine.answer(llama)) == 0
    assert cached(machine.answer(llama)) > expected.usage.prompt_tokens // 2


def test_what_is_kept_of_others_is_not_found(machine: Machine, tmp_path: Path) -> None:
    handle = build(tmp_path / "a")
    machine.answer(handle, tenant="one")
    assert cached(machine.answer(handle, tenant="two")) == 0
    assert cached(machine.answer(handle, tenant="one")) > 0
    shutil.rmtree(tmp_path / "a")
    other = build(tmp_path / "a", seed=3)
    assert cached(machine.answer(other, tenant="one")) == 0, "another model at the same place"


def test_a_tenant_s_prompts_are_dropped_everywhere(machine: Machine, llama: ModelHandle) -> None:
    for tenant in ("one", "two"):
        machine.answer(llama, tenant=tenant)
    with machine.server() as engine:
        ask(engine, llama, tenant="one")
        held = engine.kept_prompts("one")
        assert held.disk is not None
        assert (held.entries > 0, held.disk.entries) == (True, 2)
        engine.forget_prompts("one")
        held = engine.kept_prompts("one")
        assert held.disk is not None
        assert (held.entries, held.disk.entries) == (0, 0)
        assert cached(ask(engine, llama, tenant="one")) == 0
    assert cached(machine.answer(llama, tenant="two")) > 0


def test_the_budget_holds_and_the_least_recently_used_goes(machine: Machine, llama: ModelHandle) -> None:
    machine.answer(llama)
    used = sum(path.stat().st_size for path in machine.files)
    foreign = machine.folder / FOLDER / "notes.safetensors"
    foreign.write_bytes(bytes(LARGE // 2**12))
    (machine.folder / FOLDER / "their.tmp").write_bytes(b"x")
    with machine.server(max_bytes=3 * used) as engine:
        for number in range(6):
            ask(engine, llama, turns(0, f"{number} {SYSTEM}"))
            held = engine.kept_prompts().disk
            assert held is not None
            assert held.bytes <= 3 * used
    assert machine.state is not None
    assert machine.state.evictions > 0
    assert machine.state.bytes <= 3 * used
    assert cached(machine.answer(llama, turns(0, f"5 {SYSTEM}"))) > 0
    assert cached(machine.answer(llama)) == 0
    assert foreign.exists()
    assert (machine.folder / FOLDER / "their.tmp").exists(), "files that are not ours are left alone"


def test_a_full_disk_is_logged_once_and_served_on(machine: Machine, llama: ModelHandle) -> None:
    with machine.server(free_share=1.0) as engine:
        for number in range(3):
            assert ask(engine, llama, turns(0, f"{number} {SYSTEM}")).text
    assert machine.state is not None
    assert machine.state.refusals >= 3
    assert machine.files == []
    assert len(machine.log.named("prompts are not kept on disk for now")) == 1


def test_a_snapshot_is_written_once_a_thread_can_be_started(
    machine: Machine, llama: ModelHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, refusals = threading.Thread.start, iter([RuntimeError("can't start new thread")])

    def start_later(thread: threading.Thread) -> None:
        if thread.name == "mlxk-prefix-writer" and (error := next(refusals, None)) is not None:
            raise error
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_later)
    machine.answer(llama)
    assert next(refusals, None) is None, "the first start was refused"
    assert machine.files


def test_what_is_read_at_once_fits_into_the_cache_in_memory(machine: Machine, llama: ModelHandle) -> None:
    machine.answer(llama)
    size = max(path.stat().st_size for path in machine.files)
    limits = EngineLimits(prefix_cache_bytes=int(1.5 * size), disk=DiskLimits(str(machine.folder), LARGE, 0.0))
    engine = MlxTextGenerator(machine.log, SystemClock(), limits)
    found = [cached(ask(engine, llama)) for _ in range(2)]
    for number in range(3):
        found.append(cached(ask(engine, llama, turns(0, f"{number} {SYSTEM}"))))
    found.append(cached(ask(engine, llama)))
    engine.close()
    assert [each > 0 for each in found] == [True, True, False, False, False, True], "what was read counts no longer"
