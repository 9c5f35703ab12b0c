"""The families of vision models, each with a tiny model: mlx-vlm's own greedy answers, and shared batches.

What is shown for each is written beside its configuration, and the page of the families is made of that.
"""

import functools
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import mlx_vlm
import pytest
from doubles.event_log import InMemoryEventLog
from models.answers import read
from models.pictures import about, loaded, noise, oracle, tone
from models.text_families import WRITING
from models.tiny_vision import ARCHITECTURES, write_model
from models.vision_families import FAMILIES, OMNI, OTHERS, build_family

from mlxk.adapters.mlx.loading.text_model import load_tokenizer
from mlxk.adapters.mlx.memory import EngineLimits
from mlxk.adapters.mlx.text_generator import MlxTextGenerator
from mlxk.adapters.mlx.vision.loader import load_template, load_vision_model
from mlxk.adapters.mlx.vision.prompts import known_tokens
from mlxk.adapters.system import SystemClock
from mlxk.domain.errors import CapabilityError, ValidationError
from mlxk.domain.generation.conversation import Conversation, Message, Role
from mlxk.domain.generation.request import GenerationRequest
from mlxk.domain.generation.settings import GenerationSettings
from mlxk.domain.models.model import ModelHandle

pytestmark = [pytest.mark.mlx, pytest.mark.filterwarnings("ignore:Image.Image.getdata:DeprecationWarning")]
GREEDY = GenerationSettings(temperature=0, max_tokens=8, logprobs=0)
SHOWN = about(noise(1), "What is in the image?")
SEVERAL = about("Image 1:", noise(1), "Image 2:", noise(2, 40, 90), "Compare them.")
ANSWERING = sorted(name for name, found in FAMILIES.items() if not str(found["shows"]["image"]).startswith("refused"))
Models = Callable[[str], ModelHandle]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Build a model of a family, once."""
    folder = tmp_path_factory.mktemp("tiny")
    return functools.cache(lambda family: build_family(folder / family, family, FAMILIES[family].get("seed", 3)))


def request(handle: ModelHandle, prompt: Conversation, **settings: Any) -> GenerationRequest:
    options = FAMILIES[Path(handle.directory).name].get("options", {})
    asked = attrs.evolve(GREEDY, **settings)
    return GenerationRequest(handle, prompt, asked, backends=("mlx-vlm",), template_options=options)


def words(family: str, text: str = "Hello world! How are you today?") -> Conversation:
    """Return a conversation without an image, where a family takes one."""
    return about(noise(6), text) if "sees_only" in FAMILIES[family] else Conversation((Message(Role.USER, text),))


def expected(handle: ModelHandle, prompt: Conversation, family: str) -> tuple[bytes, ...]:
    """Return mlx-vlm's own answer."""
    if family == "zaya1_vl":
        _name_tokens_rightly()
    if family == "llava":
        _, processor = loaded(handle)
        images = processor.image_processor
        if not hasattr(images, "plain"):
            processor.image_processor = _Plain(images)
    if family == "nemotron_parse":  # of which mlx-vlm has no form of a prompt
        parts = [part for part in prompt.messages[-1].parts if isinstance(part, str)]
        return oracle(handle, prompt, GREEDY.max_tokens or 0, written="</s><s>" + " ".join(parts))
    return oracle(handle, prompt, GREEDY.max_tokens or 0, **FAMILIES[family].get("options", {}))


@functools.cache
def _name_tokens_rightly() -> None:
    """Let its network be called as mlx-vlm calls every network."""
    network: Any = importlib.import_module("mlx_vlm.models.zaya1_vl.language").LanguageModel
    plain = network.__call__
    network.__call__ = lambda self, inputs, *arguments, **options: plain(self, inputs, *arguments, **options)


class _Plain:
    """Without the option of the text that its caller passes on."""

    plain = True

    def __init__(self, images: Any) -> None:
        self._images = images

    def __call__(self, images: Any, padding: bool = True) -> Any:
        return self._images(images)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._images, name)


@pytest.mark.parametrize("family", ANSWERING)
def test_a_familys_answers_are_mlx_vlms_own(family: str, models: Models, engine: MlxTextGenerator) -> None:
    handle, shows = models(family), FAMILIES[family]["shows"]
    first, second = (read(engine.submit(request(handle, about(noise(n), "What is in the image?")))) for n in (1, 2))
    assert first.tokens != second.tokens
    if shows["image"] is True:
        assert first.tokens == expected(handle, SHOWN, family)
        said = words(family)
        assert read(engine.submit(request(handle, said))).tokens == expected(handle, said, family)
    else:
        assert "vary" in shows["image"]
        engine.unload()
        assert first.tokens == read(engine.submit(request(handle, SHOWN))).tokens
    if shows["images"] is True:
        assert read(engine.submit(request(handle, SEVERAL))).tokens == expected(handle, SEVERAL, family)
    elif "vary" not in shows["images"]:
        with pytest.raises(ValueError):
            oracle(handle, SEVERAL)
        with pytest.raises((CapabilityError, ValidationError)):
            read(engine.submit(request(handle, SEVERAL)))


