"""The chunk policy on simulated machines: what answers wait, what prompts lose, and what learned costs withstand."""

import itertools

import pytest
from doubles.simulated_machine import CPU, DATA_CENTRE, LAPTOP, MACHINES, Machine, SimulatedEngine

from mlxk.adapters.mlx.chunk_policy import (
    FIRST_CHUNK,
    MAX_CHUNKS,
    SMALLEST_CHUNK,
    WAIT_SECONDS,
    ChunkPolicy,
    PassCosts,
    max_wait,
)

every_machine = pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.name)


def experienced(machine: Machine) -> SimulatedEngine:
    """Return an engine that has computed one prompt beside an answer."""
    engine = SimulatedEngine(machine)
    engine.answer(1)
    prompt = engine.prompt(4000)
    engine.run_until(lambda: prompt.done)
    engine.waits.clear()
    return engine


@every_machine
@pytest.mark.parametrize("answers", [1, 8, 32])
@pytest.mark.parametrize("lengths", [(4000,), (300,) * 24, (9000, 9000, 20)])
def test_an_answer_waits_no_longer_than_the_rule_says(machine: Machine, answers: int, lengths: tuple[int, ...]) -> None:
    engine = experienced(machine)
    engine.answer(answers)
    for _ in range(5):
        engine.step()
    prompts = [engine.prompt(length) for length in lengths]
    engine.run_until(lambda: all(prompt.done for prompt in prompts))
    assert 0 < engine.worst_wait <= max_wait(machine.step(answers)) * 1.01


@every_machine
def test_an_engine_that_knows_nothing_learns_within_one_prompt(machine: Machine) -> None:
    engine = SimulatedEngine(machine)
    engine.answer(1)
    prompt = engine.prompt(20_000)
    engine.run_until(lambda: prompt.done)
    assert prompt.chunks[0][0] == FIRST_CHUNK
    assert all(4 < wait / machine.step(1) < 13 for wait in engine.waits[8:-1])


@every_machine
@pytest.mark.parametrize("answers", [1, 8])
def test_a_prompt_beside_answers_keeps_most_of_its_speed(machine: Machine, answers: int) -> None:
    engine = experienced(machine)
    engine.answer(answers)
    began, prompt = engine.now, engine.prompt(6000)
    engine.run_until(lambda: prompt.done)
    shared = engine.now - began
    alone = SimulatedEngine(machine)
    prompt = alone.prompt(6000)
    alone.run_until(lambda: prompt.done)
    assert alone.now / shared > 0.5


def test_a_fast_gpu_is_kept_busy() -> None:
    sizes = {}
    for machine in MACHINES:
        engine = experienced(machine)
        sizes[machine.name] = engine.policy.shared_chunk(engine.costs)
    assert sizes[DATA_CENTRE.name] > 600
    assert sizes[CPU.name] < 128
    assert sizes[LAPTOP.name] < 128


@every_machine
def test_a_prompt_that_is_alone_is_computed_in_pieces_of_one_size(machine: Machine) -> None:
    engine = experienced(machine)
    engine.answer(0)
    prompt = engine.prompt(3 * machine.single_chunk + 100)
    engine.run_until(lambda: prompt.done)
    assert [tokens for tokens, _ in prompt.chunks] == [machine.single_chunk] * 3 + [100]


@every_machine
@pytest.mark.parametrize("answers", [0, 1])
def test_a_short_prompt_behind_long_ones_gets_the_next_piece_or_the_one_after(machine: Machine, answers: int) -> None:
    engine = experienced(machine)
    engine.answer(answers)
    for _ in range(2):
        engine.prompt(20_000)
    for _ in range(7):
        engine.step()
    before = sum(len(each.chunks) for each in engine.prompts)
    short = engine.prompt(20)
    engine.run_until(lambda: short.done)
    assert sum(len(each.chunks) for each in engine.prompts) - before - 1 <= 2


@every_machine
def test_a_long_prompt_gets_every_other_piece_however_many_short_ones_come(machine: Machine) -> None:
    engine = experienced(machine)
    long = engine.prompt(5000)
    while not long.done:
        engine.prompt(30)
        engine.step()
    pieces = sorted((at, prompt is long) for prompt in engine.prompts for _, at in prompt.chunks)
    pieces = [piece for piece in pieces if long.chunks[0][1] <= piece[0] <= long.chunks[-1][1]]
    turns = [is_long for _, is_long in pieces]
    assert not any(not first and not second for first, second in itertools.pairwise(turns))


