"""The library that runs a request, and the function that loads its models."""

from mlxk.adapters.mlx.compatibility import Library
from mlxk.adapters.mlx.engine.model_pool import Loader
from mlxk.adapters.mlx.loading.drafter import load_drafter
from mlxk.adapters.mlx.loading.model_files import read_config
from mlxk.adapters.mlx.loading.text_model import load_model
from mlxk.domain.generation.request import GenerationRequest
from mlxk.domain.models.detection import drafting_of
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


def library_for(request: GenerationRequest) -> Library:
    """Return the library that runs a request: mlx-vlm for images and audio, mlx-lm for options that it alone has."""
    if not request.backends:
        return Library.MLX_LM
    if request.has_images or request.has_audio:
        return Library.MLX_VLM
    options = request.engine_options
    special = options.cache_required and not options.batchable
    return Library.MLX_LM if special and Library.MLX_LM.value in request.backends else Library(request.backends[0])
