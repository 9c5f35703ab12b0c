"""What the program prints of transcripts and vectors is what their schemas promise."""

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from models.tiny_embedding import build_bert

pytestmark = pytest.mark.e2e

Program = Callable[..., "CompletedProcess[str]"]
Faults = Callable[[str, Any], list[str]]


def test_a_transcript(mlxk_here: Program, faults: Faults) -> None:
    done = mlxk_here("run", "demo-speech", "--audio", "demo-speech/hello.wav", "--words", "--json")
    document = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (0, "")
    assert faults("run", document) == []
    assert document["data"]["transcript"]["segments"][0]["words"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--audio", "nowhere.wav"], "validation_error"),
        (["--audio", "a.wav", "b.wav", "c.wav"], "usage_error"),
        (["--audio", "demo-speech/hello.wav", "--translate"], "capability_not_supported"),
    ],
    ids=["missing", "several", "translation"],
)
def test_a_refusal_to_listen(arguments: list[str], code: str, mlxk_here: Program, faults: Faults) -> None:
    document = json.loads(mlxk_here("run", "demo-speech", *arguments, "--json").stdout)
    assert (document["error"]["type"], faults("run", document)) == (code, [])


def test_vectors(mlxk_here: Program, faults: Faults, tmp_path: Path) -> None:
    build_bert(tmp_path / "bert")
    done = mlxk_here("embed", "./bert", "hello world", "--json", MLXK2_ENABLE_ALPHA_FEATURES="1")
    document = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (0, "")
    assert faults("embed", document) == []
    (record,) = document["data"]["records"]
    assert record["metadata"]["dimensions"] == len(record["embedding"]) == 32


def test_a_refusal_to_embed(mlxk_here: Program, faults: Faults) -> None:
    document = json.loads(mlxk_here("embed", "demo", "hello", "--json").stdout)
    assert (document["error"]["type"], faults("embed", document)) == ("feature_disabled", [])
