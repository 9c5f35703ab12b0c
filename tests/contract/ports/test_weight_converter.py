"""The contract of converting weights, held by every adapter."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from doubles.model_files import InMemoryModelFiles
from doubles.progress import InMemoryProgress
from doubles.weight_converter import InMemoryWeightConverter
from models.tiny_models import build as build_model

from mlxk.adapters.mlx.conversion import MlxWeightConverter
from mlxk.application.ports.backends import WeightConverter
from mlxk.domain.errors import ConversionFailedError, ExecutionError, UntrustedModelCodeError
from mlxk.domain.models.model import ModelHandle, Origin, Quantization

pytestmark = pytest.mark.mlx
Read = Callable[[str], dict[str, object]]
Bench = tuple[WeightConverter, ModelHandle, str, Read, Callable[..., None]]


@pytest.fixture(params=["mlx", "in_memory"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Bench:
    """Return a converter, a model, a target, how to read its config, and how to change the model's."""
    source, target = tmp_path / "source", tmp_path / "target"
    if request.param == "in_memory":
        files = InMemoryModelFiles({str(source): {"config.json": b"{}", "model.safetensors": b"w"}, str(target): {}})

        def change(**entries: object) -> None:
            files.directories[str(source)]["config.json"] = json.dumps(entries).encode()

        def read(directory: str) -> dict[str, object]:
            return dict(json.loads(files.directories[directory]["config.json"]))

        handle = ModelHandle(str(source), str(source), Origin.WORKSPACE)
        return InMemoryWeightConverter(files), handle, str(target), read, change
    handle = build_model(source)
    target.mkdir()

    def change_on_disk(**entries: object) -> None:
        before = json.loads((source / "config.json").read_text())
        (source / "config.json").write_text(json.dumps({**before, **entries}))

    def read_on_disk(directory: str) -> dict[str, object]:
        return dict(json.loads((Path(directory) / "config.json").read_text()))

    return MlxWeightConverter(), handle, str(target), read_on_disk, change_on_disk


def test_quantizing_states_the_scheme_in_the_config_of_the_target_only(bench: Bench) -> None:
    converter, source, target, read, _ = bench
    progress = InMemoryProgress()
    made = converter.quantize(source, target, "mlx-lm", Quantization(4, 32), progress)
    assert made.changed > 0
    assert made.size_bytes == sum(progress.sizes.values()) == sum(progress.finished.values())
    assert read(target)["quantization"] == {"bits": 4, "group_size": 32, "mode": "affine"}
    assert "quantization" not in read(source.directory)
    assert not progress.running


def test_dequantizing_takes_the_scheme_away(bench: Bench, tmp_path: Path) -> None:
    converter, source, target, read, _ = bench
    converter.quantize(source, target, "mlx-lm", Quantization(8, 64), InMemoryProgress())
    quantized = ModelHandle(target, target, Origin.WORKSPACE)
    full = tmp_path / "full"
    full.mkdir()
    converter.dequantize(quantized, str(full), "mlx-lm", InMemoryProgress())
    assert "quantization" not in read(str(full))


def test_a_whole_model_misses_nothing(bench: Bench) -> None:
    converter, source, *_ = bench
    assert converter.missing_tensors(source, "mlx-lm") == ()


def test_a_model_that_wants_its_own_code_is_refused_by_every_method(bench: Bench) -> None:
    converter, source, target, _, change = bench
    change(model_file="own.py")
    with pytest.raises(UntrustedModelCodeError):
        converter.quantize(source, target, "mlx-lm", Quantization(4, 64), InMemoryProgress())
    with pytest.raises(UntrustedModelCodeError):
        converter.dequantize(source, target, "mlx-vlm", InMemoryProgress())
    with pytest.raises(UntrustedModelCodeError):
        converter.missing_tensors(source, "mlx-lm")


def test_what_the_library_cannot_load_is_a_failed_conversion(tmp_path: Path) -> None:
    handle = build_model(tmp_path / "source")
    (tmp_path / "source" / "config.json").write_text('{"model_type": "llama", "hidden_size": "wide"}')
    with pytest.raises(ConversionFailedError):
        MlxWeightConverter().missing_tensors(handle, "mlx-lm")


def test_a_library_that_is_broken_is_not_called_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handle = build_model(tmp_path / "source")
    (tmp_path / "target").mkdir()
    monkeypatch.setitem(sys.modules, "mlx_lm.utils", None)
    with pytest.raises(ExecutionError, match=r"needs mlx_lm\.utils, which cannot be imported"):
        MlxWeightConverter().quantize(
            handle, str(tmp_path / "target"), "mlx-lm", Quantization(4, 64), InMemoryProgress()
        )
