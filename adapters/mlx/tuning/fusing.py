"""Fusing: merging an adapter into the weights of its model, and writing them as a conversion does."""

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
    """Write a fused model; see ``ModelTuner.fuse``."""
    files = read_adapter(adapter)
    network, config = load_lazily(model.handle, model.backend)
    apply_adapter(network, files, model.handle.label)
    changed = _merge(network, dequantize=dequantize, exact=exact)
    if files.kind == FULL:
        changed = len({name.rpartition(".")[0] for name in files.tensors})
    if not changed:
        raise ValidationError(f"adapter: '{files.name}' changes no layer of '{model.handle.label}'")
    if dequantize and "quantization" in config:
        network = library_of(model.backend).dequantize_model(network)
        forget_quantization(config)
    write_weights(network, config, target, "Fusing", progress)
    return changed


def _merge(network: nn.Module, *, dequantize: bool, exact: bool) -> int:
    """Replace layers that have an adapter by plain ones; return their number."""
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
    """Convert a layer's 16-bit arrays to 32 bits; packed weights stay, since their scales determine the precision."""
    if layer is None:
        return
    for name, value in list(layer.items()):
        if isinstance(value, mx.array) and value.dtype in (mx.bfloat16, mx.float16):
            layer[name] = value.astype(mx.float32)
