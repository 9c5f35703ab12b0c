"""The scheduler with a real model, driven step by step: which sequences compute when, and what failures do."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import pytest
from models.answers import read
from models.tiny_models import build
from models.workshop import Workshop

from mlxk.adapters.mlx.chunk_policy import FIRST_CHUNK, SINGLE_CHUNK_CPU, SMALLEST_CHUNK
from mlxk.adapters.mlx.engine.sampling import LogitsProcessor
from mlxk.adapters.mlx.engine.sequence import SequenceOutput
from mlxk.adapters.mlx.loading.text_model import LoadedModel, load_model
from mlxk.domain.errors import ExecutionError, InsufficientMemoryError
from mlxk.domain.generation.request import FinishReason
from mlxk.domain.models.model import ModelHandle

pytestmark = pytest.mark.mlx
PROMPTS = ("Hello world", "The quick brown fox", "Count: 1, 2, 3", "Die Sonne")
POISON = 65
"""A token that one answer is made to say and no other does."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    handle: ModelHandle = build(tmp_path_factory.mktemp("tiny") / "llama", max_position_embeddings=8192)
    return load_model(handle)


@pytest.fixture
def workshop(model: LoadedModel) -> Workshop:
    return Workshop(model)


BIGCODE = {"n_embd": 64, "n_layer": 2, "n_inner": 128, "n_head": 4, "n_positions": 512, "layer_norm_epsilon": 1e-5}
CAPS = {"query_pre_attn_scalar": 16, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
REUSED = {
    "hidden_dim": 64,
    "num_layers": 4,
    "num_kv_reuse_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "hidden_dim_scale_factor": 2.0,
}


@pytest.mark.parametrize("together", [2, 3])
@pytest.mark.parametrize(
    ("architecture", "config", "shares"),
    [("gemma2", CAPS, True), ("gpt_bigcode", BIGCODE, False), ("afm7", REUSED, False)],
    ids=["gemma2", "gpt_bigcode", "afm7"],
)
def test_networks_that_mishandle_batches_answer_as_alone(
    architecture: str, config: dict[str, object], shares: bool, together: int, tmp_path: Path
) -> None:
    model = load_model(build(tmp_path / architecture, architecture, **config))
    workshop = Workshop(model)
    # As many as there are heads for keys, too: masks of sequences fit where those of heads belong then.
    assert workshop.texts(*PROMPTS[:together]) == [Workshop(model).texts(each)[0] for each in PROMPTS[:together]]
    assert not workshop.log.named("a batch failed and is rebuilt")
    assert (max(rows for rows, _ in workshop.network.passes) > 1) is shares


def test_a_batch_that_fails_once_is_rebuilt_and_every_answer_goes_on(model: LoadedModel, workshop: Workshop) -> None:
    expected = Workshop(model).texts(*PROMPTS, temperature=1.0, seed=7, presence_penalty=1.0)
    failures = iter([False] * 12 + [True])

    def fail_once(tokens: mx.array) -> None:
        if next(failures, False):
            raise RuntimeError("the device went away")

    workshop.network.before = fail_once
    assert workshop.texts(*PROMPTS, temperature=1.0, seed=7, presence_penalty=1.0) == expected
    assert workshop.released == len(PROMPTS)


def test_an_answer_that_breaks_every_batch_fails_and_no_other_does(model: LoadedModel, workshop: Workshop) -> None:
    shy = {"logit_bias": ((POISON, -100.0),)}
    expected = Workshop(model).texts(*PROMPTS, **shy)

    def fail_on_poison(tokens: mx.array) -> None:
        if tokens.shape[1] == 1 and POISON in tokens.flatten().tolist():  # type: ignore[operator]
            raise RuntimeError("the device went away")

    workshop.network.before = fail_on_poison
    streams = [workshop.start(prompt, **shy)[1] for prompt in PROMPTS]
    _, doomed = workshop.start("Hello", logit_bias=((POISON, 100.0),))
    workshop.run()
    assert [read(stream).text for stream in streams] == expected
    with pytest.raises(ExecutionError, match="RuntimeError") as caught:
        read(doomed)
    assert set(caught.value.detail or ()) == {"where"}, "what a library says may quote the prompt"
    assert workshop.released == len(PROMPTS) + 1


@pytest.mark.parametrize("prompt_tokens", [1, 2], ids=["step", "prompt"])
def test_a_model_of_several_processes_is_told_of_a_failure(workshop: Workshop, prompt_tokens: int) -> None:
    told: list[bool] = []
    workshop.network.read, workshop.network.give_up = workshop.network.__call__, lambda: told.append(True)

    def fail_once(tokens: mx.array) -> None:
        if not told and (tokens.shape[1] == 1) == (prompt_tokens == 1):
            raise RuntimeError("the device went away")

    workshop.network.before = fail_once
    _, stream = workshop.start("Hello world")
    workshop.run()
    assert told == [True]
    if prompt_tokens == 1:
        assert read(stream).text


def test_logits_that_are_no_numbers_fail_their_own_answer_only(model: LoadedModel, workshop: Workshop) -> None:
    shy = {"logit_bias": ((POISON, -100.0),)}
    expected = Workshop(model).texts(*PROMPTS, **shy)
    workshop.network.after = lambda tokens, logits: mx.where((tokens == POISON)[..., None], mx.nan, logits)
    streams = [workshop.start(prompt, **shy)[1] for prompt in PROMPTS]
    _, doomed = workshop.start("Hello", logit_bias=((POISON, 100.0),))
    workshop.run()
    assert [read(stream).text for stream in streams] == expected
    with pytest.raises(ExecutionError, match="not a number"):
        read(doomed)


def _raises(generated: mx.array, logits: mx.array) -> mx.array:
    if generated.size == 3:
        raise KeyError("a fault of this answer's own")
    return logits


def _changes_shape(generated: mx.array, logits: mx.array) -> mx.array:
    return logits[:, :5]


def _allows_nothing(generated: mx.array, logits: mx.array) -> mx.array:
    return mx.full(logits.shape, -mx.inf)


@pytest.mark.parametrize("process", [_raises, _changes_shape, _allows_nothing])
def test_a_faulty_processor_fails_its_own_answer_only(
    model: LoadedModel, workshop: Workshop, process: LogitsProcessor
) -> None:
    expected = Workshop(model).texts(*PROMPTS)
    streams = [workshop.start(prompt)[1] for prompt in PROMPTS]
    _, doomed = workshop.start("Hello", constrain=lambda generated: (process,))
    workshop.run()
    assert [read(stream).text for stream in streams] == expected
    with pytest.raises(ExecutionError):
        read(doomed)


@pytest.mark.parametrize("tokens", [2, 100], ids=["a token", "the end"])
def test_a_text_that_cannot_be_made_ends_its_own_answer_only(
    model: LoadedModel, workshop: Workshop, tokens: int
) -> None:
    expected, left = Workshop(model).texts(*PROMPTS), ["x"] * tokens
    faulty: Any = SimpleNamespace(feed=lambda token: left.pop(), flush=lambda: [].pop())
    streams = [workshop.start(prompt)[1] for prompt in PROMPTS]
    sequence, doomed = workshop.start("Hello")
    sequence.output = SequenceOutput(faulty, None, doomed)
    workshop.run()
    assert [read(stream).text for stream in streams] == expected
    with pytest.raises(ExecutionError, match="IndexError"):
        read(doomed)
    assert workshop.released == len(PROMPTS) + 1


def test_a_prompt_that_cannot_be_computed_fails_by_itself(model: LoadedModel, workshop: Workshop) -> None:
    expected = Workshop(model).texts(*PROMPTS)

    def fail_on_long_prompts(tokens: mx.array) -> None:
        if tokens.shape[1] > 50:
            raise MemoryError

    workshop.network.before = fail_on_long_prompts
    streams = [workshop.start(prompt)[1] for prompt in PROMPTS]
    _, doomed = workshop.start("word " * 300)
    workshop.run()
    assert [read(stream).text for stream in streams] == expected
    with pytest.raises(InsufficientMemoryError, match="may not have as much memory"):
        read(doomed)


def test_a_short_prompt_behind_long_ones_is_answered_within_a_few_steps(workshop: Workshop) -> None:
    long = [workshop.start("word " * 1900)[0] for _ in range(2)]
    for _ in range(3):
        workshop.step()
    short, _ = workshop.start("Hello world", max_tokens=1)
    steps = 0
    while not short.ended:
        workshop.step()
        steps += 1
    assert steps <= 4
    assert not any(sequence.generated for sequence in long)
    workshop.run()


def test_a_long_prompt_gets_at_least_every_other_piece(workshop: Workshop) -> None:
    long, _ = workshop.start("word " * 1900, max_tokens=1)
    alone = -(-len(long.prompt) // FIRST_CHUNK)
    steps = 0
    while not long.ended:
        workshop.start("word " * 100, max_tokens=1)
        workshop.step()
        steps += 1
    assert steps <= 2 * alone + 4
    workshop.run()


def test_a_running_answer_gets_a_token_between_two_pieces_of_a_long_prompt(workshop: Workshop) -> None:
    running, _ = workshop.start("Hello world", max_tokens=500)
    while not running.generated:
        workshop.step()
    workshop.start("word " * 1900, max_tokens=1)
    for _ in range(10):
        before = len(running.generated)
        workshop.step()
        assert len(running.generated) > before
    workshop.scheduler.end_all()


@pytest.mark.parametrize("tokens", [1, 2, 5])
@pytest.mark.parametrize("answers", [1, 3])
def test_no_step_is_begun_after_the_last_token_of_every_answer(workshop: Workshop, tokens: int, answers: int) -> None:
    streams = [workshop.start(prompt, max_tokens=tokens)[1] for prompt in PROMPTS[:answers]]
    workshop.run()
    assert [shape for shape in workshop.network.passes if shape[1] == 1] == [(answers, 1)] * tokens
    assert [read(stream).finished.usage.completion_tokens for stream in streams] == [tokens] * answers


def test_an_answer_that_goes_on_is_not_held_up_by_one_that_ends(model: LoadedModel, workshop: Workshop) -> None:
    expected = [Workshop(model).texts(PROMPTS[0], max_tokens=3)[0], Workshop(model).texts(PROMPTS[1], max_tokens=9)[0]]
    streams = [workshop.start(prompt, max_tokens=most)[1] for prompt, most in zip(PROMPTS, (3, 9), strict=False)]
    workshop.run()
    assert [read(stream).text for stream in streams] == expected


@pytest.mark.parametrize(("rest", "pieces"), [(1, 1), (FIRST_CHUNK // 2, 1), (FIRST_CHUNK // 2 + 1, 2)])
def test_a_small_rest_of_a_prompt_is_computed_with_the_piece_before_it(
    workshop: Workshop, rest: int, pieces: int
) -> None:
    running, _ = workshop.start("Hello world", max_tokens=500)
    while not running.generated:
        workshop.step()
    sequence, _ = workshop.start("word", max_tokens=1)
    sequence.prompt[:] = [5] * (FIRST_CHUNK + rest + 1)  # the last one is the first input of the answer
    workshop.network.passes.clear()
    while not sequence.ended:
        workshop.step()
    computed = [shape[1] for shape in workshop.network.passes if shape[1] > 1]
    assert sum(computed) == FIRST_CHUNK + rest
    assert len(computed) == pieces
    workshop.scheduler.end_all()


def fast(workshop: Workshop) -> Workshop:
    """Have passes cost what they do on a fast GPU, which the engine learns."""
    workshop.network.before = lambda tokens: workshop.clock.advance(0.01 + 1e-5 * tokens.size)
    workshop.texts("Hello world", max_tokens=8)
    for index in range(4):
        workshop.texts(f"{index} word " * 40, max_tokens=2)
    workshop.network.passes.clear()
    return workshop


SHORT = (*PROMPTS, "A", "Hello world, how are you today? The quick brown fox jumps over the lazy dog.")


@pytest.mark.parametrize("prefix_bytes", [0, 2**30])
def test_short_prompts_that_come_together_are_computed_in_one_pass(model: LoadedModel, prefix_bytes: int) -> None:
    expected = [Workshop(model).texts(prompt)[0] for prompt in SHORT]
    workshop = fast(Workshop(model, prefix_bytes=prefix_bytes))
    assert workshop.texts(*SHORT) == expected
    prompts = [shape for shape in workshop.network.passes if shape[1] > 1]
    assert len(prompts) < len(SHORT)
    assert max(rows for rows, _ in prompts) >= 4
    assert workshop.texts(*SHORT) == expected, "what was kept of them is right, too"


def test_a_pass_of_several_prompts_that_fails_is_done_for_each_by_itself(model: LoadedModel) -> None:
    expected = [Workshop(model).texts(prompt)[0] for prompt in SHORT]
    workshop = fast(Workshop(model))

    def fail(tokens: mx.array) -> None:
        if tokens.shape[0] > 1 and tokens.shape[1] > 1:
            raise RuntimeError("the device went away")

    workshop.network.before = fail
    assert workshop.texts(*SHORT) == expected


def test_prompts_that_are_scored_share_no_pass(model: LoadedModel) -> None:
    workshop = fast(Workshop(model))
    workshop.texts(*PROMPTS, logprobs=2, echo=True)
    assert all(rows == 1 for rows, length in workshop.network.passes if length > 1)


@pytest.mark.parametrize(
    ("token_seconds", "settled"),
    [(1e-5, SINGLE_CHUNK_CPU), (1e-3, 72), (0.01, SMALLEST_CHUNK)],
)
def test_pieces_beside_an_answer_are_as_large_as_the_machine_allows(
    workshop: Workshop, token_seconds: float, settled: int
) -> None:
    workshop.network.before = lambda tokens: workshop.clock.advance(0.01 + token_seconds * tokens.size)
    running, _ = workshop.start("Hello world", max_tokens=500)
    while len(running.generated) < 8:
        workshop.step()
    long, _ = workshop.start("word " * 1900, max_tokens=1)
    workshop.network.passes.clear()
    while not long.ended and len(workshop.network.passes) < 60:
        workshop.step()
    computed = [shape[1] for shape in workshop.network.passes if shape[1] > 1]
    assert computed[0] == FIRST_CHUNK
    assert computed[-2] == pytest.approx(settled, abs=8)
    workshop.scheduler.end_all()


def test_a_cancelled_answer_is_out_of_the_next_step(workshop: Workshop) -> None:
    streams = [workshop.start(prompt, max_tokens=500)[1] for prompt in PROMPTS]
    for _ in range(5):
        workshop.step()
    streams[1].cancel()
    workshop.network.passes.clear()
    workshop.step()
    assert workshop.network.passes == [(3, 1)]
    assert read(streams[1]).finished.reason is FinishReason.CANCELLED
    workshop.scheduler.end_all()


def test_a_prompt_cancelled_half_way_is_computed_no_further(workshop: Workshop) -> None:
    sequence, stream = workshop.start("word " * 1900)
    workshop.step()
    stream.cancel()
    workshop.network.passes.clear()
    assert not workshop.step()
    assert workshop.network.passes == []
    assert sequence.ended


def test_no_more_answers_run_than_there_are_rows(model: LoadedModel) -> None:
    workshop = Workshop(model, max_rows=2)
    streams = [workshop.start(prompt)[1] for prompt in PROMPTS]
    widest = 0
    while workshop.step():
        assert workshop.scheduler.running <= 2
        widest = max(widest, workshop.scheduler.running)
    assert widest == 2
    assert all(read(stream).finished.reason is FinishReason.LENGTH for stream in streams)


def test_answers_wait_for_memory_and_all_come_through(model: LoadedModel) -> None:
    free = Workshop(model)
    free.texts("word " * 300)
    one = free.pooled.bytes_per_token * 350
    workshop = Workshop(model, cache_budget_bytes=int(one * 1.5))
    workshop.pooled.bytes_per_token = free.pooled.bytes_per_token
    streams = [workshop.start(f"word {number} " * 150)[1] for number in range(3)]
    while workshop.step():
        assert workshop.scheduler.running <= 1
    assert all(read(stream).finished.reason is FinishReason.LENGTH for stream in streams)
    assert workshop.released == 3


def test_answers_of_a_model_that_never_ran_are_judged_by_its_config(model: LoadedModel) -> None:
    assert model.cache_bytes_per_token > 0
    workshop = Workshop(model, cache_budget_bytes=model.cache_bytes_per_token * 450)
    for number in range(3):
        workshop.start(f"word {number} " * 150)
    workshop.step()
    assert workshop.scheduler.running == 1


def test_running_answers_and_kept_prefixes_stay_within_their_budget_together(model: LoadedModel) -> None:
    free = Workshop(model, prefix_bytes=2**30)
    free.texts("word " * 600)
    budget = int(free.prefixes.size_bytes * 1.5)
    workshop = Workshop(model, cache_budget_bytes=budget, prefix_bytes=budget)
    for word in ("word ", "quick ", "brown "):
        _, stream = workshop.start(word * 600)
        while workshop.step():
            pass
        assert read(stream).finished.reason is FinishReason.LENGTH
        assert 0 < workshop.prefixes.size_bytes <= budget
    workshop.start("lazy " * 600)
    workshop.step()
    assert workshop.prefixes.size_bytes < budget / 2


def test_an_answer_that_is_alone_runs_whatever_it_needs(model: LoadedModel) -> None:
    workshop = Workshop(model, cache_budget_bytes=1)
    assert len(workshop.texts("word " * 300, "Hello")) == 2