@pytest.mark.parametrize("family", [name for name, found in FAMILIES.items() if found["shows"].get("sound") is True])
def test_a_familys_answers_about_a_sound_are_mlx_vlms_own(
    family: str, models: Models, engine: MlxTextGenerator
) -> None:
    heard = about(tone(440.0), "What do you hear?")
    assert read(engine.submit(request(models(family), heard))).tokens == expected(models(family), heard, family)


@pytest.mark.parametrize("family", ANSWERING)
def test_a_familys_streams_equal_those_alone(family: str, models: Models, engine: MlxTextGenerator) -> None:
    handle = models(family)
    asked = [
        request(handle, SHOWN),
        request(handle, words(family), temperature=1.5, seed=7),
        request(handle, about(noise(4, 50, 80), "Why?"), temperature=1.5, seed=9),
        request(handle, about(noise(5), "And this, said at length?"), max_tokens=3),
    ]
    together = [read(stream) for stream in [engine.submit(each) for each in asked]]
    engine.unload()
    assert [each.tokens for each in together] == [read(engine.submit(each)).tokens for each in asked]
    alone = any("outside the common batch" in note for each in together for note in each.finished.notes)
    assert FAMILIES[family]["shows"]["batch"] == ("alone" if alone else "shared")


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - set(ANSWERING)))
def test_a_family_without_a_processor_refuses_images_and_answers_words(
    family: str, models: Models, engine: MlxTextGenerator
) -> None:
    with pytest.raises(CapabilityError, match="makes nothing of images"):
        engine.submit(request(models(family), SHOWN))
    said = words(family)
    assert read(engine.submit(request(models(family), said))).tokens == expected(models(family), said, family)


def test_every_architecture_of_the_library_stands_once_in_the_tables() -> None:
    kinds = (name for names in OTHERS["kinds"].values() for name in names)
    named = [*FAMILIES, *OMNI, *WRITING, *OTHERS["vision"], *kinds]
    installed = [
        entry.name
        for entry in (Path(mlx_vlm.__file__).parent / "models").iterdir()
        if entry.is_dir() and not entry.name.startswith("_")
    ]
    assert sorted(named) == sorted(installed)


@pytest.mark.parametrize("family", [name for name in ANSWERING if "like" not in FAMILIES[name]])
def test_a_familys_prompts_go_on_from_what_is_kept_as_if_nothing_were(
    family: str, models: Models, engine: MlxTextGenerator
) -> None:
    handle, said = models(family), Message(Role.ASSISTANT, "A fox.")
    opening = Message.of_parts("Hello there. " * 4, noise(1), "What is it?")
    turns = [
        (opening,),
        (opening, said, Message(Role.USER, "Why is that? " * 3)),
        words(family, "Hello there. " * 4 + "Who is it?").messages,
        (Message.of_parts("Hello there. " * 4, noise(3), "What is it?"),),
    ]
    if FAMILIES[family]["shows"]["images"] is True:
        turns += [(opening, said, Message.of_parts("And?", noise(seed), "Well? " * 3)) for seed in (4, 5)]
    asked = [request(handle, Conversation(each)) for each in turns]
    forgetful = MlxTextGenerator(InMemoryEventLog(), SystemClock(), EngineLimits(prefix_cache_bytes=0))
    try:
        expected = [read(forgetful.submit(each)).tokens for each in asked]
    finally:
        forgetful.close()
    found = [read(engine.submit(each)) for each in asked]
    assert [each.tokens for each in found] == expected


def test_what_a_processor_prints_while_it_loads_is_no_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"candidate_resolutions": [[64, 64]], "downsample_ratio": 4, "patch_size": 16}
    files = {"processor_config.json": {**settings, "processor_class": "DeepseekOCRProcessor"}}
    described = {**ARCHITECTURES["gemma3"], "files": files, "mark": "<image>", "special": ["<image>"]}
    handle = write_model(tmp_path / "m", described, 3, model_type="gemma3")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    config |= {"model_type": "deepseekocr", "projector_config": {}}
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    template = load_template(handle, config, load_tokenizer(handle, [2]))
    assert type(template.processor).__name__ == "DeepseekOCRProcessor"
    assert capsys.readouterr().out == ""


def test_tokens_of_media_are_brought_into_the_vocabulary_and_others_stay(models: Models) -> None:
    model = load_vision_model(models("qwen2_vl"))
    last = model.vocabulary_size - 1
    assert known_tokens((0, 1, last, last + 1, -200, 7), model) == (0, 1, last, last, 0, 7)
