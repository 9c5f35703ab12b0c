"""Clips, in the engine: tokens for video give mlx-vlm's own answers, and every other vision model gets frames."""

import functools
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
from models.answers import Answer, read
from models.clips import encoded, written
from models.pictures import about, loaded, noise, oracle
from models.tiny_omni import OMNI, build_omni
from models.vision_families import FAMILIES, build_family

from mlxk.adapters.mlx.text_generator import MlxTextGenerator
from mlxk.adapters.opencv.video_decoder import OpenCvVideoDecoder
from mlxk.domain.generation.conversation import Conversation, Message, Role
from mlxk.domain.generation.media import DecodedVideo
from mlxk.domain.generation.request import GenerationRequest
from mlxk.domain.generation.settings import GenerationSettings
from mlxk.domain.generation.video import VideoSampling
from mlxk.domain.models.model import ModelHandle

pytestmark = pytest.mark.mlx
GREEDY = GenerationSettings(temperature=0, max_tokens=24, logprobs=0)
QUESTION = "What happens?"
WATCHING = sorted(name for name, found in {**FAMILIES, **OMNI}.items() if found["shows"].get("video") is True)
"""Architectures with tokens for video."""
FRAMES = 31
"""Of a clip, of which four and six can be taken at equal distances."""
CLASSES = ["llava_onevision", "qwen2_5_vl", "qwen2_vl", "qwen3_vl"]
"""One of each class of networks among them."""

Models = Callable[[str], ModelHandle]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Build a model of an architecture, once."""
    folder = tmp_path_factory.mktemp("tiny")

    def build(architecture: str) -> ModelHandle:
        make = build_omni if architecture in OMNI else build_family
        return make(folder / architecture, architecture, 3)

    return functools.cache(build)


def clip_file(folder: Path, seed: int, frames: int = 24) -> Path:
    """Write a clip of noise that changes."""
    rng = np.random.RandomState(seed)
    pictures = [np.kron(rng.randint(0, 256, (6, 8, 3), np.uint8), np.ones((10, 10, 1), np.uint8)) for _ in range(3)]
    path = folder / f"clip{seed}.mp4"
    path.write_bytes(written([pictures[index * 3 // frames] for index in range(frames)], "mp4", 6.0))
    return path


def decoded(path: Path, sampling: VideoSampling | None = None) -> DecodedVideo:
    return OpenCvVideoDecoder().decode(encoded(path.read_bytes(), sampling)).video


def answer(engine: MlxTextGenerator, handle: ModelHandle, prompt: Conversation, **settings: Any) -> Answer:
    request = GenerationRequest(handle, prompt, attrs.evolve(GREEDY, **settings), backends=("mlx-vlm",))
    return read(engine.submit(request))


def its_own(handle: ModelHandle, paths: list[Path], sampling: VideoSampling) -> tuple[bytes, ...]:
    """Return mlx-vlm's own greedy answer about the files of clips."""
    import mlx_vlm
    from mlx_vlm.prompt_utils import apply_chat_template

    from mlxk.adapters.mlx.prompting.detokenizer import TokenDecoder

    model, processor = loaded(handle)
    files = [str(path) for path in paths]
    prompt = apply_chat_template(processor, model.config, QUESTION, num_images=0, video=files, fps=sampling.fps)
    with warnings.catch_warnings(action="ignore"):
        options: dict[str, Any] = {"video": files, "fps": sampling.fps, "max_frames": sampling.max_frames}
        stream = mlx_vlm.stream_generate(model, processor, prompt, max_tokens=24, temperature=0.0, **options)
        found = [response.token for response in stream][:-1]
    decoder, ends = TokenDecoder(processor.tokenizer), processor.tokenizer.stopping_criteria.eos_token_ids
    return tuple(decoder.spell(token) for token in found if token not in ends)


@pytest.mark.parametrize("architecture", WATCHING)
@pytest.mark.parametrize("sampling", [VideoSampling(), VideoSampling(fps=3, max_frames=6)], ids=["usual", "asked for"])
def test_an_answer_about_a_clip_is_mlx_vlms_own(
    architecture: str, sampling: VideoSampling, models: Models, engine: MlxTextGenerator, tmp_path: Path
) -> None:
    # The frames stand between no two others: processors that choose their own round that in another way.
    handle = models(architecture)
    first, second = clip_file(tmp_path, 1, FRAMES), clip_file(tmp_path, 3, FRAMES)
    found = [answer(engine, handle, about(decoded(path, sampling), QUESTION)).tokens for path in (first, second)]
    assert found == [its_own(handle, [path], sampling) for path in (first, second)]
    assert found[0] != found[1]


