"""What lack of memory decides while prompts are computed: what gives way first, and what is refused last."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlx_lm.models.cache import BatchKVCache, KVCache
from models.answers import read
from models.tiny_models import build
from models.workshop import Workshop

from mlxk.adapters.mlx.loading.text_model import LoadedModel, load_model
from mlxk.domain.errors import InsufficientMemoryError
from mlxk.domain.generation.request import FinishReason
from mlxk.domain.generation.settings import EngineOptions

pytestmark = pytest.mark.mlx


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model(build(tmp_path_factory.mktemp("tiny") / "llama", max_position_embeddings=8192))


class Machine:
    """A machine on which so much is free beside what prefixes take."""

    def __init__(self, free: int) -> None:
        self.free = free
        self.workshop: Workshop | None = None
        self.beside: Callable[[], int] = lambda: 0

    def free_bytes(self) -> int:
        return self.free - self.beside() - (self.workshop.prefixes.size_bytes if self.workshop is not None else 0)


def workshop_on(machine: Machine, model: LoadedModel, chunk_bytes: int = 0, **limits: Any) -> Workshop:
    """Return a workshop with a model of which each token of a prompt takes so much."""
    workshop = machine.workshop = Workshop(model, free_bytes=machine.free_bytes, **limits)
    workshop.pooled.bytes_per_token = 2**20
    workshop.pooled.chunk_bytes_per_token = chunk_bytes
    return workshop


def test_answers_wait_for_memory_that_is_not_free_and_start_when_it_is(model: LoadedModel) -> None:
    machine = Machine(free=500 * 2**20)
    workshop = workshop_on(machine, model)
    streams = [workshop.start("word " * 200)[1] for _ in range(2)]
    machine.free = 100 * 2**20
    workshop.step()
    assert (workshop.scheduler.running, workshop.memory.decisions.waits) == (1, 1)
    workshop.step()
    assert workshop.memory.decisions.waits == 1  # the same answer still waits
    machine.free = 1000 * 2**20
    workshop.run()
    assert [read(stream).finished.reason for stream in streams] == [FinishReason.LENGTH] * 2


def test_kept_prompts_make_room_before_anything_waits(model: LoadedModel) -> None:
    machine = Machine(free=2**40)
    workshop = workshop_on(machine, model, prefix_bytes=2**30)
    workshop.texts("word " * 600)
    held = workshop.prefixes.size_bytes
    workshop.pooled.bytes_per_token = 2**20
    streams = [workshop.start(f"quick {number} " * 20)[1] for number in range(2)]
    machine.free = held + 32 * 2**20
    workshop.step()
    assert workshop.memory.decisions.evictions >= 1
    machine.free = 2**40
    workshop.run()
    assert all(read(stream).finished.reason is FinishReason.LENGTH for stream in streams)


def test_kept_prompts_are_quantized_where_that_makes_enough_room(tmp_path: Path) -> None:
    machine = Machine(free=2**40)
    workshop = workshop_on(machine, load_model(build(tmp_path / "model", head_dim=32)), prefix_bytes=2**30)
    for number in range(3):
        sequence, _ = workshop.start(f"{number} " + "word " * 100)
        sequence.engine_options = EngineOptions(prefix_cache_bits=8)
        workshop.run()
    held = workshop.prefixes.size_bytes
    machine.free = held // 2 + 34 * 2**20
    assert workshop.memory.can_grow(34 * 2**20)
    assert (workshop.memory.decisions.evictions, len(workshop.prefixes)) == (0, 3)
    assert workshop.prefixes.quantizations > 0
    assert workshop.prefixes.size_bytes <= held // 2


def test_chunks_are_smaller_where_memory_is_short_and_the_text_is_the_same(model: LoadedModel) -> None:
    expected = Workshop(model).texts("word " * 600)
    workshop = workshop_on(Machine(free=40 * 2**20), model, chunk_bytes=2**20)
    _, stream = workshop.start("word " * 600)
    workshop.step()
    assert workshop.network.passes[0] == (1, 40)
    assert workshop.memory.decisions.smaller_chunks == 1
    workshop.run()
    assert [read(stream).text] == expected


def test_a_prompt_for_which_nothing_is_left_fails_by_itself_and_says_why(model: LoadedModel) -> None:
    machine = Machine(free=2**20)
    workshop = workshop_on(machine, model, chunk_bytes=16 * 2**20)
    _, stream = workshop.start("word " * 600)
    workshop.run()
    with pytest.raises(InsufficientMemoryError, match="no memory left for this prompt"):
        read(stream)
    assert workshop.memory.decisions.refusals == 1
    workshop.pooled.chunk_bytes_per_token = 0
    assert workshop.texts("Hello") == Workshop(model).texts("Hello")


def test_beside_an_answer_whose_end_frees_memory_nothing_is_refused(model: LoadedModel) -> None:
    machine = Machine(free=2**40)
    workshop = workshop_on(machine, model)
    _, first = workshop.start("Hello", max_tokens=200)
    workshop.step()
    _, second = workshop.start("word " * 100)
    workshop.step()
    machine.free = 2**20
    workshop.pooled.chunk_bytes_per_token = 16 * 2**20
    workshop.run()
    assert read(first).finished.reason is read(second).finished.reason is FinishReason.LENGTH
    assert workshop.memory.decisions.smaller_chunks > 0


@pytest.fixture
def heavy_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have caches weigh a thousand times as much as those of a tiny model."""
    for kind in (KVCache, BatchKVCache):
        nbytes = kind.nbytes
        monkeypatch.setattr(kind, "nbytes", property(lambda cache, nbytes=nbytes: 1000 * nbytes.fget(cache)))


