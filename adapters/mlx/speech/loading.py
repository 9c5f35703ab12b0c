"""Loading a speech model from a directory: what runs it, and refusing what must not run.

Must happen on the owner thread. Translates what the libraries raise; leaves residency to the engine.
"""

import warnings
from typing import TYPE_CHECKING

from mlxk.adapters.mlx.imports import light_imports
from mlxk.adapters.mlx.loading import read_config, weight_bytes
from mlxk.adapters.mlx.loading_failure import loading_failure
from mlxk.adapters.mlx.seclusion import offline, refuse_own_code
from mlxk.adapters.mlx.speech import families
from mlxk.adapters.mlx.speech.listener import Listener, SpeechModel
from mlxk.domain.errors import (
    MlxkError,
    UnhealthyModelError,
)
from mlxk.domain.model import ModelHandle

if TYPE_CHECKING:
    import mlx.nn as nn


def load_speech_model(handle: ModelHandle, adapter: str | None = None) -> SpeechModel:
    """Load a model.

    Args:
        handle: Which.
        adapter: Not for speech models.

    Raises:
        UntrustedModelCodeError: It wants its own code executed.
        UnhealthyModelError: Files are missing or damaged.
        IncompatibleModelError: mlx-audio knows no such architecture.
        BackendNotInstalledError: mlx-audio, or a package that this family needs, is not installed.
        ExecutionError: Loading failed for another reason, such as lack of memory.
    """
    refuse_own_code(handle)
    family = family_of(handle)
    try:
        with light_imports(), offline(), warnings.catch_warnings():
            # What they warn of is a missing tokenizer; the listener says so in our words.
            warnings.simplefilter("ignore")
            network = _load(handle, family)
            listener = _listener(network, handle.name, family)
    except MlxkError:
        raise
    except Exception as error:
        raise loading_failure(error, handle, f"has an architecture mlx-audio does not know ({family})") from error
    return SpeechModel(handle, weight_bytes(handle.directory), listener)


def family_of(handle: ModelHandle) -> str:
    """Return the family of a model, from its config.

    Raises:
        UnhealthyModelError: There is no readable config, or it names none.
        UntrustedModelCodeError: It asks for the model's own code to be executed.
    """
    config = read_config(handle)
    named = config.get("model_type")
    if isinstance(named, str) and named:
        return named
    target = config.get("target")
    if isinstance(target, str) and target.startswith("nemo.collections.asr."):
        return "parakeet"
    raise UnhealthyModelError(f"'{handle.name}' does not say what it is (config.json: model_type).")


def _load(handle: ModelHandle, family: str) -> "nn.Module":
    from pathlib import Path

    from mlx_audio.stt import utils

    # Without the name parts the library would guess the family from words in the path.
    return utils.load_model(Path(handle.directory), model_name_parts=[family])


def _listener(network: "nn.Module", name: str, family: str) -> Listener:
    if family == families.WHISPER:
        from mlxk.adapters.mlx.speech.whisper import WhisperListener

        return WhisperListener(network, name)
    from mlxk.adapters.mlx.speech.piecewise import PiecewiseListener

    return PiecewiseListener(network, name, family)
