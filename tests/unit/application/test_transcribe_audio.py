"""Transcribing: the model is judged before anything is heard."""

import json
import struct
from collections.abc import Generator

import pytest
from doubles.backend_registry import InMemoryBackendRegistry
from doubles.memory_probe import InMemoryMemoryProbe
from doubles.model_cache import CachedModel, InMemoryModelCache
from doubles.model_files import InMemoryModelFiles
from doubles.model_source import InMemoryModelSource
from doubles.speech_transcriber import InMemorySpeechTranscriber
from doubles.workspace_store import InMemoryWorkspaceStore

from mlxk.application.generation_input import Recording
from mlxk.application.use_cases.describe_model import DescribeModel
from mlxk.application.use_cases.model_tasks import TranscribeAudio
from mlxk.application.use_cases.resolve_model import ResolveModel
from mlxk.domain.errors import (
    CapabilityError,
    IncompatibleModelError,
    InsufficientMemoryError,
    UnhealthyModelError,
    ValidationError,
)
from mlxk.domain.models.footprint import MemoryReading
from mlxk.domain.transcription import (
    Segment,
    SpeechTask,
    Transcript,
    TranscriptEvent,
    TranscriptionProgress,
    TranscriptionSettings,
)

COMMIT = "a" * 40
HEADER = json.dumps({"weight": {"dtype": "F16", "shape": [4], "data_offsets": [0, 8]}}).encode()
WEIGHTS = struct.pack("<Q", len(HEADER)) + HEADER + bytes(8)
WHISPER = {"model_type": "whisper", "vocab_size": 51865, "quantization": {"bits": 4}}
HELLO = Transcript("Hello.", 1.0, "en", (Segment("Hello.", 0.0, 1.0),))
CLIP = Recording("/clips/hello.wav", "hello.wav")


def files(**config: object) -> dict[str, bytes]:
    """Return the files of a speech model, with entries of its config that differ."""
    return {"config.json": json.dumps({**WHISPER, **config}).encode(), "model.safetensors": WEIGHTS}


MODELS = {
    "org/whisper-large": files(),
    "org/whisper-large-turbo": files(),
    "org/whisper-english": files(vocab_size=51864),
    "org/whisper-with-code": files(model_file="code.py"),
    "org/chat": files(model_type="llama"),
    "org/broken-whisper": {"config.json": json.dumps(WHISPER).encode()},
}


class Parts:
    """The use case and its transcriber."""

    def __init__(self, budget: int = 2**40) -> None:
        self.transcriber = InMemorySpeechTranscriber({"hello.wav": HELLO})
        cache = InMemoryModelCache({name: CachedModel((COMMIT,)) for name in MODELS})
        model_files = InMemoryModelFiles({f"/cache/{name}/{COMMIT}": each for name, each in MODELS.items()})
        workspaces = InMemoryWorkspaceStore()
        registry = InMemoryBackendRegistry({"mlx-lm": {"llama"}, "mlx-audio": {"whisper"}})
        self._resolve = ResolveModel(cache, workspaces, InMemoryModelSource(), default_owner="mlx-community")
        self._describe = DescribeModel(model_files, workspaces, registry, cache, default_owner="mlx-community")
        self._transcribe = TranscribeAudio(self.transcriber, InMemoryMemoryProbe(MemoryReading(budget, budget)))

    def transcribe(
        self, model: str, recording: Recording, settings: TranscriptionSettings
    ) -> Generator[TranscriptEvent, None, None]:
        return self._transcribe(self._describe(self._resolve(model)), recording, settings)


def test_a_recording_is_heard_by_the_model_that_was_named() -> None:
    parts = Parts()
    *heard, transcript = parts.transcribe("whisper-large", CLIP, TranscriptionSettings(language="en"))
    assert transcript == HELLO
    assert heard == [TranscriptionProgress(1.0, 1.0, HELLO.segments)]
    (request,) = parts.transcriber.requests
    assert (request.model.name, request.path, request.settings.language) == ("org/whisper-large", CLIP.path, "en")


def test_nothing_is_heard_before_it_is_asked_for() -> None:
    parts = Parts()
    parts.transcribe("whisper-large", CLIP, TranscriptionSettings())
    assert parts.transcriber.requests == []


def test_a_setting_out_of_range_is_refused_before_the_model_is_judged() -> None:
    with pytest.raises(ValidationError, match="temperature"):
        Parts().transcribe("org/broken-whisper", CLIP, TranscriptionSettings(temperature=9))


@pytest.mark.parametrize(
    ("model", "task", "refusal"),
    [
        ("org/chat", SpeechTask.TRANSCRIBE, CapabilityError),
        ("org/whisper-large-turbo", SpeechTask.TRANSLATE, CapabilityError),
        ("org/whisper-english", SpeechTask.TRANSLATE, CapabilityError),
        ("org/broken-whisper", SpeechTask.TRANSCRIBE, UnhealthyModelError),
        ("org/whisper-with-code", SpeechTask.TRANSCRIBE, IncompatibleModelError),
    ],
)
def test_a_model_that_cannot_do_it_is_refused(model: str, task: SpeechTask, refusal: type[Exception]) -> None:
    parts = Parts()
    with pytest.raises(refusal):
        parts.transcribe(model, CLIP, TranscriptionSettings(task=task))
    assert parts.transcriber.requests == []


def test_a_multilingual_model_translates() -> None:
    *_, transcript = Parts().transcribe("org/whisper-large", CLIP, TranscriptionSettings(task=SpeechTask.TRANSLATE))
    assert transcript == HELLO


def test_a_model_beyond_the_memory_budget_is_refused_with_the_numbers() -> None:
    with pytest.raises(InsufficientMemoryError) as caught:
        Parts(budget=1024).transcribe("org/whisper-large", CLIP, TranscriptionSettings())
    assert caught.value.detail is not None
    assert set(caught.value.detail) == {"needed_bytes", "budget_bytes"}
