"""The families that see and hear, each with a tiny model: mlx-vlm's own greedy answers about images, sound and both.

What is shown for each is written beside its configuration, and the page of the families is made of that.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import pytest
from doubles.event_log import InMemoryEventLog
from models.answers import read
from models.pictures import about, noise, oracle, tone
from models.tiny_omni import OMNI, build_omni

from mlxk.adapters.mlx.memory import EngineLimits
from mlxk.adapters.mlx.text_generator import MlxTextGenerator
from mlxk.adapters.system import SystemClock
from mlxk.domain.errors import CapabilityError
from mlxk.domain.generation.conversation import Conversation, Message, Role
from mlxk.domain.generation.request import GenerationRequest
from mlxk.domain.generation.settings import GenerationSettings
from mlxk.domain.models.model import ModelHandle

pytestmark = pytest.mark.mlx
GREEDY = GenerationSettings(temperature=0, max_tokens=12, logprobs=0)
Models = Callable[[str], ModelHandle]
PROMPTS = {
    "text": about("Hello world! How are you today?"),
    "image": about(noise(1), "What is it?"),
    "images": about("Image 1:", noise(1), "Image 2:", noise(2, 40, 90), "Compare them."),
    "sound": about("What is it?", tone(440, 0.5)),
    "both": about(noise(1), tone(440, 0.5), "Do they match?"),
    "sounds": about(tone(440, 0.5), tone(220, 0.3), "Compare them."),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Build a model of a family, once."""
    folder = tmp_path_factory.mktemp("tiny")
    return functools.cache(lambda family: build_omni(folder / family, family))


@pytest.fixture(scope="module")
def engine() -> Iterator[MlxTextGenerator]:
    generator = MlxTextGenerator(InMemoryEventLog(), SystemClock())
    yield generator
    generator.close()


def request(handle: ModelHandle, prompt: Conversation, **settings: Any) -> GenerationRequest:
    return GenerationRequest(handle, prompt, attrs.evolve(GREEDY, **settings), backends=("mlx-vlm",))


def tokens(engine: MlxTextGenerator, handle: ModelHandle, prompt: Conversation) -> tuple[bytes, ...]:
    return read(engine.submit(request(handle, prompt))).tokens


@pytest.mark.parametrize("family", OMNI)
def test_a_familys_answers_are_mlx_vlms_own(family: str, models: Models, engine: MlxTextGenerator) -> None:
    handle, shows = models(family), {"text": True, **OMNI[family]["shows"]}
    for name, prompt in PROMPTS.items():
        if shows[name] is True:
            assert tokens(engine, handle, prompt) == oracle(handle, prompt, GREEDY.max_tokens or 0), name
        else:
            with pytest.raises(CapabilityError, match="takes one recording in a message, not 2"):
                tokens(engine, handle, prompt)


@pytest.mark.parametrize("family", OMNI)
def test_every_image_and_sound_counts(family: str, models: Models, engine: MlxTextGenerator) -> None:
    handle = models(family)
    found = [
        tokens(engine, handle, about(noise(seed), tone(pitch, 0.5), "Do they match?"))
        for seed, pitch in ((1, 440), (2, 440), (1, 220), (1, 440))
    ]
    assert found[0] == found[3]
    assert len(set(found)) == 3


@pytest.mark.parametrize("family", OMNI)
def test_a_familys_conversations_and_streams_equal_those_alone(
    family: str, models: Models, engine: MlxTextGenerator
) -> None:
    handle, said = models(family), Message(Role.ASSISTANT, "The quick brown fox.")
    opening = Message.of_parts(noise(1), "What is it?")
    turns = Conversation((opening, said, Message.of_parts(tone(440, 0.5), noise(3), "And now?")))
    asked = [
        request(handle, Conversation((opening,))),
        request(handle, Conversation((opening, said, Message.of_parts(tone(440, 0.5), "And now?")))),
        request(handle, turns),
        request(handle, PROMPTS["text"], temperature=1.5, seed=7),
        request(handle, PROMPTS["sound"], temperature=1.5, seed=9),
        request(handle, PROMPTS["both"], max_tokens=3),
    ]
    one_by_one = [read(engine.submit(each)) for each in asked]
    forgetful = MlxTextGenerator(InMemoryEventLog(), SystemClock(), EngineLimits(prefix_cache_bytes=0))
    try:
        together = [read(stream) for stream in [forgetful.submit(each) for each in asked]]
        alone = [read(forgetful.submit(each)).tokens for each in asked]
    finally:
        forgetful.close()
    assert [each.tokens for each in one_by_one] == alone
    assert [each.tokens for each in together] == alone
    notes = any("outside the common batch" in note for each in together for note in each.finished.notes)
    assert OMNI[family]["shows"]["batch"] == ("alone" if notes else "shared")