@every_machine
@pytest.mark.parametrize("pauses", [{10}, {50}, {50, 51, 52}, set(range(0, 400, 9))])
def test_pauses_do_not_change_what_was_learned(machine: Machine, pauses: set[int]) -> None:
    usual = experienced(machine)
    disturbed = SimulatedEngine(machine, disturb=lambda passes: 300.0 if passes in pauses else 1.0)
    for engine in (usual, disturbed):
        engine.answer(1)
        prompt = engine.prompt(12_000)
        engine.run_until(lambda done=prompt: done.done)  # type: ignore[misc]
    assert disturbed.policy.shared_chunk(disturbed.costs) == pytest.approx(
        usual.policy.shared_chunk(usual.costs), rel=0.2
    )


@every_machine
def test_a_machine_that_becomes_slower_is_noticed(machine: Machine) -> None:
    slow = 5.0
    engine = SimulatedEngine(machine, disturb=lambda passes: slow if passes > 60 else 1.0)
    engine.answer(1)
    prompt = engine.prompt(100_000)
    engine.run_until(lambda: len(prompt.chunks) > 100)
    assert max(engine.waits[-20:]) <= slow * max_wait(machine.step(1))


@every_machine
def test_chunks_shrink_as_a_prompt_grows_long(machine: Machine) -> None:
    engine = experienced(machine)
    prompt = engine.prompt(20_000)
    engine.run_until(lambda: prompt.done)
    assert engine.worst_wait <= max_wait(machine.step(1)) * 1.01
    assert prompt.chunks[-2][0] < prompt.chunks[5][0]


def burst(machine: Machine, length: int, *, together: bool) -> tuple[float, SimulatedEngine]:
    """Return how long prompts take that come together beside one answer, seconds, and the engine."""
    engine = SimulatedEngine(machine, together=together)
    engine.answer(1)
    first = engine.prompt(4000)
    engine.run_until(lambda: first.done)
    engine.waits.clear()
    began, prompts = engine.now, [engine.prompt(length - index % 5) for index in range(16)]
    engine.run_until(lambda: all(prompt.done for prompt in prompts))
    return engine.now - began, engine


@pytest.mark.parametrize(
    ("machine", "length", "gain"),
    [(DATA_CENTRE, 30, 3.0), (DATA_CENTRE, 100, 2.0), (DATA_CENTRE, 600, 1.0), (LAPTOP, 30, 1.0), (CPU, 30, 1.0)],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_short_prompts_share_passes_where_that_pays(machine: Machine, length: int, gain: float) -> None:
    alone, _ = burst(machine, length, together=False)
    shared, engine = burst(machine, length, together=True)
    assert alone / shared >= gain
    assert (alone / shared > 1.0) == (gain > 1.0)
    assert engine.worst_wait <= max_wait(machine.step(1)) * 1.01


def test_many_waiting_prompts_get_several_pieces_between_two_tokens() -> None:
    """Where steps are so short that nobody notices."""
    tiny = Machine("a phone's toy", 1e-4, 1e-5, 1e-5, 0.0, 256)
    engine = experienced(tiny)
    prompts = [engine.prompt(5000) for _ in range(20)]
    before = engine.now
    engine.step()
    assert MAX_CHUNKS <= sum(len(prompt.chunks) for prompt in prompts) <= MAX_CHUNKS + 1
    assert engine.now - before < WAIT_SECONDS


def test_batches_of_two_models_wait_for_one_another() -> None:
    fast, slow = PassCosts(), PassCosts()
    for costs, step in 3 * ((fast, 0.01), (slow, 0.1)):
        costs.observe_step(1, step)
        costs.observe_chunk(64, 0, step * 8)
    alone, both = ChunkPolicy[object](2048), ChunkPolicy[object](2048)  # type: ignore[type-var]
    alone.begin_turn(1, [(fast, 1)])
    both.begin_turn(1, [(fast, 1), (slow, 1)])
    assert both.shared_chunk(fast) > alone.shared_chunk(fast)
    assert both.shared_chunk(slow) >= SMALLEST_CHUNK


def test_costs_are_unknown_at_first_and_nothing_is_learned_from_no_time() -> None:
    costs = PassCosts()
    costs.observe_step(1, 0.0)
    costs.observe_chunk(64, 0, 0.0)
    assert (costs.step_seconds(1), costs.token_seconds(0), costs.chunk_tokens(1.0, 0)) == (None, None, None)
