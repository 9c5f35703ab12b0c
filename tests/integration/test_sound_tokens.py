"""Models that hear by the tokens of a model of sound in a folder of theirs, which is read when they first hear."""

import shutil
from pathlib import Path

import mlx.core as mx
import pytest
from models.answers import read
from models.pictures import about, oracle, tone
from models.tiny_omni import build_omni

from mlxk.adapters.mlx.text_generator import MlxTextGenerator
from mlxk.domain.errors import CapabilityError
from mlxk.domain.generation.request import GenerationRequest
from mlxk.domain.generation.settings import GenerationSettings

pytestmark = pytest.mark.mlx
GREEDY = GenerationSettings(temperature=0, max_tokens=12, logprobs=0)
HEARD = about("What is it?", tone(440, 0.5))


def test_it_is_found_where_weights_of_others_lie_beside_those_of_the_model(
    tmp_path: Path, engine: MlxTextGenerator
) -> None:
    handle = build_omni(tmp_path / "m", "mimo_v2")
    expected = oracle(handle, HEARD, 12)
    mx.save_safetensors(str(tmp_path / "m" / "consolidated.safetensors"), {"other": mx.zeros((2, 2))})
    assert read(engine.submit(GenerationRequest(handle, HEARD, GREEDY, backends=("mlx-vlm",)))).tokens == expected


def test_without_it_words_are_answered_and_sounds_refused(tmp_path: Path, engine: MlxTextGenerator) -> None:
    handle = build_omni(tmp_path / "m", "mimo_v2")
    shutil.rmtree(tmp_path / "m" / "audio_tokenizer")
    assert read(engine.submit(GenerationRequest(handle, about("Hello?"), GREEDY, backends=("mlx-vlm",)))).tokens
    with pytest.raises(CapabilityError, match="a file that the model's processor needs for sound is missing"):
        engine.submit(GenerationRequest(handle, HEARD, GREEDY, backends=("mlx-vlm",)))
