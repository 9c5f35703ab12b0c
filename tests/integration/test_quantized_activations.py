"""Activations are quantized where a device multiplies them, and refused by name elsewhere, before anything is loaded.

No product of quantized activations exists on a CPU, so that networks are compared layer by layer and not computed.
"""

from pathlib import Path

import attrs
import mlx.core as mx
import mlx_lm
import pytest
from mlx import nn
from mlx.utils import tree_flatten
from models.tiny_models import build
from serving.settings_home import Machine

from mlxk.adapters.mlx import registry
from mlxk.adapters.mlx.compatibility import Library
from mlxk.adapters.mlx.loaders import loader_of, quantize_activations, quantizing_activations
from mlxk.adapters.mlx.loading.text_model import load_model as load
from mlxk.domain.errors import CapabilityError
from mlxk.domain.models.footprint import WeightForm
from mlxk.domain.models.model import ModelHandle

pytestmark = pytest.mark.mlx
FAULT = "quantize_activations: only CUDA has products of quantized activations"


@pytest.fixture
def mlxk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Machine:
    return Machine(tmp_path / "home", capsys)


def packed(folder: Path, mode: str, **config: object) -> ModelHandle:
    """Return a tiny model whose weights are quantized in a mode."""
    whole = build(folder / "whole", head_dim=32, hidden_size=128, intermediate_size=256, **config)
    mlx_lm.convert(whole.directory, str(folder / mode), quantize=True, q_mode=mode)
    return attrs.evolve(whole, name=mode, directory=str(folder / mode))


@pytest.mark.parametrize("flags", [["--json"], []])
def test_without_a_gpu_that_can_they_are_refused_before_anything_is_loaded(mlxk: Machine, flags: list[str]) -> None:
    refused = mlxk("run", "demo", "Hello", "--no-stdin", "--no-server", "--quantize-activations", *flags)
    assert (refused.status, FAULT in refused.out + refused.err) == (1, True), refused
    assert "Leave it out" in refused.out + refused.err


@pytest.mark.parametrize(
    "table", ['[models.poet]\nmodel = "demo"\n', '[models.poet]\nmodel = "demo"\n[serve]\n', "[serve]\n"]
)
def test_a_server_does_not_start_with_them_and_neither_does_one_with_such_a_name(mlxk: Machine, table: str) -> None:
    mlxk.write(f"{table}quantize_activations = true\n")
    refused = mlxk("serve", "--model", "demo")
    assert (refused.status, FAULT in refused.err, mlxk.served) == (1, True, []), refused


def test_a_name_with_them_is_refused_by_run_and_can_be_overruled(mlxk: Machine) -> None:
    assert mlxk("profile", "poet", "--model", "demo", "--quantize-activations").status == 0
    asked = ("run", "poet", "Hello", "--no-stdin", "--no-server")
    assert FAULT in mlxk(*asked).err
    assert mlxk(*asked, "--no-quantize-activations").status == 0


def test_a_model_of_other_weights_is_computed_as_usual_where_a_gpu_can_and_it_is_said(
    mlxk: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "computes_on_cpu", lambda platform: False)
    monkeypatch.setattr(registry.sys, "platform", "linux")
    done = mlxk("run", "demo", "Hello", "--no-stdin", "--no-server", "--quantize-activations")
    assert (done.status, bool(done.out.strip())) == (0, True), done
    assert "activations are not quantized" in done.err
    assert "neither as mxfp8 nor as nvfp4" in done.err


@pytest.mark.parametrize("mode", ["mxfp8", "nvfp4"])
def test_the_library_exchanges_the_layers_and_their_weights_stay(tmp_path: Path, mode: str) -> None:
    handle = packed(tmp_path, mode, tie_word_embeddings=False)
    network, _ = mlx_lm.load(handle.directory)
    before = dict(tree_flatten(network.parameters()))
    quantize_activations(network)
    layers = [module for _, module in network.named_modules() if hasattr(module, "scales")]
    exchanged = [module for module in layers if isinstance(module, nn.QQLinear)]
    assert {type(module) for module in layers} <= {nn.QQLinear, nn.QuantizedEmbedding}
    assert len(exchanged) >= 14
    assert {(each.mode, each.bits) for each in exchanged} == {(mode, 8 if mode == "mxfp8" else 4)}
    after = dict(tree_flatten(network.parameters()))
    assert before.keys() == after.keys()
    assert all(mx.array_equal(before[name], after[name]) for name in before)


def test_such_a_model_is_loaded_by_either_library_and_is_another_one_to_pool_and_cache(tmp_path: Path) -> None:
    handle = packed(tmp_path, "mxfp8")
    quantizing = quantizing_activations(loader_of(Library.MLX_LM))
    assert quantizing is quantizing_activations(load)
    assert quantizing.__module__ != load.__module__
    model = quantizing(handle, WeightForm.STORED)
    assert any(isinstance(module, nn.QQLinear) for module in model.network.modules())
    assert model.identity != load(handle).identity


def test_a_model_that_cannot_have_them_says_so(tmp_path: Path) -> None:
    handle = packed(tmp_path, "mxfp4")
    with pytest.raises(CapabilityError, match="'mxfp4' has layers without it: Mode"):
        quantizing_activations(load)(handle, WeightForm.STORED)
