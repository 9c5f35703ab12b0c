"""Limits on prompts with images."""

from pathlib import Path

import pytest
from models.pictures import about, noise
from models.tiny_vision import build

from mlxk.adapters.mlx.text_generator import MlxTextGenerator
from mlxk.domain.errors import ContextLengthError
from mlxk.domain.generation.request import GenerationRequest
from mlxk.domain.generation.settings import GenerationSettings

pytestmark = pytest.mark.mlx


def test_an_endless_prompt_with_an_image_is_refused_by_what_its_beginning_has(
    engine: MlxTextGenerator, tmp_path: Path
) -> None:
    prompt = about(noise(1), "hello " * 1_000_000)
    request = GenerationRequest(
        build(tmp_path / "m", "qwen2_vl", 3), prompt, GenerationSettings(), backends=("mlx-vlm",)
    )
    with pytest.raises(ContextLengthError) as refused:
        engine.submit(request)
    assert refused.value.detail["counted_characters"] < 1_000_000
