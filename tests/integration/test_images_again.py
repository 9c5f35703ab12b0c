"""Images that come again with every turn of a conversation: what was made of them, and of the turns, is used again."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
from doubles.event_log import InMemoryEventLog
from models.answers import Answer, read
from models.pictures import about, as_png, noise, oracle
from models.tiny_vision import ARCHITECTURES, build

from mlxk.adapters.mlx.memory import EngineLimits
from mlxk.adapters.mlx.text_generator import MlxTextGenerator
from mlxk.adapters.pillow import PillowImageReader
from mlxk.adapters.system import SystemClock
from mlxk.domain.generation.conversation import Conversation, Message, Role
from mlxk.domain.generation.media import EncodedImage
from mlxk.domain.generation.request import GenerationRequest
from mlxk.domain.generation.settings import GenerationSettings
from mlxk.domain.models.model import ModelHandle

pytestmark = pytest.mark.mlx
GREEDY = GenerationSettings(temperature=0, max_tokens=12, logprobs=0)
QUESTION = "What is in the image?"
Models = Callable[[str], ModelHandle]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Build a model of an architecture, once."""
    folder = tmp_path_factory.mktemp("tiny")
    return functools.cache(lambda architecture: build(folder / architecture, architecture, 3))


def request(handle: ModelHandle, prompt: Conversation) -> GenerationRequest:
    return GenerationRequest(handle, prompt, GREEDY, backends=("mlx-vlm",))


def answer(engine: MlxTextGenerator, handle: ModelHandle, prompt: Conversation) -> Answer:
    return read(engine.submit(request(handle, prompt)))


def expected(handle: ModelHandle, prompt: Conversation) -> tuple[bytes, ...]:
    return oracle(handle, prompt, GREEDY.max_tokens or 0)


@pytest.mark.parametrize("architecture", sorted(set(ARCHITECTURES) - {"mllama"}))
def test_a_conversation_goes_on_with_another_image_where_it_was(
    architecture: str, models: Models, engine: MlxTextGenerator
) -> None:
    handle = models(architecture)
    opening, said = Message.of_parts("Hello there. " * 4, noise(1), QUESTION), Message(Role.ASSISTANT, "A fox.")
    first = answer(engine, handle, Conversation((opening,)))
    for seed in (2, 3):  # the last image of the third is another one than that of the second
        turns = Conversation((opening, said, Message.of_parts("And this?", noise(seed), "Well? " * 3)))
        found = answer(engine, handle, turns)
        assert found.tokens == expected(handle, turns)
        assert found.finished.usage.cached_tokens >= first.finished.usage.prompt_tokens - 8
    other = Conversation((Message.of_parts("Hello there. " * 4, noise(4), QUESTION), *turns.messages[1:]))
    found = answer(engine, handle, other)
    assert found.tokens == expected(handle, other)
    assert 0 < found.finished.usage.cached_tokens < first.finished.usage.prompt_tokens / 2
    text = about("Hello there. " * 4, QUESTION)
    assert answer(engine, handle, text).tokens == expected(handle, text)


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_an_image_that_comes_again_is_prepared_once_and_changes_no_answer(
    architecture: str, models: Models, engine: MlxTextGenerator
) -> None:
    handle = models(architecture)
    shown = [about(noise(1), question) for question in (QUESTION, "And what else is in it?", QUESTION)]
    stream = engine.submit(request(handle, shown[0]))
    vision: Any = engine._thread.worker._pool.models[0].model.vision
    found = [read(stream).tokens, *(answer(engine, handle, each).tokens for each in shown[1:])]
    assert found == [expected(handle, each) for each in shown]
    assert vision.prepared.hits >= 2
    hits = vision.prepared.hits
    other = about(noise(2), QUESTION)
    assert answer(engine, handle, other).tokens == expected(handle, other)
    assert vision.prepared.hits == hits


@pytest.mark.parametrize("limit", [0, 3])
def test_pixels_that_do_not_fit_are_not_kept_and_change_no_answer(limit: int, models: Models) -> None:
    handle = models("qwen2_vl")
    engine = MlxTextGenerator(InMemoryEventLog(), SystemClock(), EngineLimits(vision_cache_bytes=limit))
    try:
        stream = engine.submit(request(handle, about(noise(1), QUESTION)))
        vision: Any = engine._thread.worker._pool.models[0].model.vision
        assert read(stream).tokens == answer(engine, handle, about(noise(1), QUESTION)).tokens
        assert vision.prepared.hits == 0
    finally:
        engine.close()


def test_decoded_images_are_kept_by_content_within_a_size() -> None:
    files = [EncodedImage.of(as_png(noise(seed, 10, 10)), "x") for seed in (1, 2, 3)]
    reader = PillowImageReader(max_bytes=2 * 10 * 10 * 3)
    first = reader.decode(files[0])
    again = EncodedImage.of(files[0].data, "y")
    assert reader.decode(again) is first
    assert reader.decode(files[1]).pixels != first.pixels
    reader.decode(files[2])
    assert reader.decode(files[0]) is not first
    assert reader.decode(files[0]) == first
    nothing = PillowImageReader(max_bytes=0)
    assert nothing.decode(files[0]) is not nothing.decode(files[0])
