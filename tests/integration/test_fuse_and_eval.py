"""``mlxk fuse`` and ``mlxk eval``: what is fused says what model and adapter say, and figures before and after."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from models.tiny_models import build, write_adapter

Command = Callable[..., dict[str, Any]]

pytestmark = pytest.mark.mlx
EXAMPLES = [
    {
        "messages": [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "Hello! How can I help you today?"},
        ]
    },
    {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Go away."}]},
]


def said(command: Command, *words: str) -> str:
    """Return a greedy answer."""
    done = command("run", *words, "--temperature", "0", "--max-tokens", "12")
    assert done["status"] == "success", done
    return str(done["data"]["response"])


@pytest.mark.parametrize("kind", ["lora", "dora", "full"])
def test_what_is_fused_says_what_model_and_adapter_say(kind: str, command: Command, tmp_path: Path) -> None:
    handle = build(tmp_path / "tiny")
    (tmp_path / "tiny" / "README.md").write_text("of the base")
    (tmp_path / "tiny" / "pytorch_model.bin.index.json").write_text('{"weight_map": {"a": "pytorch_model-1.bin"}}')
    write_adapter(tmp_path / "adapter", handle, kind)
    done = command("fuse", "./adapter", "--model", "./tiny", "--into", "./whole")
    assert done["status"] == "success", done
    assert (done["data"]["same_answers"], done["data"]["questions"]) == (5, 5)
    assert done["data"]["changed_layers"] > 0
    for question in ("Hello", "How are you today?"):
        assert said(command, "./whole", question) == said(command, "./tiny", question, "--adapter", "adapter")
    assert said(command, "./whole", "Hello") != said(command, "./tiny", "Hello")
    shown = command("show", "./whole")["data"]
    assert (shown["workspace_metadata"]["operation"], shown["model"]["health"]) == ("fuse", "healthy")
    assert "of the base" not in (tmp_path / "whole" / "README.md").read_text()
    assert not (tmp_path / "whole" / "pytorch_model.bin.index.json").exists()


def test_a_quantized_model_is_fused_to_plain_layers_or_kept_quantized(command: Command, tmp_path: Path) -> None:
    handle = build(tmp_path / "tiny")
    write_adapter(tmp_path / "adapter", handle)
    command("convert", "./tiny", "./small", "--quantize", "8", "--q-group-size", "32")
    plain = command("fuse", "./adapter", "--model", "./small", "--into", "./plain", "--dequantize")
    assert plain["status"] == "success", plain
    assert "quantization" not in json.loads((tmp_path / "plain" / "config.json").read_text())
    assert said(command, "./plain", "Hello") == said(command, "./small", "Hello", "--adapter", "adapter")
    command("convert", "./tiny", "./coarse", "--quantize", "2", "--q-group-size", "32")
    refused = command("fuse", "./adapter", "--model", "./coarse", "--into", "./kept")["error"]
    assert refused["type"] == "conversion_failed"
    assert refused["detail"]["same"] < refused["detail"]["asked"] == 5
    assert "--dequantize" in refused["hint"]
    assert list(tmp_path.glob("*kept*")) == []
    kept = command("fuse", "./adapter", "--model", "./coarse", "--into", "./kept", "--accept-changes")["data"]
    assert (kept["quantized"], kept["same_answers"]) == (True, refused["detail"]["same"])
    assert json.loads((tmp_path / "kept" / "config.json").read_text())["quantization"]["bits"] == 2


def test_what_cannot_be_fused_is_refused_and_leaves_nothing(command: Command, tmp_path: Path) -> None:
    handle = build(tmp_path / "tiny")
    other = build(tmp_path / "other", hidden_size=32, head_dim=8)
    write_adapter(tmp_path / "adapter", other)
    write_adapter(tmp_path / "fits", handle)
    build(tmp_path / "linked")
    (tmp_path / "outside.txt").write_text("not of the model")
    (tmp_path / "linked" / "notes.txt").symlink_to(tmp_path / "outside.txt")
    for words, message in (
        (("demo",), "is a whole model, not an adapter"),
        (("./adapter", "--model", "./tiny"), "does not fit"),
        (("./fits", "--model", "./tiny", "--dequantize"), "is not quantized"),
        (("./nosuch",), "no model at './nosuch'"),
        (("./fits", "--model", "./linked"), "notes.txt of 'linked' is a link out of the folder"),
    ):
        error = command("fuse", *words, "--into", "./whole")["error"]
        assert message in error["message"], error
        assert list(tmp_path.glob("*whole*")) == []


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    """Write examples of which the demo model knows one."""
    path = tmp_path / "examples.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in EXAMPLES), encoding="utf-8")
    return path


def test_figures_are_those_of_the_answers(command: Command, examples: Path, tmp_path: Path) -> None:
    measured = command("eval", "demo", "examples.jsonl")["data"]
    assert (measured["exact_match"], measured["not_exact_lines"], measured["split"]) == (0.5, [2], "train")
    assert (measured["valid_json"], measured["schema_match"], measured["adapter"]) == (0.0, None, None)
    known = command("eval", "demo", "examples.jsonl", "--limit", "1")["data"]
    assert (known["examples"], known["exact_match"]) == (1, 1.0)
    assert known["loss"] < 0.1 < measured["loss"]
    assert known["perplexity"] == pytest.approx(2.718281828 ** known["loss"])


def test_a_folder_is_measured_by_its_tests_and_an_adapter_changes_the_figures(command: Command, tmp_path: Path) -> None:
    handle = build(tmp_path / "tiny")
    write_adapter(tmp_path / "adapter", handle)
    (tmp_path / "data").mkdir()
    for split, count in (("train", 3), ("test", 2)):
        lines = (json.dumps({"text": f"Hello world {number}"}) + "\n" for number in range(count))
        (tmp_path / "data" / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    plain = command("eval", "./tiny", "data")["data"]
    assert (plain["split"], plain["examples"], plain["exact_match"]) == ("test", 2, None)
    adapted = command("eval", "./tiny", "data", "--adapter", "adapter")["data"]
    assert adapted["loss"] != plain["loss"]
    assert command("eval", "./tiny", "data", "--split", "train")["data"]["examples"] == 3
    missing = command("eval", "./tiny", "data", "--split", "valid")["error"]
    assert "there are no examples for valid" in missing["message"]


def test_answers_are_held_against_a_schema(command: Command, tmp_path: Path) -> None:
    question = "Give the capital of Italy as JSON."
    lines = [{"prompt": question, "completion": '{"capital": "Rome"}'}, {"prompt": "hi", "completion": "Hello"}]
    (tmp_path / "examples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    answer = json.loads(said(command, "demo", question, "--max-tokens", "64"))
    schema = {"type": "object", "required": list(answer), "properties": {key: {"type": "string"} for key in answer}}
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    measured = command("eval", "demo", "examples.jsonl", "--schema", "schema.json")["data"]
    assert (measured["valid_json"], measured["schema_match"]) == (0.5, 0.5)
    for content, message in (
        ("[]", "holds no JSON object"),
        ('{"type": 7}', "['type'] is no JSON Schema"),
        ('{"$ref": "https://example.org/schema"}', "refers to 'https://example.org/schema'"),
    ):
        (tmp_path / "schema.json").write_text(content)
        error = command("eval", "demo", "examples.jsonl", "--schema", "schema.json")["error"]
        assert (error["type"], message in error["message"]) == ("validation_error", True), error


@pytest.mark.parametrize("until", ["taught", "taught/config.json", "taught/model.safetensors"])
def test_a_fusion_that_is_killed_leaves_no_half_workspace(
    until: str, command: Command, program_environment: dict[str, str], tmp_path: Path
) -> None:
    write_adapter(tmp_path / "adapter", build(tmp_path / "tiny"))
    words = ("fuse", "./adapter", "--model", "./tiny", "--into", "./whole")
    program = [sys.executable, "-m", "mlxk", *words, "--json"]
    pattern = until.replace("taught", ".whole*")
    with subprocess.Popen(program, stdout=subprocess.PIPE, env=program_environment, cwd=tmp_path) as running:
        while running.poll() is None and not list(tmp_path.glob(pattern)):
            time.sleep(0.005)
        running.kill()
    assert running.returncode == -signal.SIGKILL
    assert not (tmp_path / "whole").exists()
    assert "whole" not in json.dumps(command("list", "./", "--all"))
    done = command(*words)
    assert done["status"] == "success", done
    assert said(command, "./whole", "Hello") == said(command, "./tiny", "Hello", "--adapter", "adapter")
    assert [path.name for path in tmp_path.glob(".whole*")] == []
