"""``run --show-prompt``: what the installed program would give a model."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Program = Callable[..., "subprocess.CompletedProcess[str]"]
pytestmark = pytest.mark.e2e
HI = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def shown(mlxk: Program, *arguments: str) -> dict[str, Any]:
    """Return the data of the JSON document."""
    done = mlxk("run", *arguments, "--show-prompt", "--json")
    assert (done.returncode, done.stderr) == (0, ""), done
    data: dict[str, Any] = json.loads(done.stdout)["data"]
    assert data["token_count"] == len(data["tokens"])
    return data


def test_the_text_is_on_standard_output_exactly_and_the_count_beside_it(mlxk: Program) -> None:
    done = mlxk("run", "demo", "hi", "--show-prompt")
    assert (done.returncode, done.stdout) == (0, HI)
    count = shown(mlxk, "demo", "hi")["token_count"]
    assert done.stderr == f"[{count} tokens of the 2048 of the context window]\n"


def test_the_count_is_that_of_the_prompt_of_a_completion(mlxk_here: Program) -> None:
    for extra in ((), ("--system", "Be brief."), ("--no-chat-template",)):
        done = mlxk_here("run", "demo", "What is mlxk?", *extra, "--max-tokens", "1", "--json")
        prompt_tokens = json.loads(done.stdout)["data"]["usage"]["prompt_tokens"]
        assert shown(mlxk_here, "demo", "What is mlxk?", *extra)["token_count"] == prompt_tokens


def test_system_prompt_tools_and_schema_are_in_it_as_in_a_completion(mlxk_here: Program, tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
    (tmp_path / "tools.json").write_text(json.dumps([tool]))
    (tmp_path / "schema.json").write_text('{"type": "object"}')
    options = ("--system", "Be brief.", "--tools", "tools.json", "--json-schema", "schema.json")
    text = shown(mlxk_here, "demo", "hi", *options)["text"]
    assert text.index("Be brief.") < text.index("hi<|im_end|>")
    assert "get_weather" in text


def test_a_prompt_as_it_is_has_no_template(mlxk_here: Program) -> None:
    data = shown(mlxk_here, "demo", "hi<|im_end|>", "--no-chat-template")
    assert (data["text"], data["tokens"][-1]) == ("hi<|im_end|>", 2)


def test_control_tokens_in_the_prompt_are_text_unless_they_may_take_effect(mlxk_here: Program) -> None:
    assert shown(mlxk_here, "demo", "hi<|im_end|>there")["tokens"].count(2) == 1
    assert shown(mlxk_here, "demo", "hi<|im_end|>there", "--special-tokens-in-content")["tokens"].count(2) == 2


def test_an_image_is_its_marker_and_the_note_says_so(mlxk_here: Program) -> None:
    picture = "demo-vision/red-circle.png"
    data = shown(mlxk_here, "demo-vision", "Which <|image_pad|> colour?", "--image", picture, picture)
    assert data["text"].count("<|vision_start|><|image_pad|><|vision_end|>") == 1
    assert data["tokens"].count(5) == 1
    assert [note.split(" ")[0] for note in data["notes"]] == ["Control", "Each", "This"]
    assert shown(mlxk_here, "demo-vision", "hi")["text"] == HI


def test_no_weights_are_needed(mlxk: Program, tmp_path: Path) -> None:
    clone = mlxk("clone", "demo", "./copy", "--json")
    assert clone.returncode == 0, clone
    weights = tmp_path / "copy" / "model.safetensors"
    data = weights.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    # As long as before, so that the files are in order, but nothing that a library would load as numbers.
    weights.write_bytes(data[:header] + bytes([0xFF]) * (len(data) - header))
    assert shown(mlxk, "./copy", "hi")["text"] == HI


def test_what_shows_no_prompt_is_refused(mlxk_here: Program) -> None:
    for arguments in (("demo", "hi", "--chat"), ("demo-speech", "--audio", "demo-speech/hello.wav")):
        done = mlxk_here("run", *arguments, "--show-prompt")
        assert (done.returncode, done.stdout) == (2, "")
        assert "--show-prompt" in done.stderr
