"""Asking about a recording: the model and the length are judged before anything is loaded."""

import json
import struct
from typing import Any

import pytest
from doubles.audio_decoder import InMemoryAudioDecoder
from doubles.backend_registry import InMemoryBackendRegistry
from doubles.event_log import InMemoryEventLog
from doubles.image_reader import InMemoryImageReader
from doubles.memory_probe import InMemoryMemoryProbe
from doubles.model_cache import CachedModel, InMemoryModelCache
from doubles.model_files import InMemoryModelFiles
from doubles.model_source import InMemoryModelSource
from doubles.speech_transcriber import InMemorySpeechTranscriber
from doubles.text_generator import InMemoryTextGenerator
from doubles.video_decoder import InMemoryVideoDecoder
from doubles.workspace_store import InMemoryWorkspaceStore
from models.pictures import tone

from mlxk.application.generation_input import GenerationOptions, IncomingConversation, Recording
from mlxk.application.policy import answers_about_audio
from mlxk.application.ports.text_generator import TextStream
from mlxk.application.use_cases.describe_model import DescribeModel
from mlxk.application.use_cases.generate_text import GenerateText
from mlxk.application.use_cases.model_tasks import TranscribeAudio
from mlxk.application.use_cases.resolve_model import ResolveModel
from mlxk.domain.errors import Advice, CapabilityError, InsufficientMemoryError, Remedy, ValidationError
from mlxk.domain.generation.conversation import Conversation, Role
from mlxk.domain.generation.request import GenerationRequest
from mlxk.domain.generation.settings import GenerationSettings
from mlxk.domain.models.footprint import MemoryReading
from mlxk.domain.transcription import TranscriptionSettings

COMMIT = "a" * 40
HEADER = json.dumps({"__metadata__": {"format": "mlx"}, "w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}})
COMMON = {
    "model.safetensors": struct.pack("<Q", len(HEADER)) + HEADER.encode() + bytes(16),
    "tokenizer.json": b"{}",
    "tokenizer_config.json": b'{"chat_template": "{{ messages }}"}',
}
MODELS = {
    "org/omni": {**COMMON, "config.json": b'{"model_type": "gemma3n", "audio_config": {"depth": 1}}'},
    "org/text": {**COMMON, "config.json": b'{"model_type": "llama"}'},
    "org/whisper": {**COMMON, "config.json": b'{"model_type": "whisper"}'},
}
SOUNDS = {"/clips/hello.wav": tone(440, 30), "/clips/talk.wav": tone(440, 30.5)}
HELLO, TALK = Recording("/clips/hello.wav", "hello.wav"), Recording("/clips/talk.wav", "talk.wav")
WHAT = Conversation.of("What is said?", "Be brief.")


class Parts:
    """The use case, beside the one for transcripts, and what the model was asked."""

    def __init__(self, memory_bytes: int = 10**12) -> None:
        self.requests: list[GenerationRequest] = []
        cache = InMemoryModelCache({name: CachedModel((COMMIT,)) for name in MODELS})
        workspaces = InMemoryWorkspaceStore()
        files = InMemoryModelFiles({f"/cache/{name}/{COMMIT}": each for name, each in MODELS.items()})
        known = {"mlx-vlm": {"gemma3n"}, "mlx-lm": {"llama", "gemma3n"}, "mlx-audio": {"whisper"}}
        describe = DescribeModel(
            files, workspaces, InMemoryBackendRegistry(known), cache, default_owner="mlx-community"
        )
        resolve = ResolveModel(cache, workspaces, InMemoryModelSource(), default_owner="mlx-community")
        memory = InMemoryMemoryProbe(MemoryReading(memory_bytes, memory_bytes))
        self.generate = GenerateText(
            resolve,
            describe,
            InMemoryTextGenerator(self._answer),
            InMemoryImageReader(),
            InMemoryAudioDecoder(SOUNDS),
            InMemoryVideoDecoder(),
            memory,
            InMemoryEventLog(),
        )
        self._transcribe = TranscribeAudio(InMemorySpeechTranscriber(), memory)
        self._described = lambda name: describe(resolve(name))

    def transcribe(self, model: str, recording: Recording, settings: TranscriptionSettings) -> None:
        self._transcribe(self._described(model), recording, settings)

    def ask(self, model: str, recording: Recording, prompt: Conversation, **options: Any) -> TextStream:
        prompts = [IncomingConversation.of(prompt, recording)]
        (stream,) = self.generate(model, prompts, GenerationOptions(**options))
        return stream

    def _answer(self, request: GenerationRequest) -> tuple[str, ...]:
        self.requests.append(request)
        return ("Hello.",)


def test_a_recording_is_played_in_the_last_turn_to_mlx_vlm_and_heard_greedily() -> None:
    parts = Parts()
    list(parts.ask("org/omni", HELLO, WHAT))
    (request,) = parts.requests
    assert isinstance(request.prompt, Conversation)
    system, turn = request.prompt.messages
    assert (system.role, system.content, system.parts) == (Role.SYSTEM, "Be brief.", ())
    assert (turn.content, turn.parts) == ("What is said?", (SOUNDS[HELLO.path], "What is said?"))
    assert (request.backends[0], request.settings.temperature) == ("mlx-vlm", 0.0)


def test_a_temperature_that_was_asked_for_is_kept() -> None:
    parts = Parts()
    list(parts.ask("org/omni", HELLO, Conversation.of("Sing."), settings=GenerationSettings(temperature=0.5)))
    assert parts.requests[0].settings.temperature == 0.5


def test_a_recording_longer_than_the_model_hears_is_refused_with_both_numbers() -> None:
    parts = Parts()
    with pytest.raises(ValidationError, match=r"talk\.wav has 30\.5 s of sound; .* at most 30 s") as refusal:
        parts.ask("org/omni", TALK, WHAT)
    assert refusal.value.hint is not None
    assert refusal.value.hint.startswith("Cut it, or use a speech-to-text model")
    assert parts.requests == []


@pytest.mark.parametrize(("model", "hears"), [("org/omni", True), ("org/text", False), ("org/whisper", False)])
def test_only_models_that_write_text_and_take_sound_are_asked(model: str, hears: bool) -> None:
    parts = Parts()
    assert answers_about_audio(parts.generate.describe(parts.generate.resolve(model))) is hears
    if not hears:
        with pytest.raises(CapabilityError):
            parts.ask(model, HELLO, WHAT)


def test_a_model_beyond_the_memory_is_refused() -> None:
    with pytest.raises(InsufficientMemoryError):
        Parts(memory_bytes=1).ask("org/omni", HELLO, WHAT)


def test_such_a_model_writes_no_transcripts_and_the_refusal_says_what_to_do() -> None:
    with pytest.raises(CapabilityError, match="not a transcription model") as refusal:
        Parts().transcribe("org/omni", HELLO, TranscriptionSettings())
    assert refusal.value.hint == Advice(Remedy.USE_CHAT)
