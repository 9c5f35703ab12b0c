"""Long computations on the owner thread: what waits is served between two of them, and the state stays true."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from doubles.event_log import InMemoryEventLog
from models.tiny_embedding import build_bert

from mlxk.adapters.mlx.embedding.encoding import EmbeddingModel
from mlxk.adapters.mlx.embedding.loading import load_embedding_model
from mlxk.adapters.mlx.engine.model_pool import WantedModel
from mlxk.adapters.mlx.text_generator import MlxTextGenerator, ModelLease, Turns
from mlxk.adapters.system import SystemClock

pytestmark = pytest.mark.mlx
LIMIT = 120.0
"""Seconds to wait for what has to happen."""


@pytest.fixture
def generator() -> Iterator[MlxTextGenerator]:
    found = MlxTextGenerator(InMemoryEventLog(), SystemClock())
    yield found
    found.close()


def test_the_state_tells_what_is_loaded_while_one_computation_goes_on(
    generator: MlxTextGenerator, tmp_path: Path
) -> None:
    model = build_bert(tmp_path / "bert")
    begun, finish = threading.Event(), threading.Event()
    with (
        generator.leases.lease(WantedModel(model, load=load_embedding_model), EmbeddingModel) as lease,
        ThreadPoolExecutor(1) as pool,
    ):
        window = pool.submit(lease.call_in_turn, held(begun, finish, [], "window"))
        assert begun.wait(LIMIT)
        state = generator.state(0.01)
        finish.set()
        window.result(LIMIT)
    assert (state.responding, state.models) == (False, (model,))
    assert generator.state(LIMIT).models == (model,)


def test_short_work_comes_before_the_next_of_several_long_computations(
    generator: MlxTextGenerator, tmp_path: Path
) -> None:
    wanted = WantedModel(build_bert(tmp_path / "bert"), load=load_embedding_model)
    done: list[str] = []
    begun, finish = threading.Event(), threading.Event()
    with generator.leases.lease(wanted, EmbeddingModel) as lease, ThreadPoolExecutor(8) as pool:
        windows = [pool.submit(lease.call_in_turn, held(begun, finish, done, "first"))]
        assert begun.wait(LIMIT)
        windows += [pool.submit(lease.call_in_turn, lambda: done.append("later")) for _ in range(4)]
        short = pool.submit(lease.call, lambda: done.append("short"))
        waits_behind(lease)
        finish.set()
        for each in (*windows, short):
            each.result(LIMIT)
    assert done == ["first", "short", *["later"] * 4]


def test_turns_are_taken_in_order_and_given_back_by_those_that_fail() -> None:
    turns, order = Turns(), list[int]()
    with pytest.raises(RuntimeError), turns.take():
        raise RuntimeError
    with ThreadPoolExecutor(4) as pool:
        with turns.take():
            futures = []
            for index in range(4):
                futures.append(pool.submit(take, turns, order, index))
                while len(turns.waiting) < index + 2:
                    threading.Event().wait(0.01)
        for future in futures:
            future.result(LIMIT)
    assert order == [0, 1, 2, 3]


def take(turns: Turns, order: list[int], index: int) -> None:
    with turns.take():
        order.append(index)


def held(begun: threading.Event, finish: threading.Event, done: list[str], name: str) -> Callable[[], None]:
    """Return a function that keeps the thread until it may finish."""

    def work() -> None:
        begun.set()
        assert finish.wait(LIMIT)
        done.append(name)

    return work


def waits_behind(lease: ModelLease[EmbeddingModel]) -> None:
    """Wait until something waits for the thread of a lease."""
    tick = threading.Event()
    while not lease.others_wait:
        tick.wait(0.01)
