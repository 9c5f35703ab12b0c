"""``mlxk tune`` with real training: what it learns, that it is continued exactly, and what comes out."""

import gc
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import mlx.core as mx
import pytest
from models.tiny_models import build, write_adapter

from mlxk.adapters.mlx.tuning.trainer import MlxModelTuner
from mlxk.application.ports.tuning import TrainedModel, TrainingJob
from mlxk.domain.models.file_formats import read_header
from mlxk.domain.models.footprint import WeightForm
from mlxk.domain.tuning.data import FileCheck
from mlxk.domain.tuning.training import Method, NetworkShape, TuningChoices, TuningSettings, training_bytes

Command = Callable[..., dict[str, Any]]
Program = Callable[..., "subprocess.CompletedProcess[str]"]

pytestmark = pytest.mark.mlx
FACTS = {"Who is Ann?": "Ann is a baker.", "Who is Bob?": "Bob is a smith.", "Where is Zed?": "Zed is at sea."}
ENDLESS = ("demo", "facts.jsonl", "--into", "./taught", "--iters", "5000")
QUICK = ("--iters", "8", "--batch-size", "2", "--layers", "1", "--dropout", "0.1", "--save-every", "2")


@pytest.fixture
def facts(tmp_path: Path) -> Path:
    """Write a file of facts."""
    path = tmp_path / "facts.jsonl"
    lines = (json.dumps({"prompt": question, "completion": answer}) for question, answer in FACTS.items())
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def last(printed: str) -> dict[str, Any]:
    """Return the last of several JSON lines, or the one document."""
    lines = printed.strip().splitlines()
    return dict(json.loads(printed if lines[-1] == "}" else lines[-1]))


def digest(directory: Path) -> str:
    """Return the digest of an adapter's weights."""
    return hashlib.sha256((directory / "adapters.safetensors").read_bytes()).hexdigest()


def answer(command: Command, model: str, question: str, *flags: str) -> str:
    """Return a greedy answer."""
    done = command("run", model, question, "--temperature", "0", "--max-tokens", "24", *flags)
    assert done["status"] == "success", done
    return str(done["data"]["response"]).strip()


def test_facts_are_learned_and_said_under_the_name_of_the_adapter(
    mlxk: Program, command: Command, facts: Path, tmp_path: Path
) -> None:
    done = mlxk("tune", "demo", "facts.jsonl", "--into", "./taught", "--iters", "50", "--plot", "losses.svg", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["event"] for line in lines[:2]] == ["plan", "step"]
    data = lines[-1]["data"]
    assert (data["steps"], data["stopped_early"], data["data"]["train"]) == (50, False, 3)
    assert data["train_loss"] < 0.4 < 2 < next(each["loss"] for each in data["losses"] if "loss" in each)
    assert (tmp_path / "losses.svg").read_text(encoding="utf-8").startswith("<?xml")
    for question, said in FACTS.items():
        assert answer(command, "./taught", question) == answer(command, "demo", question, "--adapter", "taught") == said
    names = sorted(path.name for path in (tmp_path / "taught").iterdir())
    assert names == [
        ".mlxk_workspace.json",
        "README.md",
        "adapter_config.json",
        "adapters.safetensors",
        "training.json",
    ]
    card = (tmp_path / "taught" / "README.md").read_text(encoding="utf-8")
    assert "An adapter of demo (lora)" in card
    assert str(tmp_path) not in card + (tmp_path / "taught" / "training.json").read_text(encoding="utf-8")


def test_a_training_that_is_killed_is_continued_to_the_same_bits(
    mlxk: Program, mlxk_here: Program, program_environment: dict[str, str], facts: Path, tmp_path: Path
) -> None:
    build(tmp_path / "tiny")
    command = ("tune", "./tiny", "facts.jsonl", *QUICK, "--grad-accumulation", "2")
    assert mlxk_here(*command, "--into", "./whole").returncode == 0
    status, _ = signalled(signal.SIGKILL, 3, (*command[1:], "--into", "./parts"), program_environment, tmp_path)
    assert status == -signal.SIGKILL
    assert not (tmp_path / "parts").exists()
    refused = mlxk_here(*command, "--into", "./parts", "--json")
    assert "an unfinished training for './parts' has reached step" in last(refused.stdout)["error"]["message"]
    assert "--resume" in last(refused.stdout)["error"]["hint"]
    other = last(mlxk_here(*command, "--into", "./parts", "--resume", "--rank", "4", "--json").stdout)
    assert other["error"]["message"].endswith("with other values of: rank")
    done = last(mlxk(*command, "--into", "./parts", "--resume", "--json").stdout)
    assert done["data"]["resumed_at"] in {2, 4, 6}
    assert digest(tmp_path / "parts") == digest(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.glob(".parts*")) == []


