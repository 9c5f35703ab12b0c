"""The contract of training, held by every adapter."""

import json
from collections.abc import Callable
from pathlib import Path

import attrs
import mlx.core as mx
import mlx_lm
import pytest
from doubles.model_files import InMemoryModelFiles
from doubles.model_tuner import InMemoryModelTuner
from doubles.progress import InMemoryProgress
from mlx import nn
from mlx.utils import tree_flatten
from models.tiny_models import build as build_model
from models.tiny_models import write_adapter

from mlxk.adapters.mlx.tuning.trainer import MlxModelTuner
from mlxk.application.ports.tuning import ADAPTER_FILES, ModelTuner, TrainedModel, TrainingJob
from mlxk.domain.errors import MlxkError, ValidationError
from mlxk.domain.models.footprint import WeightForm
from mlxk.domain.models.model import ModelHandle, Origin
from mlxk.domain.tuning.data import FileCheck
from mlxk.domain.tuning.training import TrainingPoint, TuningSettings

pytestmark = pytest.mark.mlx
EXAMPLES = tuple(
    FileCheck("facts.jsonl")
    .read(f'{{"prompt": "Hello {number}", "completion": "Hello world {number}"}}'.encode() for number in range(5))
    .examples
)
SETTINGS = TuningSettings(steps=4, batch_size=2, layers=1, max_length=64, learning_rate=1e-3, save_every=2)
Has = Callable[[str, str], bool]
Bench = tuple[ModelTuner, TrainedModel, TrainingJob, Has]