@pytest.mark.parametrize("architecture", CLASSES)
def test_an_answer_about_two_clips_is_mlx_vlms_own(
    architecture: str, models: Models, engine: MlxTextGenerator, tmp_path: Path
) -> None:
    handle, paths = models(architecture), [clip_file(tmp_path, 1), clip_file(tmp_path, 3, 12)]
    found = answer(engine, handle, about(*map(decoded, paths), QUESTION))
    assert found.tokens == its_own(handle, paths, VideoSampling())


@pytest.mark.parametrize("architecture", [*CLASSES, "gemma3", "pixtral", "smolvlm"])
def test_a_clip_beside_an_image_or_for_another_model_is_frames_with_their_times(
    architecture: str, models: Models, engine: MlxTextGenerator, tmp_path: Path
) -> None:
    handle, clip = models(architecture), decoded(clip_file(tmp_path, 1))
    beside = (noise(1),) if architecture in WATCHING else ()
    frames = [part for frame in clip.frames for part in (f"Frame at {frame.seconds:.1f} s:", frame.image)]
    found = answer(engine, handle, about(*beside, clip, QUESTION))
    assert len(clip.frames) == 4
    assert found.tokens == oracle(handle, about(*beside, *frames, QUESTION))


@pytest.mark.parametrize("architecture", CLASSES)
def test_a_conversation_goes_on_about_its_clip_without_looking_again(
    architecture: str, models: Models, engine: MlxTextGenerator, tmp_path: Path
) -> None:
    handle, clip = models(architecture), decoded(clip_file(tmp_path, 1))
    opening = Message.of_parts(clip, QUESTION)
    first = answer(engine, handle, Conversation((opening,)))
    turns = Conversation(
        (opening, Message(Role.ASSISTANT, "The quick fox."), Message(Role.USER, "And what else? " * 3))
    )
    second = answer(engine, handle, turns)
    engine.unload()
    assert second.finished.usage.cached_tokens >= first.finished.usage.prompt_tokens - 8
    assert answer(engine, handle, turns).tokens == second.tokens


def test_requests_with_and_without_clips_get_together_what_they_get_alone(
    models: Models, engine: MlxTextGenerator, tmp_path: Path
) -> None:
    handle, clip = models("qwen2_vl"), decoded(clip_file(tmp_path, 1))
    prompts = (
        about(clip, QUESTION),
        about("Hello world!"),
        about(noise(1), "Describe it."),
        about(clip, noise(2), "Both."),
    )
    asked = [GenerationRequest(handle, each, GREEDY, backends=("mlx-vlm",)) for each in prompts]
    alone = [read(engine.submit(each)).tokens for each in asked]
    engine.unload()
    assert [read(stream).tokens for stream in [engine.submit(each) for each in asked]] == alone
    assert len(set(alone)) == len(alone)


def test_a_second_clip_has_frames_where_a_model_takes_one(
    models: Models, engine: MlxTextGenerator, tmp_path: Path
) -> None:
    handle = models("nemotron_h_nano_omni")
    shown = [decoded(clip_file(tmp_path, seed)) for seed in (1, 3)]
    frames = [part for clip in shown for f in clip.frames for part in (f"Frame at {f.seconds:.1f} s:", f.image)]
    assert answer(engine, handle, about(*shown, QUESTION)).tokens == oracle(handle, about(*frames, QUESTION))


def test_what_a_network_leaves_out_of_a_clip_is_no_token_of_the_prompt(
    engine: MlxTextGenerator, tmp_path: Path
) -> None:
    handle = build_omni(tmp_path / "m", "nemotron_h_nano_omni", 3)
    whole = answer(engine, handle, about(decoded(clip_file(tmp_path, 1, FRAMES)), QUESTION))
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps({**config, "video_pruning_rate": 0.5}))
    engine.unload()
    opening = Message.of_parts(decoded(clip_file(tmp_path, 1, FRAMES)), QUESTION)
    found = answer(engine, handle, Conversation((opening,)))
    assert found.tokens == its_own(handle, [tmp_path / "clip1.mp4"], VideoSampling())
    assert found.finished.usage.prompt_tokens < whole.finished.usage.prompt_tokens
    turns = Conversation((opening, Message(Role.ASSISTANT, "A fox."), Message(Role.USER, "And what else?")))
    second = answer(engine, handle, turns)
    engine.unload()
    assert answer(engine, handle, turns).tokens == second.tokens