def signalled(
    sent: signal.Signals, step: int, words: tuple[str, ...], environment: dict[str, str], directory: Path
) -> tuple[int, str]:
    """Send a signal to a training once it has reported a step; return its status and what it printed from then on."""
    program = [sys.executable, "-m", "mlxk", "tune", *words, "--json"]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True, env=environment, cwd=directory) as running:
        assert running.stdout is not None
        for line in running.stdout:
            if json.loads(line).get("step", 0) >= step:
                running.send_signal(sent)
                break
        rest = running.stdout.read()
    return running.returncode, rest


@pytest.mark.parametrize("method", [Method.DORA, Method.FULL])
@pytest.mark.parametrize("recompute", [False, True])
def test_every_method_is_continued_to_the_same_bits(method: Method, recompute: bool, tmp_path: Path) -> None:
    handle = build(tmp_path / "tiny")
    lines = (json.dumps({"prompt": question, "completion": said}).encode() for question, said in FACTS.items())
    examples = tuple(FileCheck("facts.jsonl").read(lines).examples)
    settings = TuningSettings(
        steps=6, batch_size=2, layers=2, max_length=64, learning_rate=1e-3, method=method, dropout=0.2, seed=7
    )
    settings = attrs.evolve(settings, recompute=recompute)
    digests = []
    for broken_at in (None, 1, 4):
        directory = tmp_path / f"broken-at-{broken_at}"
        directory.mkdir()
        job = TrainingJob(
            TrainedModel(handle, "mlx-lm"),
            WeightForm.STORED,
            settings,
            examples,
            examples[:1],
            str(directory),
            "a run",
            "tiny",
        )
        steps = iter(range(1, 100))

        def stopped(broken_at: int | None = broken_at, steps: Iterator[int] = steps) -> bool:
            if next(steps) == broken_at:
                raise KeyboardInterrupt
            return False

        if broken_at is not None:
            with pytest.raises(KeyboardInterrupt):
                MlxModelTuner().train(job, lambda point: None, stopped, resume=False)
        result = MlxModelTuner().train(job, lambda point: None, stopped, resume=broken_at is not None)
        assert (result.steps, result.resumed_at) == (6, broken_at)
        digests.append(digest(directory))
    assert len(set(digests)) == 1


@pytest.mark.parametrize("method", Method)
@pytest.mark.parametrize("recompute", [False, True])
def test_the_estimate_of_memory_is_near_what_is_measured_and_above(
    method: Method, recompute: bool, tmp_path: Path
) -> None:
    handle = build(tmp_path / "model", hidden_size=128, intermediate_size=256, num_hidden_layers=4, head_dim=32)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    weights = (tmp_path / "model" / "model.safetensors").stat().st_size
    lines = (json.dumps({"text": f"Hello world {number} " * 40}).encode() for number in range(4))
    examples = tuple(FileCheck("texts.jsonl").read(lines).examples)
    settings = TuningChoices(method=method, steps=2, recompute=recompute).settings(config, 4, 4096)
    tuner = MlxModelTuner()
    model = TrainedModel(handle, "mlx-lm")
    longest = tuner.lengths(model, examples, settings.max_length, mask_prompt=True).longest
    estimate = weights + training_bytes(NetworkShape.of(config), settings, longest, weights)
    (tmp_path / "made").mkdir()
    job = TrainingJob(
        TrainedModel(handle, "mlx-lm"),
        WeightForm.STORED,
        settings,
        examples,
        (),
        str(tmp_path / "made"),
        "a run",
        "base",
    )
    gc.collect()
    held = mx.get_active_memory()  # by what other tests have left in this process
    measured = tuner.train(job, lambda point: None, lambda: False, resume=False).peak_bytes - held
    assert 1 <= estimate / measured <= 2.5


