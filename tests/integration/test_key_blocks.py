"""Networks that attend to the best blocks of keys: what a row of a batch chooses depends on that row alone."""

from pathlib import Path

import pytest
from models.answers import Answer, read
from models.pictures import about, noise
from models.vision_families import build_family

from mlxk.adapters.mlx.text_generator import MlxTextGenerator
from mlxk.domain.generation.request import GenerationRequest
from mlxk.domain.generation.settings import GenerationSettings

pytestmark = pytest.mark.mlx


WORDS = "The quick brown fox jumps over the lazy dog. "


@pytest.mark.parametrize(("backend", "shares"), [("mlx-vlm", True), ("mlx-lm", False)])
def test_rows_of_a_batch_choose_as_alone_whoever_comes_and_goes(
    backend: str, shares: bool, tmp_path: Path, engine: MlxTextGenerator
) -> None:
    handle = build_family(tmp_path / "m", "minimax_m3_vl", 3)
    shown = (noise(1), noise(2, 40, 90)) if shares else ("Look:", "And look: " * 3)
    prompts = [
        (about(WORDS * 4), 3),
        (about(shown[0], WORDS * 2), 28),
        (about("Hello."), 24),
        (about(WORDS), 6),
        (about(shown[1], "Why?"), 20),
    ]
    asked = [
        GenerationRequest(
            handle, prompt, GenerationSettings(temperature=0, max_tokens=most, logprobs=0), backends=(backend,)
        )
        for prompt, most in prompts
    ]
    together: list[Answer] = [read(stream) for stream in [engine.submit(each) for each in asked]]
    engine.unload()
    assert [each.tokens for each in together] == [read(engine.submit(each)).tokens for each in asked]
    assert any("outside the common batch" in note for each in together for note in each.finished.notes) is not shares
