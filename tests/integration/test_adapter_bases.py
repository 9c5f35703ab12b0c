"""The base of an adapter: whether it is here, and whether it is the model that the adapter was trained on."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from models.tiny_models import build, write_adapter

Command = Callable[..., dict[str, Any]]
Program = Callable[..., "subprocess.CompletedProcess[str]"]

pytestmark = pytest.mark.mlx
OTHER = "the adapter was trained on a model with other weights"


@pytest.fixture
def taught(mlxk_here: Program, tmp_path: Path) -> Path:
    """Train an adapter of a tiny model; return its folder."""
    build(tmp_path / "tiny")
    (tmp_path / "facts.jsonl").write_text('{"prompt": "Who?", "completion": "Ann."}\n' * 2, encoding="utf-8")
    done = mlxk_here("tune", "./tiny", "facts.jsonl", "--into", "./taught", "--iters", "1")
    assert done.returncode == 0, done.stderr
    return tmp_path / "taught"


def change(base: Path) -> None:
    """Change the last numbers of a model's weights, which keep their size."""
    weights = base / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-4] + bytes(4))


@pytest.mark.usefixtures("taught")
def test_what_runs_an_adapter_warns_once_where_its_base_is_another_one(
    mlxk_here: Program, command: Command, tmp_path: Path
) -> None:
    uses = (
        ("run", "./taught", "Hi", "--max-tokens", "2"),
        ("run", "./tiny", "Hi", "--adapter", "taught", "--max-tokens", "2"),
        ("eval", "./taught", "facts.jsonl", "--max-tokens", "2"),
        ("fuse", "./taught", "--into", "./whole", "--accept-changes"),
    )
    assert all(OTHER not in mlxk_here(*words).stderr for words in uses[:2])
    assert command("show", "./taught")["data"]["base"] == {"name": str(tmp_path / "tiny"), "same": True}
    assert "Base: " in mlxk_here("show", "./taught").stdout
    change(tmp_path / "tiny")
    for words in uses:
        done = mlxk_here(*words)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count(OTHER) == 1, words
    assert command("show", "./taught")["data"]["base"]["same"] is False
    assert "(with other weights than it was trained on)" in mlxk_here("show", "./taught").stdout
    (entry,) = command("health", "./taught")["data"]["healthy"]
    assert entry["notes"] == [f"{OTHER}: {tmp_path / 'tiny'}"]


def test_a_base_that_was_moved_with_its_adapter_is_the_same(taught: Path, command: Command, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    shutil.copytree(tmp_path / "tiny", tmp_path / "there" / "tiny")
    shutil.copytree(taught, tmp_path / "there" / "taught")
    (tmp_path / "there" / "tiny" / "README.md").write_text("another card", encoding="utf-8")
    assert command("show", "./there/taught")["data"]["base"]["same"] is True


def test_an_adapter_without_its_base_is_listed_as_what_does_not_run_with_the_reason(
    taught: Path, mlxk: Program, command: Command, tmp_path: Path
) -> None:
    (tmp_path / "tiny").rename(tmp_path / "other")
    listed = {each["display_name"]: each for each in command("list", "./", "--all")["data"]["models"]}
    assert listed["other"]["runtime_compatible"]
    assert not listed["taught"]["runtime_compatible"]
    assert "'taught' is an adapter of tiny: no model" in listed["taught"]["reason"]
    shown = command("show", "./taught")["data"]
    assert (shown["model"]["health"], shown["base"]) == ("healthy", {"name": None, "same": None})
    assert shown["model"]["reason"] == listed["taught"]["reason"]
    (entry,) = command("health", "./taught")["data"]["healthy"]
    assert entry["notes"] == [listed["taught"]["reason"]]
    done = mlxk("list", "./", PYTHONPROFILEIMPORTTIME="1")
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert not {"mlx", "mlx_lm", "numpy", "transformers", "huggingface_hub"} & imported


def test_adapters_made_elsewhere_do_not_say_what_their_base_was(command: Command, tmp_path: Path) -> None:
    write_adapter(tmp_path / "adapter", build(tmp_path / "tiny"))
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    config["model"] = "../tiny"
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    assert command("show", "./adapter")["data"]["base"] == {"name": str(tmp_path / "tiny"), "same": None}
    for record in ("", "[]", '{"base": 7}', '{"base": {"fingerprint": 7}}', '{"base": {"fingerprint": "x"}}'):
        (tmp_path / "adapter" / "training.json").write_text(record, encoding="utf-8")
        same = command("show", "./adapter")["data"]["base"]["same"]
        assert same is (False if '"x"' in record else None), record
