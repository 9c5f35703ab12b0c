"""A model with a LoRA adapter: a copy of the module tree of a loaded model that shares its arrays.

The adapter's layers wrap layers of the copy. The model's weights are in memory once, however many adapters it has.
"""

import copy
import re
from collections.abc import Iterator
from typing import Any

import attrs
import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import load_adapters

from mlxk.adapters.mlx.adapter_files import CONFIG, AdapterFiles, read_adapter
from mlxk.adapters.mlx.loading.model_files import identity_of
from mlxk.adapters.mlx.loading.text_model import LoadedModel
from mlxk.adapters.mlx.loading.widening import widen
from mlxk.domain.errors import ValidationError
from mlxk.domain.models.footprint import WeightForm

_FAULT = re.compile(r"^\s+(\S+): (.+)$", re.MULTILINE)
"""Matches the line for one tensor in the library's message."""


def adapted(model: LoadedModel, adapter: str, form: WeightForm) -> LoadedModel:
    """Return a model with an adapter; must run on the owner thread.

    Args:
        model: The model without an adapter; it must stay loaded and is not changed.
        adapter: Absolute path of the adapter's directory.
        form: How the model's weights are held; the adapter's are held likewise.

    Raises:
        ValidationError: The adapter cannot be used, or does not fit the model.
    """
    files = read_adapter(adapter)
    base = whole_network(model)
    shared: dict[int, Any] = {id(array): array for array in _arrays(base)}
    network = copy.deepcopy(base, {**shared, **_uncopied(base)})
    apply_adapter(network, files, model.name)
    network.eval()
    if form.widened:
        widen(network, form)
    own = [array for _, array in tree_flatten(network.parameters()) if id(array) not in shared]
    if not own:
        raise ValidationError(f"adapter: {CONFIG} of '{files.name}' names no layer of '{model.name}'")
    mx.eval(own)
    vision = None if model.vision is None else model.vision.over(network)
    loader = "" if vision is None else f"|{type(vision).__module__}"
    return attrs.evolve(
        model,
        network=network if vision is None else vision.network,
        vision=vision,
        identity=identity_of(model.handle, adapter) + loader,
        weight_bytes=sum(array.nbytes for array in own),
    )


def whole_network(model: LoadedModel) -> nn.Module:
    """Return the complete network of a model; for a vision model this includes its encoders."""
    network: nn.Module = model.network if model.vision is None else model.vision.parts.model
    return network


def apply_adapter(network: nn.Module, files: AdapterFiles, model: str) -> None:
    """Apply an adapter to a network in place: wrap its layers, or replace its weights.

    Args:
        network: The network to change.
        files: The adapter.
        model: Name of the model, for errors.

    Raises:
        ValidationError: The adapter does not fit the network.
    """
    try:
        with files.as_mlx() as directory:
            load_adapters(network, directory)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise _unfit(files, model, error) from error


def _arrays(network: nn.Module) -> Iterator[mx.array]:
    """Yield every array of a network, including arrays that are not parameters."""
    for module in network.modules():
        pending: list[Any] = list(module.values())
        while pending:
            value = pending.pop()
            if isinstance(value, mx.array):
                yield value
            elif isinstance(value, nn.Module):
                continue  # ``modules`` yields it
            elif isinstance(value, dict):
                pending += value.values()
            elif isinstance(value, list | tuple):
                pending += value


def _uncopied(network: nn.Module) -> dict[int, Any]:
    """Return attributes that cannot be copied and no adapter changes: functions, and the caching vision encoder."""
    values = (value for module in network.modules() for value in vars(module).values())
    return {id(value): value for value in values if callable(value) and not isinstance(value, nn.Module)}


def _unfit(files: AdapterFiles, model: str, error: Exception) -> ValidationError:
    """Return the error for an adapter that the library refuses, with the first tensor that it reports, if any."""
    faults = sorted(_FAULT.findall(str(error))) if isinstance(error, ValueError) else []
    reason = ": ".join(faults[0]) if faults else f"the library refuses it ({type(error).__name__})"
    return ValidationError(
        f"adapter: {files.weights} of '{files.name}' does not fit '{model}': {reason}",
        hint="Use it with the model that it was trained on, or one of the same shape.",
    )
