"""``run --image`` as people type it, against mlx-vlm's own ``generate``."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from models.pictures import about, as_png, loaded, noise, oracle
from models.scripted_model import write_model
from models.tiny_vision import ARCHITECTURES, TEMPLATE, build
from models.tiny_vision import write_model as write_vision_model

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


def test_points_and_boxes_of_an_answer_are_told_apart(command: Command, tmp_path: Path) -> None:
    said = "<|ref|>title<|/ref|><|det|>[[0, 0, 999, 333]]<|/det|>"
    write_model(tmp_path / "model", TEMPLATE.replace("IMAGE", "").replace("SOUND", ""), said)
    data = command("run", "./model", "<|grounding|>OCR this image.", "--temperature", "0")["data"]
    assert data["response"] == said
    assert data["regions"] == [{"label": "title", "kind": "box", "points": [[0.0, 0.0], [1.0, 0.3333]]}]
    assert "regions" not in command("run", "demo", "What is mlxk?")["data"]


def test_marks_of_tasks_are_one_token_in_a_prompt_and_those_of_turns_are_text(command: Command, tmp_path: Path) -> None:
    described = {**ARCHITECTURES["gemma3"], "special": ["<|grounding|>"]}
    write_vision_model(tmp_path / "model", described, 3, model_type="gemma3")
    (tmp_path / "a.png").write_bytes(as_png(noise(1)))
    plain, task, turn = (
        command("run", "./model", f"{mark}Read this.", "--image", "a.png", "--max-tokens", "1")["data"]["usage"][
            "prompt_tokens"
        ]
        for mark in ("", "<|grounding|>", "<|im_end|>")
    )
    assert task == plain + 1
    assert turn > task
