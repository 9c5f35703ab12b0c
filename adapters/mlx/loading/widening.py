"""Weights on a CPU: 16-bit numbers, which MLX emulates there, are held in 32 bits; and faster quantized layers.

The policy decides on the form of a model's weights before it is loaded.
"""

from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten, tree_map

from mlxk.adapters.mlx import blas
from mlxk.domain.models.footprint import WeightForm

_HALF_TYPES = (mx.float16, mx.bfloat16)

_FEWEST_ROWS = 8
"""Rows of an input from which dequantizing and multiplying with BLAS is faster than MLX's quantized product.

Measured with 2 threads: 2 to 4 rows, depending on the size of the layer; never slower at 8.
"""


def widen(network: nn.Module, form: WeightForm = WeightForm.WIDE) -> int:
    """Convert all 16-bit floating-point arrays of a network to 32 bits; return the size of its weights, bytes.

    This includes scales and biases of quantized layers, so that everything is computed in 32 bits. Arrays are replaced
    one by one, so that at most one of them is in memory twice. With an optimised BLAS, layers that stay quantized
    dequantize their weights for long inputs.

    Args:
        network: Changed in place.
        form: A form that is ``widened``; ``PLAIN`` also dequantizes layers for good.
    """
    for module in network.modules():
        if form is WeightForm.PLAIN and type(module) in _PLAIN:
            _unpack(module)
        for name, value in list(module.items()):
            # Not ``module[name] = …``: a compiled module is wrapped in an object without item assignment.
            module.__setitem__(name, tree_map(_widened, value, is_leaf=lambda leaf: isinstance(leaf, nn.Module)))
        # Some networks convert their inputs to this type.
        dtype = getattr(module, "dtype", None)
        if isinstance(dtype, mx.Dtype) and dtype in _HALF_TYPES:
            module.dtype = mx.float32
        if type(module) is nn.QuantizedLinear and blas.in_use() is not None:
            module.__class__ = UnpackingLinear
    return parameter_bytes(network)


def parameter_bytes(network: nn.Module) -> int:
    """Return the size of a network's parameters, bytes, without evaluating them."""
    return sum(array.nbytes for _, array in tree_flatten(network.parameters()))


_PLAIN = {nn.QuantizedLinear: nn.Linear, nn.QuantizedEmbedding: nn.Embedding}
"""Quantized layers and their plain counterparts."""


def _unpack(layer: nn.Module) -> None:
    """Dequantize a layer in place to a plain one in 32 bits."""
    scales, biases = layer.pop("scales"), layer.pop("biases", None)
    # 16-bit scales are widened first: their products are exact in 32 bits.
    weight = mx.dequantize(
        layer.weight,
        _widened(scales),
        _widened(biases),
        group_size=layer.group_size,
        bits=layer.bits,
        mode=layer.mode,
    )
    layer.weight = weight.astype(mx.float32)
    mx.eval(layer.weight)
    layer.__class__ = _PLAIN[type(layer)]


class UnpackingLinear(nn.QuantizedLinear):  # type: ignore[misc]
    """A quantized layer that dequantizes its weights for an input of many rows and multiplies with BLAS."""

    most_bytes = 64 * 2**20
    """Maximum size of the weights that are dequantized at a time."""

    def __call__(self, x: mx.array) -> mx.array:
        """Return the layer's output, shape [..., O], for an input, shape [..., I]."""
        if x.size < _FEWEST_ROWS * x.shape[-1] or x.dtype != mx.float32:
            packed: mx.array = super().__call__(x)
            return packed
        outputs = max(1, self.most_bytes // (x.shape[-1] * x.itemsize))
        parts: list[mx.array] = []
        for start in range(0, self.weight.shape[0], outputs):
            # Each part depends on the one before, so that only a few dequantized parts are in memory at a time.
            parts.append(self._part(x, slice(start, start + outputs), after=parts[-1] if parts else x))
        product = parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=-1)
        return product + self.bias if "bias" in self else product

    def _part(self, x: mx.array, outputs: slice, after: mx.array) -> mx.array:
        """Return a slice of the outputs, without bias."""
        biases = self.get("biases")
        weight = mx.dequantize(
            mx.depends(self.weight[outputs], after),
            self.scales[outputs],
            None if biases is None else biases[outputs],
            group_size=self.group_size,
            bits=self.bits,
            mode=self.mode,
        )
        return x @ weight.astype(mx.float32).T


def _widened(value: Any) -> Any:  # noqa: ANN401 - whatever a network holds
    if not isinstance(value, mx.array) or value.dtype not in _HALF_TYPES:
        return value
    wide = value.astype(mx.float32)
    mx.eval(wide)
    return wide