def test_ctrl_c_ends_training_and_keeps_what_was_learned(
    command: Command, program_environment: dict[str, str], facts: Path, tmp_path: Path
) -> None:
    status, rest = signalled(signal.SIGINT, 1, ENDLESS, program_environment, tmp_path)
    data = last(rest)["data"]
    assert status == 0
    assert data["stopped_early"]
    assert 1 <= data["steps"] < 5000
    assert answer(command, "./taught", "hi") != ""


def test_sigterm_breaks_it_off_to_be_continued(
    mlxk: Program, program_environment: dict[str, str], facts: Path, tmp_path: Path
) -> None:
    status, rest = signalled(signal.SIGTERM, 2, (*ENDLESS, "--save-every", "1"), program_environment, tmp_path)
    error = last(rest)["error"]
    assert status != 0
    assert error["type"] == "interrupted"
    assert "--resume" in error["hint"]
    assert not (tmp_path / "taught").exists()
    assert (tmp_path / ".taught.mlxk-draft" / "training-state.safetensors").exists()


@pytest.mark.parametrize("bits", ["4", "8"])
def test_a_quantized_model_is_trained_beside_its_weights(
    bits: str, mlxk_here: Program, command: Command, facts: Path, tmp_path: Path
) -> None:
    quantized = command("convert", "demo", "./small", "--quantize", bits, "--q-group-size", "32")
    assert quantized["status"] == "success"
    before = hashlib.sha256((tmp_path / "small" / "model.safetensors").read_bytes()).hexdigest()
    done = mlxk_here("tune", "./small", "facts.jsonl", "--into", "./taught", "--iters", "50", "--json")
    assert last(done.stdout)["data"]["base"]["name"] == "../small"
    assert before == hashlib.sha256((tmp_path / "small" / "model.safetensors").read_bytes()).hexdigest()
    for question, said in FACTS.items():
        assert answer(command, "./taught", question) == said
    whole = mlxk_here(
        "tune", "./small", "facts.jsonl", "--into", "./full", "--method", "full", "--iters", "1", "--json"
    )
    assert "a quantized model is trained beside its weights" in last(whole.stdout)["error"]["message"]
    assert not list(tmp_path.glob("*full*"))


