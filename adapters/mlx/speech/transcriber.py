"""Speech to text with mlx-audio: the port, and loading a speech model without running code that came with it."""

import contextlib
import importlib.util
import warnings
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING

from mlxk.adapters.mlx.engine.model_lease import ModelLease, ModelLeases
from mlxk.adapters.mlx.loading.load_errors import loading_failure
from mlxk.adapters.mlx.loading.text_model import read_config, weight_bytes
from mlxk.adapters.mlx.loading.untrusted_code import offline, refuse_own_code
from mlxk.adapters.mlx.speech import speech_model
from mlxk.adapters.mlx.speech.speech_model import SpeechDecoder, SpeechModel
from mlxk.application.ports.event_log import EventLog
from mlxk.application.ports.speech_transcriber import SpeechTranscriber
from mlxk.domain.errors import (
    BackendNotInstalledError,
    MlxkError,
    UnhealthyModelError,
)
from mlxk.domain.models.model import ModelHandle
from mlxk.domain.transcription import Transcript, TranscriptEvent, TranscriptionRequest

if TYPE_CHECKING:
    import mlx.nn as nn

    from mlxk.adapters.mlx.speech.speech_model import SpeechModel


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
        with offline(), warnings.catch_warnings():
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


def _listener(network: "nn.Module", name: str, family: str) -> SpeechDecoder:
    if family == speech_model.WHISPER:
        from mlxk.adapters.mlx.speech.whisper import WhisperDecoder

        return WhisperDecoder(network, name)
    from mlxk.adapters.mlx.speech.chunked import ChunkedDecoder

    return ChunkedDecoder(network, name, family)


class MlxSpeechTranscriber(SpeechTranscriber):
    """Runs the speech models that mlx-audio knows.

    Args:
        leases: Leases the models.
        log: Hears how long recordings took.
    """

    def __init__(self, leases: ModelLeases, log: EventLog) -> None:
        self._leases = leases
        self._log = log

    def transcribe(self, request: TranscriptionRequest) -> Generator[TranscriptEvent, None, None]:
        """Listen to a recording; see the port."""
        from mlxk.adapters.mlx.engine.model_pool import WantedModel
        from mlxk.adapters.mlx.speech.audio_file import read_sound
        from mlxk.adapters.mlx.speech.speech_model import SpeechModel, rate_of

        request.settings.validate()
        if importlib.util.find_spec("mlx_audio") is None:
            raise BackendNotInstalledError(
                "Running speech models needs mlx-audio.", hint="Install it: pip install mlx-audio"
            )
        sound = read_sound(request.path, request.name, rate_of(family_of(request.model)))
        with self._leases.lease(WantedModel(request.model, load=load_speech_model), SpeechModel) as loan:
            events = loan.call(lambda: loan.model.listener.listen(sound, request.settings))
            try:
                yield from self._events(loan, events)
            finally:
                # It may hold arrays, which belong to the owner thread. A closed engine has none left.
                with contextlib.suppress(MlxkError):
                    loan.call(events.close)

    def _events(self, loan: "ModelLease[SpeechModel]", events: Iterator[TranscriptEvent]) -> Iterator[TranscriptEvent]:
        while (event := loan.call(lambda: next(events, None))) is not None:
            if isinstance(event, Transcript):
                self._log.info("heard a recording", seconds=round(event.seconds, 2), segments=len(event.segments))
            yield event
            loan.yield_to_generation()
