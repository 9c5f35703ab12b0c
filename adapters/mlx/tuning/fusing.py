"""Fusing: the weights of a model with those of an adapter built in, written as a conversion writes them."""

from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_unflatten

from mlxk.adapters.mlx.adapter_files import FULL, read_adapter
from mlxk.adapters.mlx.conversion import forget_quantization, library_of, load_lazily, write_weights
from mlxk.adapters.mlx.loading.adapted import apply_adapter
from mlxk.application.ports.system import Progress
from mlxk.application.ports.tuning import TrainedModel
from mlxk.domain.errors import ValidationError


def fuse(model: TrainedModel, adapter: str, target: str, progress: Progress, *, dequantize: bool, exact: bool) -> int:
    """Write a fused model; for arguments and errors see ``ModelTuner.fuse``."""
    files = read_adapter(adapter)
    network, config = load_lazily(model.handle, model.backend)
    apply_adapter(network, files, model.handle.label)
    changed = _build_in(network, dequantize=dequantize, exact=exact)
    if files.kind == FULL:
        changed = len({name.rpartition(".")[0] for name in files.tensors})
    if not changed:
        raise ValidationError(f"adapter: '{files.name}' changes no layer of '{model.handle.label}'")
    if dequantize and "quantization" in config:
        network = library_of(model.backend).dequantize_model(network)
        forget_quantization(config)
    write_weights(network, config, target, "Fusing", progress)
    return changed


def _build_in(network: nn.Module, *, dequantize: bool, exact: bool) -> int:
    """Replace layers with an adapter by plain ones; return how many there were."""
    if exact:
        for _, module in network.named_modules():
            if hasattr(module, "fuse"):
                _widen(module.get("linear", module.get("embedding")))
    fused: list[tuple[str, Any]] = [
        (name, module.fuse(dequantize=dequantize))
        for name, module in network.named_modules()
        if hasattr(module, "fuse")
    ]
    if fused:
        network.update_modules(tree_unflatten(fused))
    return len(fused)


def _widen(layer: nn.Module | None) -> None:
    """Hold the numbers of a layer in 32 bits, packed ones excepted, of which the scales decide."""
    if layer is None:
        return
    for name, value in list(layer.items()):
        if isinstance(value, mx.array) and value.dtype in (mx.bfloat16, mx.float16):
            layer[name] = value.astype(mx.float32)