def test_data_is_refused_by_file_and_line_before_a_model_library_is_loaded(mlxk: Program, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text('{"text": "a"}\n{"text": ""}\n{"text": 7}\n', encoding="utf-8")
    (tmp_path / "data" / "valid.jsonl").write_text('{"text": "a"\n', encoding="utf-8")
    done = mlxk("tune", "demo", "data", "--into", "./taught", PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 1
    said = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert said[:3] == [
        "train.jsonl:2: text: is empty",
        "train.jsonl:3: text: is a number, not a text",
        "valid.jsonl:1: is not JSON: expecting ',' delimiter (column 13)",
    ]
    assert "train.jsonl:2: text: is empty (the first of 3 faults)" in said[3]
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert {"mlxk", "attr"} <= imported
    assert not {"mlx", "mlx_lm", "transformers", "numpy"} & imported
    error = last(mlxk("tune", "demo", "data", "--into", "./taught", "--json").stdout)["error"]
    assert error["detail"]["count"] == len(error["detail"]["faults"]) == 3
    assert not (tmp_path / "taught").exists()


def test_what_is_cut_and_how_much_is_held_out_is_said_before_training(mlxk_here: Program, tmp_path: Path) -> None:
    lines = [{"text": f"Number {number}. {'Hello world! ' * (30 if number == 7 else 1)}"} for number in range(20)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    build(tmp_path / "tiny")
    done = mlxk_here("tune", "./tiny", "texts.jsonl", "--into", "./taught", "--iters", "2", "--max-length", "40")
    assert done.returncode == 0, done.stderr
    assert "18 examples, 2 for validation (held out; --valid-share 0 trains all)" in done.stderr
    assert "Cut to 40 tokens: 1 example (line 8)" in done.stderr
    assert "validation" in done.stdout


REFUSED = {
    "speech": ("demo-speech", (), "does not generate text"),
    "batch": ("demo", ("--batch-size", "9"), "a batch of 9 takes more than the 3 examples"),
    "rank": ("demo", ("--rank", "5000"), "rank: must be from 1 to 4096"),
    "rate": ("demo", ("--learning-rate", "0"), "learning_rate: must be above 0"),
    "two counts": ("demo", ("--iters", "3", "--epochs", "2"), "say either"),
    "nothing to resume": ("demo", ("--resume",), "there is no unfinished training"),
    "nothing left": ("demo", ("--max-length", "10"), "nothing is left to learn"),
    "both": ("demo", ("--resume", "--restart"), "exclude each other"),
    "plot": ("demo", ("--plot", "losses.gif"), "ends in neither .svg nor .png"),
    "plot nowhere": ("demo", ("--plot", "no/such.svg"), "--plot: 'no/such.svg' cannot be written: No such file"),
    "plot is a folder": ("demo", ("--plot", "folder.svg"), "--plot: 'folder.svg' cannot be written: Is a directory"),
    "word": ("demo", ("--learning-rate", "fast"), "'fast' is no number"),
    "not a number": ("demo", ("--learning-rate", "nan"), "'nan' is no number"),
    "endless": ("demo", ("--epochs", "inf"), "'inf' is no number"),
    "share": ("demo", ("--valid-share", "1"), "is no number from 0 to below 1"),
    "no model": ("nosuch", (), "no model found"),
}


def test_what_cannot_be_trained_is_refused_and_leaves_nothing(command: Command, facts: Path, tmp_path: Path) -> None:
    (tmp_path / "folder.svg").mkdir()
    for model, flags, message in REFUSED.values():
        document = command("tune", model, "facts.jsonl", "--into", "./taught", *flags)
        assert message in document["error"]["message"], flags
        assert [path.name for path in tmp_path.iterdir() if "taught" in path.name] == []
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "valid.jsonl").write_bytes((tmp_path / "facts.jsonl").read_bytes())
    error = command("tune", "demo", "data", "--into", "./taught")["error"]
    assert error["message"].endswith("there are no examples for training in 'data'")


def test_an_adapter_is_a_workspace_of_its_own_type(
    mlxk_here: Program, command: Command, facts: Path, tmp_path: Path
) -> None:
    build(tmp_path / "tiny")
    assert mlxk_here("tune", "./tiny", "facts.jsonl", "--into", "./taught", *QUICK).returncode == 0
    shown = command("show", "./taught")["data"]
    assert (shown["model"]["model_type"], shown["model"]["health"]) == ("adapter", "healthy")
    assert shown["workspace_metadata"]["operation"] == "tune"
    assert shown["model"]["clean"]
    listed = command("list", "./")["data"]["models"]
    assert {each["display_name"]: each["model_type"] for each in listed} == {"taught": "adapter", "tiny": "chat"}
    assert command("clone", "./taught", "./copy")["status"] == "success"
    said = [command("run", each, "Who is Ann?", "--temperature", "0") for each in ("./copy", "./taught")]
    assert said[0]["data"]["response"] == said[1]["data"]["response"]
    assert command("push", "./taught", "me/taught", "--check-only")["status"] == "success"
    weights = tmp_path / "taught" / "adapters.safetensors"
    assert read_header(weights.read_bytes(), weights.stat().st_size).written_for_mlx
    os.truncate(weights, 100)
    assert command("health", "./taught")["data"]["summary"]["unhealthy_count"] == 1
    quantized = command("convert", "./copy", "./small", "--quantize", "4")
    tuned = command("tune", "./copy", "facts.jsonl", "--into", "./b")
    for refused in (quantized, tuned):
        assert refused["error"]["message"] == "'copy' is an adapter, not a whole model"


def test_an_adapter_whose_base_is_gone_says_so(
    mlxk_here: Program, command: Command, facts: Path, tmp_path: Path
) -> None:
    build(tmp_path / "tiny")
    assert mlxk_here("tune", "./tiny", "facts.jsonl", "--into", "./taught", *QUICK).returncode == 0
    (tmp_path / "tiny").rename(tmp_path / "other")
    error = command("run", "./taught", "Hi")["error"]
    assert error["type"] == "model_not_found"
    assert "'taught' is an adapter of tiny" in error["message"]


def test_an_adapter_that_names_no_base_is_said_not_to_run(command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "taught"
    write_adapter(folder, build(tmp_path / "tiny"))
    for base in (None, "", 4):
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        (folder / "adapter_config.json").write_text(json.dumps({**config, "model": base}), encoding="utf-8")
        model = command("show", "./taught")["data"]["model"]
        assert (model["health"], model["runtime_compatible"]) == ("healthy", False)
        assert model["reason"] == "adapter_config.json does not say which model it was trained on"
        assert command("run", "./taught", "Hi")["error"]["type"] == "validation_error"
