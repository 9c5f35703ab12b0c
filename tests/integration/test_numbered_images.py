"""Marks of images that are numbered: through the conversation, whichever message shows them."""

import base64
from pathlib import Path
from typing import Any

import pytest
from models.pictures import as_png, noise
from models.tiny_omni import build_omni
from serving.running import RunningServer
from serving.whole_program import WholeProgram

from mlxk.entrypoints.settings import ServerSettings

pytestmark = pytest.mark.mlx


def shown(seed: int) -> dict[str, Any]:
    url = "data:image/png;base64," + base64.b64encode(as_png(noise(seed, 40, 40))).decode()
    return {"type": "image_url", "image_url": {"url": url}}


def said(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


LONG = "9" * 5000
"""More digits than Python reads as a number."""


def test_images_of_later_messages_have_the_next_numbers(tmp_path: Path) -> None:
    build_omni(tmp_path / "m", "phi4mm")
    (tmp_path / "m" / "preprocessor_config.json").write_text('{"dynamic_hd": 1}')
    program: Any = WholeProgram(tmp_path, ServerSettings(allow_paths=True))
    turns = [
        {"role": "user", "content": [shown(1), said("One?")]},
        {"role": "assistant", "content": "A fox."},
        {"role": "user", "content": [shown(2), shown(3), said(f"And these, not <|image_{LONG}?")]},
        {"role": "assistant", "content": "Two dogs."},
        {"role": "user", "content": [said("And?"), shown(4)]},
        {"role": "user", "content": "Well?"},
    ]
    with RunningServer(program) as server:
        status, _, answer = server.post(
            "/apply-template", {"model": str(tmp_path / "m"), "messages": turns, "chunk": 5}
        )
    assert status == 200, answer
    prompt = answer["prompt"]
    places = [prompt.index(f"<|image_{number}|>") for number in (1, 2, 3, 4)]
    assert places == sorted(places)
    assert f"not <|image_{LONG}?" in prompt
    assert prompt.count("<|image_") == 5
    assert [prompt.partition(text)[0].count("<|image_") for text in ("One?", "And these", "Well?")] == [1, 3, 5]