def growth(workshop: Workshop) -> int:
    """Return what caches of running answers take more soon."""
    return sum(batch.growth_bytes for batch in workshop.scheduler._batches)


@pytest.mark.usefixtures("heavy_caches")
def test_an_answer_whose_cache_cannot_grow_steps_back_and_goes_on_with_the_same_text(model: LoadedModel) -> None:
    prompts = ["word " * 40, "Hello there", "quick brown fox"]
    expected = [Workshop(model).texts(prompt, max_tokens=300, temperature=0.8, seed=7)[0] for prompt in prompts]
    machine = Machine(free=2**40)
    workshop = workshop_on(machine, model)
    streams = [workshop.start(prompt, max_tokens=300, temperature=0.8, seed=7)[1] for prompt in prompts]
    for _ in range(20):
        workshop.step()
    assert workshop.scheduler.running == 3
    machine.free = growth(workshop) // 3
    while workshop.memory.decisions.step_backs < 2:
        workshop.step()
    assert (workshop.scheduler.running, workshop.memory.decisions.refusals) == (1, 0)
    workshop.step()
    assert workshop.network.passes[-1] == (1, 1)
    machine.free = 2**40
    workshop.run()
    assert [read(stream).text for stream in streams] == expected
    assert workshop.released == 3


@pytest.mark.usefixtures("heavy_caches")
def test_a_lone_answer_whose_cache_cannot_grow_ends_and_says_why(model: LoadedModel) -> None:
    machine = Machine(free=2**40)
    workshop = workshop_on(machine, model)
    _, stream = workshop.start("Hello", max_tokens=300)
    for _ in range(20):
        workshop.step()
    machine.free = growth(workshop) // 2
    workshop.run()
    with pytest.raises(InsufficientMemoryError, match="no memory left for this answer"):
        read(stream)
    assert (workshop.memory.decisions.refusals, workshop.released) == (1, 1)
    workshop.pooled.bytes_per_token = 0
    assert workshop.texts("Hello") == Workshop(model).texts("Hello")


