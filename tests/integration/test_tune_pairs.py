"""``mlxk tune`` on pairs of a better and a worse answer."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
from models.tiny_models import build

from mlxk.adapters.mlx.tuning.trainer import MlxModelTuner
from mlxk.application.ports.tuning import TrainedModel, TrainingJob
from mlxk.domain.errors import ExecutionError
from mlxk.domain.models.footprint import WeightForm
from mlxk.domain.tuning.data import FileCheck
from mlxk.domain.tuning.training import Method, TrainingPoint, TuningSettings

Command = Callable[..., dict[str, Any]]
Program = Callable[..., Any]

pytestmark = pytest.mark.mlx
PAIRS = [
    {"prompt": "Who are you?", "chosen": "I am a program.", "rejected": "I am a baker."},
    {
        "prompt": [{"role": "user", "content": "Where are you?"}],
        "chosen": [{"role": "assistant", "content": "At home."}],
        "rejected": [{"role": "assistant", "content": "At sea."}],
    },
    {
        "chosen": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}],
        "rejected": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Go away!"}],
    },
]
LINES = [json.dumps(each).encode() + b"\n" for each in PAIRS]
EXAMPLES = tuple(FileCheck("pairs.jsonl").read(LINES).examples)


def test_pairs_are_trained_from_the_command_line(command: Command, mlxk: Program, tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_bytes(b"".join(LINES))
    done = mlxk("tune", "demo", "pairs.jsonl", "--into", "./taught", "--iters", "40")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "  loss: 0.693 → 0." in done.stdout
    assert "perplexity" not in done.stdout
    record = json.loads((tmp_path / "taught" / "training.json").read_text(encoding="utf-8"))
    assert (record["data"]["kind"], record["settings"]["beta"]) == ("chosen and rejected", 0.1)
    assert record["figures"]["train_loss"] < 0.5
    assert "perplexity" not in (tmp_path / "taught" / "README.md").read_text(encoding="utf-8")
    measured = command("eval", "./taught", "pairs.jsonl")["data"]
    assert measured["examples"] == 3
    assert command("run", "./taught", "Hi", "--temperature", "0")["status"] == "success"
    refused = command("tune", "demo", "pairs.jsonl", "--into", "./again", "--beta", "0")
    assert refused["error"]["message"] == "beta: must be above 0 to 100 (got 0)"


@pytest.mark.parametrize("method", list(Method))
def test_better_answers_become_likelier_than_worse_ones_and_a_continued_run_has_the_same_bits(
    method: Method, tmp_path: Path
) -> None:
    model = TrainedModel(build(tmp_path / "tiny"), "mlx-lm")
    settings = TuningSettings(6, 2, 2, 64, 3e-3 if method is not Method.FULL else 1e-3, method=method, dropout=0.1)
    folders = [tmp_path / "whole", tmp_path / "parts"]
    for folder in folders:
        folder.mkdir()
    tuner = MlxModelTuner()
    job = TrainingJob(model, WeightForm.STORED, settings, EXAMPLES, EXAMPLES[:1], str(folders[0]), "a run", "base")

    def lead(adapter: str | None) -> float:
        answers = (EXAMPLES, tuple(each.worse for each in EXAMPLES))
        better, worse = (tuner.loss(model, adapter, WeightForm.STORED, each, 64) for each in answers)
        return worse - better

    def breaking(point: TrainingPoint) -> None:
        if point.step == 3:
            raise ExecutionError("broken off")

    result = tuner.train(job, lambda point: None, lambda: False, resume=False)
    assert result.first_valid_loss == pytest.approx(0.6931, abs=1e-3)
    assert result.valid_loss is not None
    assert result.valid_loss < 0.693
    assert lead(job.directory) > lead(None)
    job = attrs.evolve(job, directory=str(folders[1]))
    with pytest.raises(ExecutionError):
        tuner.train(job, breaking, lambda: False, resume=False)
    tuner.train(job, lambda point: None, lambda: False, resume=True)
    one, other = (folder.joinpath("adapters.safetensors").read_bytes() for folder in folders)
    assert one == other
