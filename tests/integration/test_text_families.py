"""Architectures without media that mlx-vlm alone knows, each with a tiny model: mlx-vlm's own greedy answers.

The page of the families names those that are shown here.
"""

import functools
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import mlx.core as mx
import pytest
from doubles.event_log import InMemoryEventLog
from models.answers import read
from models.pictures import about, as_png, noise, oracle
from models.text_families import WRITING, build_writing
from models.vision_families import FAMILIES, OMNI, OTHERS, build_family

from mlxk.adapters.mlx.memory import EngineLimits
from mlxk.adapters.mlx.registry import MlxBackendRegistry
from mlxk.adapters.mlx.text_generator import MlxTextGenerator
from mlxk.adapters.system import SystemClock
from mlxk.domain.errors import IncompatibleModelError
from mlxk.domain.generation.conversation import Conversation, Message, Role
from mlxk.domain.generation.request import GenerationRequest
from mlxk.domain.generation.settings import GenerationSettings
from mlxk.domain.models.detection import detect
from mlxk.domain.models.file_formats import Document
from mlxk.domain.models.model import ModelHandle
from mlxk.domain.models.snapshot import ModelSnapshot

pytestmark = pytest.mark.mlx
GREEDY = GenerationSettings(temperature=0, max_tokens=8, logprobs=0)
ASKED = about("Hello world! How are you today? " * 6 + "Well?")
Command = Callable[..., dict[str, Any]]
Program = Callable[..., "subprocess.CompletedProcess[str]"]
Models = Callable[[str], ModelHandle]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Build a model of a family, once."""
    folder = tmp_path_factory.mktemp("tiny")
    return functools.cache(lambda family: build_writing(folder / family, family))


def request(handle: ModelHandle, prompt: Conversation, **settings: Any) -> GenerationRequest:
    return GenerationRequest(handle, prompt, attrs.evolve(GREEDY, **settings), backends=("mlx-vlm",))


@pytest.mark.parametrize("family", WRITING)
def test_a_familys_answers_are_mlx_vlms_own_alone_and_in_a_batch(
    family: str, models: Models, engine: MlxTextGenerator
) -> None:
    handle = models(family)
    brown = about("The quick brown fox")
    asked = [
        request(handle, ASKED),
        request(handle, brown, temperature=1.5, seed=7),
        request(handle, brown, max_tokens=3),
    ]
    together = [read(stream) for stream in [engine.submit(each) for each in asked]]
    engine.unload()
    assert [each.tokens for each in together] == [read(engine.submit(each)).tokens for each in asked]
    alone = any("outside the common batch" in note for each in together for note in each.finished.notes)
    assert alone == (family == "z1t")  # whose cache cannot be merged
    assert len(together[0].tokens) > 1
    assert together[0].tokens == oracle(handle, ASKED, 8)
    assert together[2].tokens == oracle(handle, brown, 3)


@pytest.mark.parametrize("family", WRITING)
def test_a_familys_prompts_go_on_from_what_is_kept_as_if_nothing_were(
    family: str, models: Models, engine: MlxTextGenerator
) -> None:
    opening = Message(Role.USER, "Hello there. " * 4 + "What is it?")
    turns = [
        (opening,),
        (opening, Message(Role.ASSISTANT, "A fox."), Message(Role.USER, "Why is that? " * 3)),
        (Message(Role.USER, "Hello there. " * 4 + "Who is it?"),),
    ]
    asked = [request(models(family), Conversation(each)) for each in turns]
    forgetful = MlxTextGenerator(InMemoryEventLog(), SystemClock(), EngineLimits(prefix_cache_bytes=0))
    try:
        expected = [read(forgetful.submit(each)).tokens for each in asked]
    finally:
        forgetful.close()
    assert [read(engine.submit(each)).tokens for each in asked] == expected


def test_a_model_of_words_alone_runs_and_refuses_images(
    models: Models, mlxk_here: Program, command: Command, tmp_path: Path
) -> None:
    folder = models("flint").directory
    (tmp_path / "noise.png").write_bytes(as_png(noise(1)))
    done = mlxk_here("run", folder, "Hello", "--max-tokens", "3")
    assert done.returncode == 0, done.stderr
    assert command("show", folder)["data"]["model"]["capabilities"] == ["text-generation", "chat"]
    refused = mlxk_here("run", folder, "--image", "noise.png", "What is it?")
    assert refused.returncode != 0
    assert "is a text model and takes no images" in refused.stderr


@pytest.mark.parametrize("family", ["deepseek_v4", "deepseek_v41", "hrm_text"])
def test_where_no_file_has_a_template_the_librarys_own_is_used(
    family: str, mlxk_here: Program, command: Command, tmp_path: Path
) -> None:
    handle = (build_writing if family in WRITING else build_family)(tmp_path / "m", family, 3)
    settings = tmp_path / "m" / "tokenizer_config.json"
    written = json.loads(settings.read_text())
    del written["chat_template"]
    settings.write_text(json.dumps(written))
    assert "chat" in command("show", "./m")["data"]["model"]["capabilities"]
    done = mlxk_here("run", "./m", "Hello world!", "--max-tokens", "6", "--temperature", "0")
    expected = b"".join(oracle(handle, about("Hello world!"), 6)).decode(errors="replace")
    assert done.stdout.strip() == expected.strip()


def test_diffusion_is_refused_by_name(engine: MlxTextGenerator, tmp_path: Path) -> None:
    handle = build_writing(tmp_path / "m", "llada2_moe", num_shared_experts=1, rotary_dim=8)
    with pytest.raises(IncompatibleModelError, match="does not write one token after another"):
        engine.submit(request(handle, ASKED))


DECIDING = OTHERS["kinds"]["decisions among given options; refused"]
EYES = {"vision_config": {"hidden_size": 8}}


@pytest.mark.parametrize(
    ("config", "why"),
    [
        *(({"model_type": each}, "chooses among given options, and writes no text") for each in DECIDING),
        ({"model_type": "d1_omni", **EYES}, "chooses among given options, and writes no text"),
        ({"model_type": "falcon_perception", "spatial_patch_size": 16}, "finds boxes and masks, of which its text"),
        ({"model_type": "falcon-perception", "spatial_patch_size": 16}, "finds boxes and masks, of which its text"),
        ({"model_type": "sam3", **EYES}, "writes no text"),
    ],
)
def test_what_does_not_write_is_refused_with_what_it_does(
    config: dict[str, Any], why: str, mlxk_here: Program, tmp_path: Path
) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    if config["model_type"] == "sam3":
        (tmp_path / "m" / "preprocessor_config.json").write_text("{}")
    mx.save_safetensors(str(tmp_path / "m" / "model.safetensors"), {"a.weight": mx.zeros((1,))}, {"format": "mlx"})
    done = mlxk_here("run", "./m", "Is it red?")
    assert done.returncode != 0
    assert f"Model type {config['model_type']} {why}" in done.stderr


def test_every_architecture_that_is_shown_is_found_fit_to_run() -> None:
    registry, reasons = MlxBackendRegistry(), {}
    for family in (*FAMILIES, *OMNI, *WRITING):
        config = {"model_type": family, **({} if family in WRITING else EYES)}
        files = {"config.json": 1, "model.safetensors": 300, "tokenizer.json": 1}
        snapshot = ModelSnapshot("org/m", files=files, documents={"config.json": Document(config)})
        reasons[family] = registry.judge(snapshot, detect(snapshot)).reason
    assert set(reasons.values()) == {None}, reasons
