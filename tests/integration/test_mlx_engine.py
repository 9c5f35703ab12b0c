"""The engine against mlx-lm's own greedy answers: token for token, alone, among others, and after prefix-cache hits."""

import random
import threading
from pathlib import Path

import pytest
from doubles.event_log import InMemoryEventLog
from models.answers import Answer, oracle, read
from models.tiny_models import ARCHITECTURES, build

from mlxk.adapters.mlx.memory import EngineLimits
from mlxk.adapters.mlx.text_generator import MlxTextGenerator
from mlxk.adapters.system import SystemClock
from mlxk.domain.errors import ContextLengthError
from mlxk.domain.generation.conversation import Conversation, Message, Role
from mlxk.domain.generation.request import FinishReason, GenerationRequest
from mlxk.domain.generation.settings import GenerationSettings
from mlxk.domain.models.model import ModelHandle

pytestmark = pytest.mark.mlx
WORDS = (
    "The",
    "quick",
    "brown",
    "fox",
    "jumps",
    "dog",
    "Hello",
    "world",
    "München",
    "grüße",
    "[1,2]",
    "{}",
    "日本",
    "🙂",
)
GREEDY = GenerationSettings(temperature=0, max_tokens=24, logprobs=0)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def handle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelHandle:
    return build(tmp_path_factory.mktemp("tiny") / request.param, request.param)


def prompts(count: int = 20, seed: int = 1) -> list[str]:
    dice = random.Random(seed)
    return [" ".join(dice.choice(WORDS) for _ in range(dice.choice([1, 3, 8, 20, 50]))) for _ in range(count)]


def answer(engine: MlxTextGenerator, handle: ModelHandle, prompt: str) -> Answer:
    return read(engine.submit(GenerationRequest(handle, prompt, GREEDY)))


def test_twenty_answers_one_after_the_other_are_mlx_lms_own(engine: MlxTextGenerator, handle: ModelHandle) -> None:
    for prompt in prompts():
        assert answer(engine, handle, prompt).tokens == oracle(handle, prompt)


def test_twenty_answers_that_come_and_go_eight_at_a_time_are_mlx_lms_own(
    engine: MlxTextGenerator, handle: ModelHandle
) -> None:
    questions = prompts()
    answers: dict[str, Answer] = {}
    todo = list(questions)

    def reader(seed: int) -> None:
        dice = random.Random(seed)
        while todo:
            try:
                prompt = todo.pop()
            except IndexError:
                return
            if dice.random() < 0.4:
                doomed = engine.submit(GenerationRequest(handle, dice.choice(questions), GREEDY))
                for _ in zip(range(dice.randrange(10)), doomed, strict=False):
                    pass
                doomed.cancel()
            answers[prompt] = answer(engine, handle, prompt)

    readers = [threading.Thread(target=reader, args=(seed,)) for seed in range(8)]
    for thread in readers:
        thread.start()
    for thread in readers:
        thread.join()
    assert {prompt: each.tokens for prompt, each in answers.items()} == {
        each: oracle(handle, each) for each in questions
    }


@pytest.mark.parametrize("kind", ["equal", "longer", "shorter", "parting"])
def test_answers_after_every_kind_of_cache_hit_are_mlx_lms_own(
    engine: MlxTextGenerator, handle: ModelHandle, kind: str
) -> None:
    cached = 0
    for number, first in enumerate(prompts(6, seed=3)):
        words = (first * 30).split()[:60]
        shown = {
            "equal": words,
            "longer": [*words, "Hello", "world"],
            "shorter": words[:40],
            "parting": [*words[:40], "Hello", "world", str(number)],
        }[kind]
        answer(engine, handle, " ".join(words))
        # The second one finds the snapshot that the first one took where it parted.
        for prompt in (" ".join(shown), " ".join([*shown, "again"])):
            found = answer(engine, handle, prompt)
            assert found.tokens == oracle(handle, prompt)
            cached += found.finished.usage.cached_tokens
    assert cached > 6 * 30


def test_the_next_turn_of_a_chat_computes_only_what_is_new(engine: MlxTextGenerator, handle: ModelHandle) -> None:
    talk = Conversation.of("Hello world " * 40, system="The quick brown fox.")
    first = read(engine.submit(GenerationRequest(handle, talk, GREEDY)))
    answered = (Message(Role.ASSISTANT, first.text), Message(Role.USER, "Count the dogs."))
    talk = Conversation((*talk.messages, *answered))
    second = read(engine.submit(GenerationRequest(handle, talk, GREEDY)))
    fresh = MlxTextGenerator(InMemoryEventLog(), SystemClock(), EngineLimits(prefix_cache_bytes=0))
    cold = read(fresh.submit(GenerationRequest(handle, talk, GREEDY)))
    fresh.close()
    assert second.tokens == cold.tokens
    assert cold.finished.usage.cached_tokens == 0
    assert second.finished.usage.cached_tokens >= first.finished.usage.prompt_tokens - 1


def test_a_prompt_that_fills_the_window_is_refused_with_both_numbers(tmp_path: Path, engine: MlxTextGenerator) -> None:
    small = build(tmp_path / "small", max_position_embeddings=64)
    with pytest.raises(ContextLengthError, match=r"200 tokens.* 64\.") as caught:
        engine.submit(GenerationRequest(small, "\n" * 200))
    assert caught.value.detail == {"prompt_tokens": 200, "context_length": 64}


def test_an_answer_ends_where_the_window_does(tmp_path: Path, engine: MlxTextGenerator) -> None:
    small = build(tmp_path / "small", max_position_embeddings=64)
    settings = GenerationSettings(temperature=0, ignore_eos=True)
    finished = read(engine.submit(GenerationRequest(small, "\n" * 50, settings))).finished
    assert finished.reason is FinishReason.LENGTH
    assert finished.usage.total_tokens == 64
    assert finished.token_limit == 14


def test_an_engine_counts_what_it_has_computed_and_nothing_else(engine: MlxTextGenerator, tmp_path: Path) -> None:
    request = GenerationRequest(build(tmp_path / "tiny"), Conversation.of("Hello world " * 20), GREEDY)
    usages = [read(engine.submit(request)).finished.usage for _ in range(2)]
    assert usages[1].cached_tokens > 0
    state = engine.state(10)
    assert state.cached_tokens == usages[1].cached_tokens
    # The last token of a prompt is computed in the step that generates the first one of the answer.
    computed = sum(each.prompt_tokens - 1 for each in usages) - state.cached_tokens
    assert state.prompt_tokens == computed
    assert state.generated_tokens == sum(each.completion_tokens for each in usages)
    assert (state.ended, state.failed) == (2, 0)
