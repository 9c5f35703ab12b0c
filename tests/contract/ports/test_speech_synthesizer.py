"""The contract of the speech synthesizer, held by every adapter."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from doubles.event_log import InMemoryEventLog
from doubles.speech_synthesizer import InMemorySpeechSynthesizer
from models.tiny_voices import build_qwen3_tts, build_soprano, build_voxcpm, write_recording

from mlxk.adapters.mlx.text_generator import MlxTextGenerator
from mlxk.adapters.mlx.voice.synthesizer import MlxSpeechSynthesizer
from mlxk.adapters.system import SystemClock
from mlxk.application.ports.model_tasks import SpeechSynthesizer
from mlxk.domain.errors import ValidationError
from mlxk.domain.models.model import ModelHandle, Origin
from mlxk.domain.synthesis import (
    SpeechBegun,
    SpeechEnded,
    SpokenPart,
    SynthesisRequest,
    SynthesisSettings,
    VoiceSample,
)

TEXT = "Hello world, how are you today, my friend? It is a fine day for a walk in the park."


class Case:
    """A synthesizer and a model."""

    def __init__(self, synthesizer: SpeechSynthesizer, model: ModelHandle, voice: str | None) -> None:
        self.synthesizer = synthesizer
        self._model = model
        self._voice = voice

    def request(self, text: str = TEXT, **settings: object) -> SynthesisRequest:
        """Return a request to speak a text."""
        return SynthesisRequest(self._model, text, SynthesisSettings(voice=self._voice, **settings))  # type: ignore[arg-type]

    def speak(self, text: str = TEXT, **settings: object) -> tuple[SpeechBegun, list[SpokenPart], SpeechEnded]:
        """Return what is spoken."""
        begun, *parts, ended = self.synthesizer.synthesize(self.request(text, **settings))
        assert isinstance(begun, SpeechBegun)
        assert isinstance(ended, SpeechEnded)
        return begun, [part for part in parts if isinstance(part, SpokenPart)], ended


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("voices")


@pytest.fixture(scope="module")
def generator() -> Iterator[MlxTextGenerator]:
    made = MlxTextGenerator(InMemoryEventLog(), SystemClock())
    yield made
    made.close()


@pytest.fixture(scope="module", params=["soprano", "qwen3_tts", "in_memory"])
def case(request: pytest.FixtureRequest, folder: Path, generator: MlxTextGenerator) -> Case:
    """Return each adapter with a model."""
    if request.param == "in_memory":
        return Case(InMemorySpeechSynthesizer(), ModelHandle("org/voice", "/cache/voice", Origin.CACHE), None)
    builds = {"soprano": build_soprano, "qwen3_tts": build_qwen3_tts}
    model = builds[request.param](folder / request.param)
    return Case(MlxSpeechSynthesizer(generator.leases), model, "ryan" if request.param == "qwen3_tts" else None)


def test_the_sound_of_each_piece_begins_and_ends_at_zero_and_its_length_is_told(case: Case) -> None:
    begun, parts, ended = case.speak()
    assert {part.pieces for part in parts} == {2}
    assert [part.piece for part in parts] == sorted(part.piece for part in parts)
    for piece in (0, 1):
        sound = np.frombuffer(b"".join(part.pcm for part in parts if part.piece == piece), "<i2")
        assert np.abs(sound).max() > 0
        assert sound[0] == sound[-1] == 0
    samples = sum(len(part.pcm) for part in parts) // 2
    assert ended.seconds == pytest.approx(samples / begun.sample_rate)
    assert ended.text_tokens > 0
    assert ended.sound_tokens > 0


def test_another_sample_rate_is_that_of_all_sound(case: Case) -> None:
    begun, parts, _ = case.speak("One, two, three, four.", sample_rate=16_000)
    assert begun.sample_rate == 16_000
    assert all(part.pcm for part in parts)


def test_closing_it_stops_it_and_the_next_one_speaks(case: Case) -> None:
    events = case.synthesizer.synthesize(case.request())
    assert isinstance(next(events), SpeechBegun)
    assert isinstance(next(events), SpokenPart)
    events.close()
    assert case.speak("Yes, I am.")[1]


@pytest.fixture(scope="module", params=["qwen3_tts", "voxcpm", "voxcpm2", "in_memory"])
def cloner(request: pytest.FixtureRequest, folder: Path, generator: MlxTextGenerator) -> Case:
    """Return each adapter with a model that imitates voices."""
    if request.param == "in_memory":
        return Case(InMemorySpeechSynthesizer(), ModelHandle("org/cloner", "/cache/cloner", Origin.CACHE), None)
    place = folder / f"cloning-{request.param}"
    version = 2 if request.param == "voxcpm2" else 1
    model = build_qwen3_tts(place, "base") if request.param == "qwen3_tts" else build_voxcpm(place, version)
    return Case(MlxSpeechSynthesizer(generator.leases), model, None)


def test_a_text_is_spoken_in_the_voice_of_a_recording(cloner: Case, tmp_path: Path) -> None:
    write_recording(tmp_path / "ada.wav")
    begun, parts, ended = cloner.speak(sample=VoiceSample(str(tmp_path / "ada.wav"), "ada.wav", "Good morning."))
    assert begun.takes_sample_text
    assert {part.piece for part in parts} == {0, 1}
    assert ended.seconds > 0


@pytest.mark.parametrize(
    ("seconds", "level", "fault"), [(None, 0, "not found: ada.wav"), (2.0, 0, "recording is silent: ada.wav")]
)
def test_a_recording_that_is_none_is_refused_by_name(
    seconds: float | None, level: int, fault: str, cloner: Case, tmp_path: Path
) -> None:
    if seconds is not None:
        write_recording(tmp_path / "ada.wav", seconds, level)
    with pytest.raises(ValidationError, match=fault):
        cloner.speak(sample=VoiceSample(str(tmp_path / "ada.wav"), "ada.wav", "Good morning."))


@pytest.mark.parametrize(
    ("text", "settings", "fault"),
    [
        ("...", {}, "input has no letter or digit"),
        ("a" * 200_001, {}, "input must have at most 200000 characters"),
        ("a", {"speed": 5.0}, "speed must be at least 0.25 and at most 4"),
        ("a", {"speed": float("nan")}, "speed"),
        ("a", {"instructions": "a" * 5000}, "instructions must have at most 4096"),
        ("a", {"sample": VoiceSample("a.wav", "a.wav", "a" * 2001)}, "clone_text must have at most 2000"),
        ("a", {"sample": VoiceSample("a.wav", "a.wav", "..")}, "clone_text has no letter or digit"),
    ],
)
def test_a_request_out_of_range_is_refused(case: Case, text: str, settings: dict[str, object], fault: str) -> None:
    with pytest.raises(ValidationError, match=fault):
        case.speak(text, **settings)
