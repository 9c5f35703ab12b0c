"""Loading a speech model with mlx-audio, without running code that came with it."""

import warnings

import mlx.nn as nn
from mlx_audio.stt import utils

from mlxk.adapters.mlx.loading.load_errors import translated
from mlxk.adapters.mlx.loading.model_files import (
    loading_directory,
    offline,
    read_config,
    refuse_untrusted_code,
    weight_bytes,
)
from mlxk.adapters.mlx.loading.widening import widen
from mlxk.adapters.mlx.speech import speech_model
from mlxk.adapters.mlx.speech.chunked import ChunkedDecoder
from mlxk.adapters.mlx.speech.speech_model import SpeechDecoder, SpeechModel
from mlxk.adapters.mlx.speech.whisper import WhisperDecoder, compute_on_cpu
from mlxk.domain.errors import UnhealthyModelError
from mlxk.domain.models.footprint import WeightForm
from mlxk.domain.models.model import ModelHandle


def load_speech_model(handle: ModelHandle, form: WeightForm = WeightForm.STORED) -> SpeechModel:
    """Load a model.

    Args:
        handle: The model.
        form: How to hold its weights.

    Raises:
        UntrustedModelCodeError: Loading would execute code that came with it.
        UnhealthyModelError: Files are missing or damaged.
        IncompatibleModelError: mlx-audio knows no such architecture.
        BackendNotInstalledError: A package that this family needs is not installed.
        ExecutionError: Loading failed for another reason, such as lack of memory.
    """
    refuse_untrusted_code(handle)
    family = family_of(handle)
    with (
        translated(handle, f"has an architecture mlx-audio does not know ({family})"),
        offline(),
        warnings.catch_warnings(),
    ):
        # Such as the libraries' warning of a missing tokenizer, for which the decoder raises an error.
        warnings.simplefilter("ignore")
        # Without ``model_name_parts`` the library would guess the family from the path.
        with loading_directory(handle) as directory:
            network = utils.load_model(directory, model_name_parts=[family])
        size = widen(network, form) if form.widened else weight_bytes(handle.directory)
        if form.widened and family == speech_model.WHISPER:
            compute_on_cpu(network)
        decoder = _decoder(network, handle.name, family)
    return SpeechModel(handle, size, decoder)


def family_of(handle: ModelHandle) -> str:
    """Return the family of a model, from its config.

    Raises:
        UnhealthyModelError: There is no readable config, or it names no family.
        UntrustedModelCodeError: Loading would execute code that came with it.
    """
    config = read_config(handle)
    family = config.get("model_type")
    if isinstance(family, str) and family:
        return family
    target = config.get("target")
    if isinstance(target, str) and target.startswith("nemo.collections.asr."):
        return "parakeet"
    raise UnhealthyModelError(f"'{handle.name}' does not say what it is (config.json: model_type).")


def _decoder(network: nn.Module, name: str, family: str) -> SpeechDecoder:
    if family == speech_model.WHISPER:
        return WhisperDecoder(network, name)
    return ChunkedDecoder(network, name, family)
