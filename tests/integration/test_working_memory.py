"""What lack of memory decides while prompts are computed: what gives way first, and what is refused last."""

from typing import Any

import pytest
from models.answers import read
from models.tiny_models import build
from models.workshop import Workshop

from mlxk.adapters.mlx.loading.text_model import LoadedModel, load_model
from mlxk.domain.errors import InsufficientMemoryError
from mlxk.domain.generation.request import FinishReason

pytestmark = pytest.mark.mlx


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model(build(tmp_path_factory.mktemp("tiny") / "llama", max_position_embeddings=8192))


class Machine:
    """A machine on which so much is free beside what prefixes take."""

    def __init__(self, free: int) -> None:
        self.free = free
        self.workshop: Workshop | None = None

    def free_bytes(self) -> int:
        return self.free - (self.workshop.prefixes.size_bytes if self.workshop is not None else 0)


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
