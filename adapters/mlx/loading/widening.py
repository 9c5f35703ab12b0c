"""The type in which weights are held: 16-bit numbers in 32 bits, for a CPU, which emulates those of 16 bits.

Whether a model is widened is the policy's decision, before it is loaded.
"""

from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten, tree_map

_HALF_TYPES = (mx.float16, mx.bfloat16)


def widen(network: nn.Module) -> int:
    """Hold every 16-bit floating-point number of a network in 32 bits; return what its weights take then, bytes.

    Scales and biases of quantized layers are among them, so that all that is computed has 32 bits. Arrays are replaced
    one by one: no more than one of them is in memory twice.
    """
    for module in network.modules():
        for name, value in list(module.items()):
            module[name] = tree_map(_widened, value, is_leaf=lambda leaf: isinstance(leaf, nn.Module))
        # Some networks convert their inputs to the type that they were loaded in.
        dtype = getattr(module, "dtype", None)
        if isinstance(dtype, mx.Dtype) and dtype in _HALF_TYPES:
            module.dtype = mx.float32
    return sum(array.nbytes for _, array in tree_flatten(network.parameters()))


def _widened(value: Any) -> Any:  # noqa: ANN401 - whatever a network holds
    if not isinstance(value, mx.array) or value.dtype not in _HALF_TYPES:
        return value
    wide = value.astype(mx.float32)
    mx.eval(wide)
    return wide