@pytest.fixture(params=["mlx", "in_memory"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Bench:
    """Return a trainer, a job, and whether a directory has a file."""
    source, target = tmp_path / "source", tmp_path / "target"
    if request.param == "in_memory":
        files = InMemoryModelFiles({str(source): {"config.json": b"{}"}, str(target): {}})
        handle = ModelHandle(str(source), str(source), Origin.WORKSPACE)
        tuner: ModelTuner = InMemoryModelTuner(files)
        has: Has = lambda directory, name: name in files.directories[directory]  # noqa: E731
    else:
        handle = build_model(source)
        target.mkdir()
        tuner, has = MlxModelTuner(), lambda directory, name: (Path(directory) / name).exists()
    job = TrainingJob(
        TrainedModel(handle, "mlx-lm"), WeightForm.STORED, SETTINGS, EXAMPLES, (), str(target), "a run", "base"
    )
    return tuner, job, has


def never() -> bool:
    """Do not stop."""
    return False


def test_training_writes_an_adapter_and_reports_its_steps(bench: Bench) -> None:
    tuner, job, has = bench
    points: list[TrainingPoint] = []
    result = tuner.train(job, points.append, never, resume=False)
    assert (result.steps, result.stopped, result.resumed_at) == (4, False, None)
    assert [each.step for each in points] == [1, 2, 3, 4] == [each.step for each in result.points]
    assert all(each.loss is not None and each.loss > 0 for each in points)
    assert all(has(job.directory, name) for name in ADAPTER_FILES)


def test_training_ends_after_the_step_in_which_it_is_stopped(bench: Bench) -> None:
    tuner, job, has = bench
    seen: list[TrainingPoint] = []
    result = tuner.train(job, seen.append, lambda: True, resume=False)
    assert (result.steps, result.stopped) == (1, True)
    assert has(job.directory, ADAPTER_FILES[1])


def test_a_run_that_was_broken_off_is_known_and_continued(bench: Bench) -> None:
    tuner, job, _ = bench
    assert tuner.unfinished(job.directory) is None
    if isinstance(tuner, InMemoryModelTuner):
        tuner.broken_at = 3

    def breaks(point: TrainingPoint) -> None:
        if point.step == 3 and not isinstance(tuner, InMemoryModelTuner):
            raise ValidationError("broken off")

    with pytest.raises(MlxkError):
        tuner.train(job, breaks, never, resume=False)
    found = tuner.unfinished(job.directory)
    assert found is not None
    assert (found.step, found.identity, found.fields) == (3, "a run", SETTINGS.as_fields())
    if isinstance(tuner, InMemoryModelTuner):
        tuner.broken_at = None
    result = tuner.train(job, lambda point: None, never, resume=True)
    assert (result.steps, result.resumed_at) == (4, 3)


def test_nothing_is_continued_where_nothing_was_begun(bench: Bench) -> None:
    tuner, job, _ = bench
    with pytest.raises(ValidationError):
        tuner.train(job, lambda point: None, never, resume=True)


def test_lengths_are_of_all_examples_and_name_the_lines_that_are_cut(bench: Bench) -> None:
    tuner, job, _ = bench
    long = FileCheck("f").read([b'{"text": "a"}', b'{"text": "' + b"one two " * 50 + b'"}']).examples
    whole = tuner.lengths(job.model, tuple(long), 10_000, mask_prompt=True)
    assert whole.cut == ()
    assert whole.longest == whole.longest_uncut > 50
    cut = tuner.lengths(job.model, tuple(long), 20, mask_prompt=True)
    assert (cut.cut, cut.longest, cut.longest_uncut) == ((2,), 20, whole.longest)


def test_the_loss_is_measured_and_falls_with_training(bench: Bench) -> None:
    tuner, job, _ = bench
    job = attrs.evolve(job, settings=attrs.evolve(SETTINGS, steps=10, learning_rate=1e-2))
    before = tuner.loss(job.model, None, job.form, EXAMPLES, 64)
    tuner.train(job, lambda point: None, never, resume=False)
    assert tuner.loss(job.model, job.directory, job.form, EXAMPLES, 64) < before


def test_a_model_and_an_adapter_become_one_model(bench: Bench, tmp_path: Path) -> None:
    tuner, job, has = bench
    tuner.train(job, lambda point: None, never, resume=False)
    target = f"{tmp_path}/fused"
    if isinstance(tuner, InMemoryModelTuner):
        tuner._files.directories[target] = {}
    else:
        Path(target).mkdir()
    assert tuner.fuse(job.model, job.directory, target, InMemoryProgress(), dequantize=False, exact=False) > 0
    assert has(target, "config.json")
    assert has(target, "model.safetensors")


def test_an_exact_fusion_of_packed_weights_widens_their_scales_only(tmp_path: Path) -> None:
    handle = build_model(tmp_path / "source")
    network, _ = mlx_lm.load(handle.directory)
    network.set_dtype(mx.bfloat16)
    nn.quantize(network, group_size=32, bits=4)
    config = json.loads((tmp_path / "source" / "config.json").read_text())
    config["quantization"] = {"group_size": 32, "bits": 4}
    (tmp_path / "source" / "config.json").write_text(json.dumps(config))
    mx.save_safetensors(str(tmp_path / "source" / "model.safetensors"), dict(tree_flatten(network.parameters())))
    adapter = str(write_adapter(tmp_path / "adapter", handle))
    model, fused = TrainedModel(handle, "mlx-lm"), {}
    for exact in (False, True):
        target = tmp_path / f"exact-{exact}"
        target.mkdir()
        assert MlxModelTuner().fuse(model, adapter, str(target), InMemoryProgress(), dequantize=True, exact=exact) > 0
        fused[exact] = mx.load(str(target / "model.safetensors"))["model.layers.0.self_attn.q_proj.weight"]
    assert (fused[False].dtype, fused[True].dtype) == (mx.bfloat16, mx.float32)
    assert mx.allclose(fused[True], fused[False].astype(mx.float32), rtol=1e-2, atol=1e-2)


def test_what_is_no_adapter_is_refused(bench: Bench, tmp_path: Path) -> None:
    tuner, job, _ = bench
    with pytest.raises(ValidationError):
        tuner.fuse(
            job.model, job.model.handle.directory, str(tmp_path), InMemoryProgress(), dequantize=False, exact=False
        )
