"""What ``tune``, ``fuse`` and ``eval`` really print with ``--json``, held against the contracts."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from models.tiny_models import build

Command = Callable[..., dict[str, Any]]
Faults = Callable[[str, Any], list[str]]
Program = Callable[..., "subprocess.CompletedProcess[str]"]

pytestmark = pytest.mark.mlx


@pytest.mark.parametrize("pairs", [False, True])
def test_lines_and_documents_keep_to_the_contracts(
    pairs: bool, mlxk: Program, command: Command, faults: Faults, tmp_path: Path
) -> None:
    build(tmp_path / "tiny")
    answers = {"chosen": "Hello world!", "rejected": "The end."} if pairs else {"completion": "Hello world!"}
    lines = ({"prompt": f"Hello {number}", **answers} for number in range(3))
    (tmp_path / "facts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    flags = ("--iters", "3", "--valid-share", "0.3", "--validate-every", "1", "--max-length", "24")
    printed = mlxk("tune", "./tiny", "facts.jsonl", "--into", "./taught", *flags, "--json").stdout.splitlines()
    *between, last = map(json.loads, printed)
    assert [faults("training", line) for line in between] == [[]] * len(between)
    assert [line["event"] for line in between[:2]] == ["plan", "step"]
    assert faults("tune", last) == []
    assert last["status"] == "success"
    for name, words in {
        "fuse": ("./taught", "--into", "./whole"),
        "eval": ("./taught", "facts.jsonl"),
        "tune": ("./taught", "facts.jsonl", "--into", "./more"),
        "show": ("./taught",),
        "list": ("./",),
    }.items():
        document = command(name, *words)
        assert (document["status"], faults(name, document)) == ("error" if name == "tune" else "success", [])
