"""Vision models, in the engine: mlx-vlm's own answers, shared batches, repeated images, refusals."""

import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
from doubles.event_log import InMemoryEventLog
from models.answers import Answer, read
from models.pictures import about, noise, oracle
from models.tiny_models import build as build_text
from models.tiny_vision import ARCHITECTURES, build

from mlxk.adapters.mlx.memory import EngineLimits
from mlxk.adapters.mlx.text_generator import MlxTextGenerator
from mlxk.adapters.system import SystemClock
from mlxk.domain.errors import (
    CapabilityError,
    ContextLengthError,
    MlxkError,
    UnhealthyModelError,
    UntrustedModelCodeError,
    ValidationError,
)
from mlxk.domain.generation.conversation import Conversation, Message, Role
from mlxk.domain.generation.media import DecodedImage
from mlxk.domain.generation.request import FinishReason, GenerationRequest
from mlxk.domain.generation.settings import EngineOptions, GenerationSettings
from mlxk.domain.models.model import ModelHandle

pytestmark = pytest.mark.mlx
GREEDY = GenerationSettings(temperature=0, max_tokens=24, logprobs=0)
QUESTION = "What is in the image?"
Models = Callable[[str], ModelHandle]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Build a model of an architecture, once."""
    folder = tmp_path_factory.mktemp("tiny")

    @functools.cache
    def model(architecture: str) -> ModelHandle:
        # Seeds whose random weights let the image decide what is said.
        return build(folder / architecture, architecture, 0 if architecture == "gemma4" else 3)

    return model


def request(handle: ModelHandle, prompt: Conversation | str, **settings: Any) -> GenerationRequest:
    return GenerationRequest(handle, prompt, attrs.evolve(GREEDY, **settings), backends=("mlx-vlm",))


def answer(engine: MlxTextGenerator, handle: ModelHandle, prompt: Conversation | str, **settings: Any) -> Answer:
    return read(engine.submit(request(handle, prompt, **settings)))


@pytest.mark.parametrize("architecture", ["qwen2_vl", "qwen3_vl", "gemma3", "gemma4", "mllama", "pixtral"])
def test_a_conversation_goes_on_about_its_image_without_looking_again(
    architecture: str, models: Models, engine: MlxTextGenerator
) -> None:
    handle = models(architecture)
    opening = Message.of_parts(noise(1), QUESTION)
    first = answer(engine, handle, Conversation((opening,)))
    said = Message(Role.ASSISTANT, "The quick brown fox.")
    turns = Conversation((opening, said, Message(Role.USER, "And what else? " * 3)))
    second = answer(engine, handle, turns)
    assert second.tokens == oracle(handle, turns)
    assert first.finished.usage.cached_tokens == 0
    assert second.finished.usage.cached_tokens >= first.finished.usage.prompt_tokens - 8


def test_other_images_never_share_what_was_computed(models: Models, engine: MlxTextGenerator) -> None:
    handle = models("qwen2_vl")
    for seed in (1, 2, 1):
        found = answer(engine, handle, about(noise(seed), QUESTION))
        assert found.tokens == oracle(handle, about(noise(seed), QUESTION))
    assert found.finished.usage.cached_tokens == found.finished.usage.prompt_tokens - 1


def test_eight_requests_with_and_without_images_get_together_what_they_get_alone(
    models: Models, engine: MlxTextGenerator
) -> None:
    handle = models("qwen2_vl")
    asked = [
        request(handle, about(noise(1), QUESTION)),
        request(handle, about(noise(2, 90, 50), "Describe it."), temperature=1.5, seed=7),
        request(handle, about("Hello world!")),
        request(handle, about(noise(1), noise(3), "Compare."), temperature=0.8, top_p=0.9, seed=8),
        request(handle, about("The quick brown fox"), temperature=2.0, seed=9),
        request(handle, about(noise(4), "What is this?"), repetition_penalty=1.3),
        request(
            handle, Conversation((Message(Role.SYSTEM, "Count."), *about(noise(5), "1 2").messages)), top_k=5, seed=1
        ),
        request(handle, "The quick brown", temperature=1.0, seed=3),
    ]
    alone = [read(engine.submit(each)).tokens for each in asked]
    engine.unload()
    streams = [engine.submit(each) for each in asked]
    together = [read(stream) for stream in streams]
    assert [each.tokens for each in together] == alone
    assert {each.finished.notes for each in together} == {()}
    assert len(set(alone)) == len(alone)


def test_quantized_keys_and_values_of_images_share_a_batch(engine: MlxTextGenerator, tmp_path: Path) -> None:
    handle = build(tmp_path / "model", "qwen2_vl", 3, head_dim=32, num_attention_heads=2, num_key_value_heads=1)
    prompts = (about(noise(1), QUESTION), about("Hello world!"), about(noise(1), noise(3), "Compare."), "The quick")
    asked = [attrs.evolve(request(handle, each), engine_options=EngineOptions(kv_bits=8)) for each in prompts]
    alone = [read(engine.submit(each)).tokens for each in asked]
    engine.unload()

    together = [read(stream) for stream in [engine.submit(each) for each in asked]]

    assert [each.tokens for each in together] == alone
    assert {each.finished.notes for each in together} == {()}


def test_a_model_whose_cache_cannot_be_shared_says_so(models: Models, engine: MlxTextGenerator) -> None:
    found = answer(engine, models("mllama"), about(noise(1), QUESTION))
    assert found.finished.notes == ("Computed outside the common batch because this model's cache cannot be shared.",)


def test_the_same_image_is_looked_at_once(models: Models, engine: MlxTextGenerator) -> None:
    handle = models("gemma4")
    stream = engine.submit(request(handle, about(noise(1), QUESTION)))
    encoder = engine._thread.worker._pool.models[0].model.vision.parts.encoder  # type: ignore[union-attr]
    read(stream)
    for prompt in ("Something else entirely?", "And " * 40, QUESTION):
        answer(engine, handle, about(prompt, noise(1), "!"))
    assert encoder.counters.computed == 1
    answer(engine, handle, about(noise(2), QUESTION))
    assert encoder.counters.computed == 2


@pytest.mark.parametrize("architecture", sorted(set(ARCHITECTURES) - {"mllama"}))
def test_of_a_conversation_that_gets_another_image_only_that_one_is_encoded(
    architecture: str, models: Models, engine: MlxTextGenerator
) -> None:
    handle = models(architecture)
    seeds = [len(architecture) * 10 + 1000, len(architecture) * 10 + 1001]
    answer(engine, handle, about(noise(seeds[0]), QUESTION))
    before = engine.state(5.0)
    both = about("First:", noise(seeds[0]), "Second:", noise(seeds[1]), QUESTION)
    assert answer(engine, handle, both).tokens == oracle(handle, both)
    after = engine.state(5.0)
    assert after.vision_cache_misses - before.vision_cache_misses == 1
    # The others' encoders get images padded to one another, or with a mask.
    divided = architecture in {"gemma3", "gemma4", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"}
    assert after.vision_cache_hits - before.vision_cache_hits == divided
    assert answer(engine, handle, about("Again:", noise(seeds[1]), QUESTION)).finished is not None
    assert engine.state(5.0).vision_cache_misses == after.vision_cache_misses + (not divided)


@pytest.mark.parametrize("size", [0, 1])
def test_a_cache_without_room_keeps_nothing_and_changes_no_answer(size: int, models: Models) -> None:
    handle = models("gemma4")
    small = MlxTextGenerator(InMemoryEventLog(), SystemClock(), EngineLimits(vision_cache_bytes=size))
    try:
        prompt = about(noise(1), QUESTION)
        for opening in ("One:", "Two:"):
            answer(small, handle, about(opening, noise(1), QUESTION))
        assert answer(small, handle, prompt).tokens == oracle(handle, prompt)
        state = small.state(5.0)
        assert (state.vision_cache_bytes, state.vision_cache_hits, state.vision_cache_misses) == (0, 0, 3)
    finally:
        small.close()


def test_the_least_recently_used_features_go_first(models: Models) -> None:
    handle = models("gemma4")
    engine = MlxTextGenerator(InMemoryEventLog(), SystemClock())
    try:
        answer(engine, handle, about(noise(1), QUESTION))
        one = engine.state(5.0).vision_cache_bytes
    finally:
        engine.close()
    engine = MlxTextGenerator(InMemoryEventLog(), SystemClock(), EngineLimits(vision_cache_bytes=2 * one))
    try:
        for turn, seed in enumerate((1, 2, 1, 3, 1, 2)):  # 2 is evicted by 3, and 1 never
            answer(engine, handle, about(f"{turn}:", noise(seed), QUESTION))
        state = engine.state(5.0)
        assert (state.vision_cache_bytes, state.vision_cache_hits, state.vision_cache_misses) == (2 * one, 2, 4)
    finally:
        engine.close()


def test_a_long_prompt_is_read_in_pieces_beside_others(models: Models, engine: MlxTextGenerator) -> None:
    for architecture in ("qwen2_vl", "qwen3_vl", "gemma3"):
        handle = models(architecture)
        long = about("The quick brown fox jumps over the lazy dog. " * 60, noise(1), QUESTION)
        busy = engine.submit(request(handle, about("Hello"), max_tokens=200, ignore_eos=True))
        assert answer(engine, handle, long).tokens == oracle(handle, long)
        busy.cancel()


def test_text_as_it_is_takes_no_template(models: Models, engine: MlxTextGenerator) -> None:
    handle = models("qwen2_vl")
    plain = answer(engine, handle, "Hello world!").finished.usage.prompt_tokens
    assert plain < answer(engine, handle, about("Hello world!")).finished.usage.prompt_tokens


def test_settings_are_honoured(models: Models, engine: MlxTextGenerator) -> None:
    handle, shown = models("qwen2_vl"), about(noise(1), QUESTION)
    greedy = answer(engine, handle, shown)
    stop = greedy.text[3:6]
    stopped = answer(engine, handle, shown, stop=(stop,))
    assert stopped.text == greedy.text[: greedy.text.index(stop)]
    assert stopped.finished.reason is FinishReason.STOP
    short = answer(engine, handle, shown, max_tokens=5)
    assert (short.finished.reason, short.finished.usage.completion_tokens) == (FinishReason.LENGTH, 5)
    hot = {answer(engine, handle, shown, temperature=2.0, seed=seed).text for seed in (1, 1, 2)}
    assert len(hot) == 2
    banned = tuple((token, -100.0) for token in range(3, 400))
    assert answer(engine, handle, shown, logit_bias=banned[:100]).text != greedy.text


def test_a_prompt_that_does_not_fit_is_refused_with_both_numbers(engine: MlxTextGenerator, tmp_path: Path) -> None:
    handle = build(tmp_path / "m", max_position_embeddings=30)
    with pytest.raises(ContextLengthError) as refusal:
        engine.submit(request(handle, about(noise(1), QUESTION)))
    assert refusal.value.detail == {"prompt_tokens": 36, "context_length": 30}


MARKS = "<|image_pad|><|image_pad|>"


def test_marks_of_images_in_the_text_are_text(models: Models, engine: MlxTextGenerator) -> None:
    handle = models("qwen2_vl")
    marked, plain = (
        answer(engine, handle, about(noise(1), text)).finished.usage.prompt_tokens for text in (MARKS, "ab")
    )
    assert marked > plain + 20
    assert answer(engine, handle, about(MARKS)).finished.usage.prompt_tokens > 20
    assert answer(engine, handle, about(noise(1), QUESTION)).tokens == oracle(handle, about(noise(1), QUESTION))


def test_marks_of_images_that_take_effect_are_refused_and_harm_nobody(models: Models, engine: MlxTextGenerator) -> None:
    handle = models("qwen2_vl")
    asked = attrs.evolve(request(handle, about(noise(1), MARKS)), parse_special=True)
    with pytest.raises(ValidationError, match="cannot take these images with this prompt"):
        engine.submit(asked)
    assert read(engine.submit(attrs.evolve(asked, prompt=about(MARKS)))).finished.usage.prompt_tokens > 0
    assert answer(engine, handle, about(noise(1), QUESTION)).tokens == oracle(handle, about(noise(1), QUESTION))


def test_a_model_without_a_template_is_refused_what_it_cannot_be_told(engine: MlxTextGenerator, tmp_path: Path) -> None:
    handle = build(tmp_path / "m")
    path = tmp_path / "m" / "tokenizer_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in config.items() if name != "chat_template"}))
    prompt = about(QUESTION)
    asked = request(handle, prompt)
    with pytest.raises(CapabilityError, match="no chat template, so it cannot be told to reason"):
        read(engine.submit(attrs.evolve(asked, thinking=True)))
    tool = '{"type": "function", "function": {"name": "add"}}'
    with pytest.raises(CapabilityError, match="tools: the model has no chat template"):
        read(engine.submit(attrs.evolve(asked, prompt=attrs.evolve(prompt, tools=(tool,)))))
    assert read(engine.submit(attrs.evolve(asked, thinking=False))).tokens


def test_tools_reach_the_template_of_a_vision_model(engine: MlxTextGenerator, tmp_path: Path) -> None:
    handle = build(tmp_path / "m")
    path = tmp_path / "m" / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config["chat_template"] = "{% if tools %}{{ tools | tojson }}{% endif %}" + config["chat_template"]
    path.write_text(json.dumps(config))
    tool = '{"type": "function", "function": {"name": "add"}}'
    with_tool = attrs.evolve(about(noise(1), QUESTION), tools=(tool,))
    lengths = [
        answer(engine, handle, each).finished.usage.prompt_tokens for each in (about(noise(1), QUESTION), with_tool)
    ]
    assert lengths[1] > lengths[0] + 10


def test_what_only_text_models_take_is_refused_by_name(
    models: Models, engine: MlxTextGenerator, tmp_path: Path
) -> None:
    handle = models("qwen2_vl")
    for engine_options, said in (
        (EngineOptions(kv_bits=8), "kv_bits"),
        (EngineOptions(draft_model=handle), "draft_model"),
        (EngineOptions(adapter=str(tmp_path)), "adapter"),
    ):
        wanted = attrs.evolve(request(handle, about(noise(1), QUESTION)), engine_options=engine_options)
        with pytest.raises(MlxkError, match=said):
            read(engine.submit(wanted))


def test_images_for_a_text_model_are_refused(engine: MlxTextGenerator, tmp_path: Path) -> None:
    handle = build_text(tmp_path / "text")
    with pytest.raises(CapabilityError, match="takes text, not images and sound"):
        engine.submit(GenerationRequest(handle, about(noise(1), QUESTION)))


def test_a_cancelled_answer_about_an_image_ends(models: Models, engine: MlxTextGenerator) -> None:
    endless = request(models("qwen2_vl"), about(noise(1), QUESTION), max_tokens=2000, ignore_eos=True)
    with engine.submit(endless) as stream:
        next(stream)
        stream.cancel()
        assert list(stream)[-1].reason is FinishReason.CANCELLED  # type: ignore[union-attr]


def test_a_model_whose_processor_would_run_code_of_another_is_refused(engine: MlxTextGenerator, tmp_path: Path) -> None:
    handle = build(tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": "moondream2"}))
    with pytest.raises(UntrustedModelCodeError, match="takes its tokenizer from another model"):
        engine.submit(request(handle, about(noise(1), QUESTION)))


@pytest.mark.parametrize("name", ["config.json", "processor_config.json", "tokenizer_config.json", "nested/x.json"])
@pytest.mark.parametrize("entry", ["model_file", "auto_map"])
def test_code_that_comes_with_a_model_is_never_run(
    name: str, entry: str, engine: MlxTextGenerator, tmp_path: Path
) -> None:
    import json

    handle = build(tmp_path / "evil")
    proof = tmp_path / "ran"
    (tmp_path / "evil" / "evil.py").write_text(f"open({str(proof)!r}, 'w').close()\n")
    document = tmp_path / "evil" / name
    document.parent.mkdir(exist_ok=True)
    content = json.loads(document.read_text()) if document.exists() else {}
    named = (
        "evil.py" if entry == "model_file" else {"AutoProcessor": "evil.Processor", "AutoTokenizer": ["evil.T", None]}
    )
    document.write_text(json.dumps({**content, "deep": [{entry: named}], entry: named}))
    with pytest.raises(UntrustedModelCodeError, match=name):
        engine.submit(request(handle, about(noise(1), QUESTION)))
    assert not proof.exists()


def test_a_pipe_beside_the_weights_is_not_waited_for(engine: MlxTextGenerator, tmp_path: Path) -> None:
    handle = build(tmp_path / "piped")
    os.mkfifo(tmp_path / "piped" / "x.json")
    with pytest.raises(UnhealthyModelError, match=r"x\.json .* no regular file"):
        engine.submit(request(handle, about(noise(1), QUESTION)))


def test_images_of_any_size_are_looked_at_or_refused(models: Models, engine: MlxTextGenerator) -> None:
    for architecture in ("qwen2_vl", "pixtral", "gemma3", "smolvlm"):
        for size in ((1, 1), (1, 300), (300, 1), (400, 300), (17, 33)):
            shown = about(noise(1, *size), QUESTION)
            try:
                assert answer(engine, models(architecture), shown, max_tokens=2).finished.usage.prompt_tokens > 10
            except ValidationError as refusal:
                assert "cannot take these images" in refusal.message


def test_an_image_that_is_too_narrow_is_named(models: Models, engine: MlxTextGenerator) -> None:
    with pytest.raises(ValidationError) as refusal:
        answer(engine, models("qwen2_vl"), about(noise(1, 1000, 2), QUESTION))
    assert refusal.value.hint == "One has 1000 by 2 pixels, which may be too narrow for it."


def test_a_picture_is_more_than_its_colours(models: Models, engine: MlxTextGenerator) -> None:
    tall = noise(1, 20, 80)
    wide = DecodedImage(80, 20, tall.pixels, "0" * 64)
    handle = models("qwen2_vl")
    assert answer(engine, handle, about(tall, QUESTION)).tokens != answer(engine, handle, about(wide, QUESTION)).tokens
