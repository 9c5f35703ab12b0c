"""Models that write text and take sound beside it, in the engine: mlx-vlm's own answers, shared work, refusals."""

import itertools
from typing import Any

import attrs
import pytest
from models.answers import Answer, read
from models.pictures import about, noise, oracle, tone
from models.tiny_models import build as build_text
from models.tiny_vision import build

from mlxk.adapters.mlx.text_generator import MlxTextGenerator
from mlxk.domain.errors import CapabilityError, ValidationError
from mlxk.domain.generation.conversation import Conversation, Message, MessagePart, Role
from mlxk.domain.generation.request import GenerationRequest
from mlxk.domain.generation.settings import GenerationSettings
from mlxk.domain.models.model import ModelHandle

pytestmark = pytest.mark.mlx
GREEDY = GenerationSettings(temperature=0, max_tokens=24, logprobs=0)
QUESTION = "Transcribe this audio."


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelHandle:
    """Return a model that sees and hears."""
    return build(tmp_path_factory.mktemp("tiny") / "gemma4", "gemma4", seed=4)


def request(handle: ModelHandle, prompt: Conversation, **settings: Any) -> GenerationRequest:
    return GenerationRequest(handle, prompt, attrs.evolve(GREEDY, **settings), backends=("mlx-vlm",))


def answer(engine: MlxTextGenerator, handle: ModelHandle, prompt: Conversation, **settings: Any) -> Answer:
    return read(engine.submit(request(handle, prompt, **settings)))


@pytest.mark.parametrize("seconds", [0.02, 1.0, 30.0])
def test_an_answer_about_a_sound_is_mlx_vlms_own(seconds: float, model: ModelHandle, engine: MlxTextGenerator) -> None:
    prompt = about(QUESTION, tone(440, seconds))
    assert answer(engine, model, prompt).tokens == oracle(model, prompt)


def test_answers_about_other_sounds_are_others(model: ModelHandle, engine: MlxTextGenerator) -> None:
    prompts = [about(QUESTION, tone(pitch)) for pitch in (110, 880, 110)]
    low, high, again = (answer(engine, model, prompt) for prompt in prompts)
    assert low.tokens == oracle(model, prompts[0])
    assert high.tokens == oracle(model, prompts[1])
    assert low.tokens == again.tokens != high.tokens
    assert again.finished.usage.cached_tokens == again.finished.usage.prompt_tokens - 1


def test_a_prompt_may_show_an_image_and_play_sounds(model: ModelHandle, engine: MlxTextGenerator) -> None:
    prompt = about(noise(1), "Do they match?", tone(440, 0.5), tone(220))
    assert answer(engine, model, prompt).tokens == oracle(model, prompt)


def test_a_conversation_goes_on_about_its_sound(model: ModelHandle, engine: MlxTextGenerator) -> None:
    opening = Message.of_parts(QUESTION, tone(440, 0.1))
    first = answer(engine, model, Conversation((opening,)))
    said = Message(Role.ASSISTANT, "The quick brown fox.")
    turns = Conversation((opening, said, Message(Role.USER, "And what else? " * 3)))
    second = answer(engine, model, turns)
    assert second.finished.usage.cached_tokens >= first.finished.usage.prompt_tokens - 8
    engine.unload()
    assert answer(engine, model, turns).tokens == second.tokens


def test_a_conversation_goes_on_with_other_sounds_and_images_where_it_was(
    model: ModelHandle, engine: MlxTextGenerator
) -> None:
    said = Message(Role.ASSISTANT, "The quick brown fox.")
    parts: tuple[tuple[MessagePart, ...], ...] = (
        ("Hello there. " * 4, tone(440, 0.1)),
        (noise(1), "And this?"),
        ("Now?", tone(220, 0.2), noise(2)),
        ("Why?",),
    )
    turns = [Message.of_parts(*each) for each in parts]
    asked = [
        Conversation((*(each for turn in turns[:count] for each in (turn, said)), turns[count])) for count in range(4)
    ]
    asked.append(Conversation((*asked[2].messages[:-1], Message.of_parts("Now?", tone(220, 0.3), noise(2)))))
    found = [answer(engine, model, each) for each in asked]
    for before, after in itertools.pairwise(found[:4]):
        assert after.finished.usage.cached_tokens >= before.finished.usage.prompt_tokens - 8
    for each, prompt in zip(found, asked, strict=True):
        engine.unload()
        assert answer(engine, model, prompt).tokens == each.tokens


def test_requests_with_and_without_sound_get_together_what_they_get_alone(
    model: ModelHandle, engine: MlxTextGenerator
) -> None:
    asked = [
        request(model, about(QUESTION, tone(440))),
        request(model, about(noise(1), "What is this?"), temperature=1.0, seed=7),
        request(model, about("Hello world!")),
        request(model, about("Say it.", tone(220, 2.0)), temperature=0.8, seed=8),
    ]
    alone = [read(engine.submit(each)).tokens for each in asked]
    engine.unload()
    streams = [engine.submit(each) for each in asked]
    assert [read(stream).tokens for stream in streams] == alone


def test_a_model_without_ears_refuses_a_sound(tmp_path: Any, engine: MlxTextGenerator) -> None:
    deaf = build(tmp_path / "qwen", "qwen2_vl")
    with pytest.raises(ValidationError, match="cannot take this sound"):
        answer(engine, deaf, about(QUESTION, tone(440)))
    text = build_text(tmp_path / "llama")
    with pytest.raises(CapabilityError, match="takes text, not images and sound"):
        engine.submit(GenerationRequest(text, about(QUESTION, tone(440)), GREEDY))


def test_the_mark_of_a_sound_in_a_text_is_text_or_is_refused(model: ModelHandle, engine: MlxTextGenerator) -> None:
    prompt = about("<|audio|>", tone(440))
    assert answer(engine, model, prompt).tokens
    with pytest.raises(ValidationError, match="cannot take this sound") as refusal:
        read(engine.submit(attrs.evolve(request(model, prompt), parse_special=True)))
    assert refusal.value.hint == "A prompt must not contain the marks of sound."
