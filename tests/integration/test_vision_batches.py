"""Batches of requests with and without images: whatever comes together, each answers as it would alone."""

import base64
import functools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
from models.answers import Answer, read
from models.pictures import about, as_png, noise
from models.vision_families import build_family
from serving.running import RunningServer
from serving.whole_program import PATH, WholeProgram

from mlxk.adapters.mlx.text_generator import MlxTextGenerator
from mlxk.application.ports.text_generator import TextStream
from mlxk.domain.generation.grammar import Grammar
from mlxk.domain.generation.request import Finished, FinishReason, GenerationRequest
from mlxk.domain.generation.settings import GenerationSettings
from mlxk.domain.models.model import ModelHandle

pytestmark = pytest.mark.mlx
Models = Callable[[str], ModelHandle]
COLOUR: dict[str, Any] = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "blue"]}, "count": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["colour", "count"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Build a model of a family, once."""
    folder = tmp_path_factory.mktemp("tiny")
    return functools.cache(lambda family: build_family(folder / family, family, 3))


def any_request(draw: random.Random, handle: ModelHandle) -> GenerationRequest:
    """Return a request of any kind: words, one image or several, sampled, held to a grammar, stopped, limited."""
    images = [
        noise(draw.randrange(4), draw.randrange(30, 90), draw.randrange(30, 90)) for _ in range(draw.randrange(3))
    ]
    words = " ".join(draw.choices(["The", "quick", "brown", "fox", "jumps", "1", "2"], k=draw.randrange(1, 30)))
    settings = GenerationSettings(
        temperature=draw.choice([0.0, 0.8, 1.5]),
        top_p=draw.choice([1.0, 0.9]),
        top_k=draw.choice([0, 5]),
        seed=draw.randrange(1000),
        repetition_penalty=draw.choice([1.0, 1.3]),
        max_tokens=draw.randrange(1, 30),
        stop=draw.choice([(), ("e",), ("qu", " 1")]),
        logprobs=0,
    )
    if draw.random() < 0.3:
        schema = Grammar.json_schema(json.dumps(COLOUR))
        settings = attrs.evolve(settings, grammar=schema, stop=(), max_tokens=60, repetition_penalty=1.0)
    return GenerationRequest(handle, about(*images, words), settings, backends=("mlx-vlm",))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("family", ["qwen2_vl", "glm4v", "gemma3", "granite_vision"])
def test_every_stream_of_a_batch_equals_the_one_alone(
    family: str, seed: int, models: Models, engine: MlxTextGenerator
) -> None:
    draw = random.Random(f"{family}{seed}")
    asked = [any_request(draw, models(family)) for _ in range(draw.randrange(4, 9))]
    leaving = set(draw.sample(range(len(asked)), 2))
    streams = [engine.submit(each) for each in asked]
    ends = [_left(stream) if index in leaving else read(stream) for index, stream in enumerate(streams)]
    engine.unload()
    for index, (found, each) in enumerate(zip(ends, asked, strict=True)):
        if index in leaving:
            assert found is None
            continue
        assert found is not None
        alone = read(engine.submit(each))
        assert (found.tokens, found.text, found.finished.reason) == (alone.tokens, alone.text, alone.finished.reason)
        assert found.finished.notes == ()


@pytest.mark.parametrize("family", ["gemma3", "qwen2_vl"])
def test_images_of_prompts_that_wait_are_encoded_together(
    family: str, models: Models, engine: MlxTextGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = GenerationSettings(temperature=0.0, max_tokens=3)
    asked = [
        GenerationRequest(models(family), about(*shown, "What is it?"), settings, backends=("mlx-vlm",))
        for shown in [
            ("Hello.",),
            *((noise(seed, 60, 60),) for seed in (1, 2, 3, 2)),
            (noise(4, 60, 60), noise(1, 60, 60)),
        ]
    ]
    expected = [read(engine.submit(each)).text for each in asked]
    engine.unload()
    read(engine.submit(asked[0]))
    encoder = engine._thread.worker._pool.models[0].model.vision.parts.encoder  # type: ignore[union-attr]
    kind = type(encoder._encoder)
    calls, encode = [], kind.__call__
    monkeypatch.setattr(kind, "__call__", lambda *arguments, **named: [calls.append(0), encode(*arguments, **named)][1])
    worker: Any = engine._thread.worker
    start, waiting = worker.start, []
    monkeypatch.setattr(worker, "start", waiting.append)
    streams = [engine.submit(each) for each in asked]
    engine._thread.post(lambda _: [start(each) for each in waiting])
    assert [read(stream).text for stream in streams] == expected

    # One call of all four, and one of a single image, which shows that the encoder makes the same of it. Of the prompt
    # that comes twice nothing is computed again, so that only the last one finds an image that was asked for before.
    assert len(calls) == 2
    state = engine.state(5.0)
    assert (state.vision_cache_misses, state.vision_cache_hits) == (4, 1)


def _left(stream: TextStream) -> Answer | None:
    """Read one event, leave, and return the answer if it was complete nevertheless."""
    next(stream)
    stream.cancel()
    end = list(stream)[-1:]
    if end:
        assert isinstance(end[0], Finished)
        assert end[0].reason in FinishReason
    return None


@pytest.mark.parametrize("family", ["gemma3", "qwen2_vl"])
def test_answers_about_images_are_held_to_a_schema_over_http(family: str, tmp_path: Path) -> None:
    build_family(tmp_path / "models" / "eye", family, 3)
    program: Any = WholeProgram(tmp_path, MLXK_WORKSPACE_HOME=str(tmp_path / "models"))
    url = "data:image/png;base64," + base64.b64encode(as_png(noise(1))).decode()
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "Which colour, how many?"}]
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": COLOUR, "strict": True}}
    with RunningServer(program) as server:
        for temperature in (0, 1.5):
            asked = {"model": "eye", "messages": [{"role": "user", "content": parts}], "max_tokens": 60, "seed": 3}
            status, _, answer = server.post(PATH, {**asked, "temperature": temperature, "response_format": form})
            assert status == 200, answer
            found = json.loads(answer["choices"][0]["message"]["content"])
            assert found.keys() == {"colour", "count"}
            assert found["colour"] in {"red", "blue"}
