"""How a CPU holds weights: 16-bit numbers, which it emulates, in 32 bits; and how it computes quantized layers.

In which form a model is held is the policy's decision, before it is loaded.
"""

from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten, tree_map

from mlxk.adapters.mlx import blas
from mlxk.domain.models.footprint import WeightForm

_HALF_TYPES = (mx.float16, mx.bfloat16)

_FEWEST_ROWS = 8
"""Rows of an input from which a library multiplies faster than MLX does with packed weights, unpacking included.

Measured with 2 threads: from 2 to 4 rows on, by the size of the layer; never slower at 8.
"""


def widen(network: nn.Module, form: WeightForm = WeightForm.WIDE) -> int:
    """Hold every 16-bit floating-point number of a network in 32 bits; return what its weights take then, bytes.

    Scales and biases of quantized layers are among them, so that all that is computed has 32 bits. Arrays are replaced
    one by one: no more than one of them is in memory twice. Where an optimised BLAS is in use, quantized layers that
    stay so unpack their weights for long inputs.

    Args:
        network: Changed in place.
        form: One of those that are widened.
    """
    for module in network.modules():
        if form is WeightForm.PLAIN and type(module) in _PLAIN:
            _unpack(module)
        for name, value in list(module.items()):
            # By name, which reaches a module that is compiled: MLX's object for it takes no items itself.
            module.__setitem__(name, tree_map(_widened, value, is_leaf=lambda leaf: isinstance(leaf, nn.Module)))
        # Some networks convert their inputs to the type that they were loaded in.
        dtype = getattr(module, "dtype", None)
        if isinstance(dtype, mx.Dtype) and dtype in _HALF_TYPES:
            module.dtype = mx.float32
        if type(module) is nn.QuantizedLinear and blas.in_use() is not None:
            module.__class__ = UnpackingLinear
    return parameter_bytes(network)


def parameter_bytes(network: nn.Module) -> int:
    """Return what the parameters of a network take, bytes; computes nothing."""
    return sum(array.nbytes for _, array in tree_flatten(network.parameters()))


_PLAIN = {nn.QuantizedLinear: nn.Linear, nn.QuantizedEmbedding: nn.Embedding}
"""The layers that can be unpacked for good, and what they are then."""


def _unpack(layer: nn.Module) -> None:
    """Make a quantized layer a plain one, of numbers of 32 bits."""
    scales, biases = layer.pop("scales"), layer.pop("biases", None)
    # Products with a float32 of 16-bit scales are exact: they are widened first, not last.
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
    """A quantized layer that unpacks its weights for an input of many rows, and has them multiplied as plain ones."""

    most_bytes = 64 * 2**20
    """Of weights that are unpacked at a time."""

    def __call__(self, x: mx.array) -> mx.array:
        """Return the layer's output, shape [..., O], for an input, shape [..., I]."""
        if x.size < _FEWEST_ROWS * x.shape[-1] or x.dtype != mx.float32:
            packed: mx.array = super().__call__(x)
            return packed
        outputs = max(1, self.most_bytes // (x.shape[-1] * x.itemsize))
        parts: list[mx.array] = []
        for start in range(0, self.weight.shape[0], outputs):
            # Depending on what comes before, no part is unpacked long before its turn: a few are in memory at a time.
            parts.append(self._part(x, slice(start, start + outputs), after=parts[-1] if parts else x))
        product = parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=-1)
        return product + self.bias if "bias" in self else product

    def _part(self, x: mx.array, outputs: slice, after: mx.array) -> mx.array:
        """Return some outputs, without bias."""
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
