"""``run --image`` as people type it, against mlx-vlm's own ``generate``."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from models.pictures import about, as_png, loaded, noise, oracle
from models.tiny_vision import build

pytestmark = pytest.mark.mlx
Command = Callable[..., dict[str, Any]]

QUESTION = "What is in the image?"
ASKED = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "pixtral", "gemma3", "gemma4", "smolvlm")


@pytest.mark.parametrize("architecture", ASKED)
def test_the_greedy_answer_is_mlx_vlms_own(architecture: str, command: Command, tmp_path: Path) -> None:
    handle = build(tmp_path / "model", architecture, 0 if architecture == "gemma4" else 3)
    (tmp_path / "a.png").write_bytes(as_png(noise(1)))
    printed = command("run", "./model", QUESTION, "--image", "a.png", "--max-tokens", "24")["data"]["response"]
    said = printed.partition("</details>\n\n")[2]
    shown = about(noise(1), QUESTION)
    expected = b"".join(oracle(handle, shown)).decode(errors="replace")
    loaded.cache_clear()
    assert said == expected
    assert said
