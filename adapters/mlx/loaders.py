"""Chooses the library that runs a request and the function that loads its models."""

import functools
from typing import Any

import attrs
from mlx.utils import tree_flatten

from mlxk.adapters.mlx.compatibility import Library
from mlxk.adapters.mlx.engine.model_pool import Loader
from mlxk.adapters.mlx.loading.adapted import whole_network
from mlxk.adapters.mlx.loading.drafter import load_drafter
from mlxk.adapters.mlx.loading.model_files import identity_of, read_config
from mlxk.adapters.mlx.loading.text_model import load_model
from mlxk.domain.errors import CapabilityError
from mlxk.domain.generation.request import GenerationRequest
from mlxk.domain.models.drafting import drafting_of
from mlxk.domain.models.footprint import WeightForm
from mlxk.domain.models.model import ModelHandle


def loader_of(library: Library) -> Loader:
    """Return the function that loads the models of a library."""
    if library is Library.MLX_VLM:
        # Not at the top: mlx-vlm takes a second to import, and most processes run text models only.
        from mlxk.adapters.mlx.vision.loader import load_vision_model

        return load_vision_model
    return load_model


def draft_loader(draft: ModelHandle) -> Loader:
    """Return the function that loads a draft model, or a drafter.

    Raises:
        UnhealthyModelError: Its config cannot be read.
    """
    return load_model if drafting_of(read_config(draft)) is None else load_drafter


@functools.cache
def quantizing_activations(load: Loader) -> Loader:
    """Return a loader that calls another one and makes quantized layers quantize their inputs, too.

    The pool and the prefix cache treat such a model as a different one.
    """
    name = f"{load.__module__}|{__name__}"

    def load_quantizing(handle: ModelHandle, form: WeightForm) -> Any:  # noqa: ANN401 - the loader's result
        model = load(handle, form)
        try:
            quantize_activations(whole_network(model))
        except ValueError as error:
            raise CapabilityError(f"quantize_activations: '{handle.name}' has layers without it: {error}") from error
        return attrs.evolve(model, identity=f"{identity_of(handle)}|{name}")

    load_quantizing.__module__ = name  # the pool distinguishes loaders by it
    return load_quantizing


def quantize_activations(network: Any) -> None:  # noqa: ANN401 - of either library
    """Replace the quantized layers of a network by mlx-vlm's layers that quantize their inputs; weights stay.

    Raises:
        ValueError: A layer has a bias, or an unsupported quantization.
    """
    from mlx_vlm import utils

    weights = tree_flatten(network.parameters())
    utils.quantize_activations(network)  # creates layers with random weights
    network.load_weights(weights)


def library_for(request: GenerationRequest) -> Library:
    """Return the library that runs a request: mlx-vlm for images and audio, mlx-lm for options that only it has."""
    if not request.backends:
        return Library.MLX_LM
    if request.has_images or request.has_audio:
        return Library.MLX_VLM
    options = request.engine_options
    needs_mlx_lm = options.cache_required and not options.batchable
    if needs_mlx_lm and Library.MLX_LM.value in request.backends:
        return Library.MLX_LM
    return Library(request.backends[0])