@pytest.mark.usefixtures("heavy_caches")
def test_a_prompt_that_came_last_waits_before_an_answer_does(model: LoadedModel) -> None:
    machine = Machine(free=2**40)
    workshop = workshop_on(machine, model)
    _, first = workshop.start("Hello", max_tokens=200)
    for _ in range(18):
        workshop.step()
    _, second = workshop.start("word " * 3000)
    workshop.step()
    assert workshop.scheduler.running == 2
    needed = growth(workshop)
    machine.beside = lambda: needed // 2 if workshop.scheduler._prefilling else 0
    machine.free = needed
    while not workshop.memory.decisions.step_backs:
        workshop.step()
    machine.beside = lambda: 0
    assert [len(batch.sequences) for batch in workshop.scheduler._batches] == [1]
    machine.free = 2**40
    workshop.run()
    assert read(first).finished.reason is read(second).finished.reason is FinishReason.LENGTH


class Swap:
    """So much lies in swap; looked at by the workshop's clock."""

    def __init__(self) -> None:
        self.used: int | None = 2**30

    def grow(self, workshop: Workshop, *mebibytes: int) -> None:
        """Have it grow, with steps two seconds apart."""
        for more in mebibytes:
            assert self.used is not None
            self.used += more * 2**20
            workshop.clock.advance(2.0)
            workshop.step()


def test_while_swap_grows_prompts_wait_and_kept_ones_go_and_it_is_said(model: LoadedModel) -> None:
    swap = Swap()
    workshop = Workshop(model, prefix_bytes=2**30, swap_used_bytes=lambda: swap.used)
    workshop.texts("word " * 600)
    assert workshop.prefixes.size_bytes > 0
    _, first = workshop.start("Hello", max_tokens=400)
    swap.grow(workshop, 0, 0, 300)
    assert (workshop.memory.decisions.swaps, workshop.prefixes.size_bytes) == (1, 0)
    assert [each.fields for each in workshop.log.named("memory is moved to swap while answers are computed")] == [
        {"grown_bytes": 300 * 2**20}
    ]
    _, second = workshop.start("word " * 600)
    swap.grow(workshop, 0, 1)
    assert (workshop.scheduler.running, workshop.memory.decisions.waits) == (1, 1)
    swap.grow(workshop, *[0] * 6)  # what was moved is longer ago
    assert workshop.scheduler.running == 2
    swap.grow(workshop, 300)
    assert workshop.memory.decisions.swaps == 2
    workshop.run()
    assert read(first).finished.reason is read(second).finished.reason is FinishReason.LENGTH
    assert workshop.memory.decisions.refusals == workshop.memory.decisions.step_backs == 0


def test_while_swap_grows_a_lone_prompt_is_computed_in_small_chunks(model: LoadedModel) -> None:
    expected, swap = Workshop(model).texts("word " * 600), Swap()
    workshop = Workshop(model, swap_used_bytes=lambda: swap.used)
    _, stream = workshop.start("word " * 600)
    swap.grow(workshop, 0, 500)
    assert [tokens for _, tokens in workshop.network.passes][:3] == [256, 64, 64]
    workshop.run()
    assert [read(stream).text] == expected
    assert workshop.memory.decisions.smaller_chunks > 1


@pytest.mark.parametrize("growth", [[0], [20, 20, 20, 20], [-500, 100]])
def test_little_that_moves_to_swap_changes_nothing(model: LoadedModel, growth: list[int]) -> None:
    swap = Swap()
    workshop = Workshop(model, swap_used_bytes=lambda: swap.used)
    workshop.start("Hello", max_tokens=100)
    swap.grow(workshop, 0, *growth)
    assert workshop.memory.decisions.swaps == 0


def test_what_was_moved_while_nothing_was_computed_does_not_count(model: LoadedModel) -> None:
    swap = Swap()
    workshop = Workshop(model, swap_used_bytes=lambda: swap.used)
    workshop.texts("Hello")
    workshop.clock.advance(60)
    swap.used = 2**33
    workshop.texts("Hello")
    swap.used = None
    workshop.clock.advance(60)
    workshop.texts("Hello")
    assert workshop.memory.decisions.swaps == 0
