"""Every family of speech models in mlx-audio: what it is asked, and what becomes of its answer."""

import importlib
import inspect
import math
import types
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx_audio.stt
import numpy as np
import pytest
from doubles.event_log import InMemoryEventLog
from hypothesis import given
from hypothesis import strategies as st
from mlx_audio.stt.models.base import STTOutput
from mlx_audio.stt.models.nemo.alignment import AlignedResult, AlignedSentence, AlignedToken
from models.tiny_speech import build_moonshine, murmur, write_wav

from mlxk.adapters.mlx.audio_file import AudioSamples
from mlxk.adapters.mlx.speech import speech_model
from mlxk.adapters.mlx.speech.chunked import ChunkedDecoder, chunk_result, split
from mlxk.adapters.mlx.speech.transcriber import MlxSpeechTranscriber
from mlxk.adapters.mlx.text_generator import MlxTextGenerator
from mlxk.adapters.system import SystemClock
from mlxk.domain.errors import CapabilityError, IncompatibleModelError
from mlxk.domain.models.model import ModelHandle
from mlxk.domain.transcription import SpeechTask, Transcript, TranscriptionRequest, TranscriptionSettings

MODELS = Path(mlx_audio.stt.__path__[0]) / "models"
FAMILIES = sorted(path.name for path in MODELS.iterdir() if (path / "__init__.py").exists())
NOT_MODELS = {"nemo"}
"""Packages of parts that families share."""
SILENT = {"lasr_ctc", "qwen3_forced_aligner", "wav2vec"}
"""Families that do not transcribe speech: an encoder, an aligner, and one that returns tokens only."""
BEHIND = {"phonon": "PhononASRModel", "qwen3_asr": "Qwen3ASRModel"}
"""What ``Model`` makes, for families where it is only a name."""
WRITING = [name for name in FAMILIES if name not in NOT_MODELS | SILENT | {speech_model.WHISPER}]

SECONDS = 30.0
SETTINGS = [
    TranscriptionSettings(),
    TranscriptionSettings(language="de"),
    TranscriptionSettings(language="german", hint="names", words=True),
    TranscriptionSettings(temperature=0.5),
]


def generate_of(family: str) -> Any:
    """Return the ``generate`` that mlx-audio gives a family's checkpoints; None when there is none."""
    package = importlib.import_module(f"mlx_audio.stt.models.{family}")
    return getattr(getattr(package, BEHIND.get(family, "Model")), "generate", None)


def decoder_for(family: str) -> ChunkedDecoder:
    """Return our side of a family, without weights: only its ``generate`` is looked at."""
    generate = generate_of(family)
    network = SimpleNamespace(generate=types.MethodType(generate, object())) if generate else SimpleNamespace()
    if family == "mega_asr":
        network._asr = SimpleNamespace(generate=types.MethodType(generate_of("qwen3_asr"), object()))
    return ChunkedDecoder(network, f"org/{family}", family)


@pytest.mark.parametrize("family", WRITING)
@pytest.mark.parametrize("settings", SETTINGS, ids=["usual", "language", "everything", "temperature"])
def test_what_a_family_is_asked_fits_its_signature_or_is_refused_by_name(
    family: str, settings: TranscriptionSettings
) -> None:
    decoder = decoder_for(family)
    try:
        arguments = decoder.arguments(settings, SECONDS)
    except CapabilityError as refusal:
        assert refusal.message.startswith(("language", "prompt", "temperature"))
        return
    inspect.signature(generate_of(family)).bind(object(), "piece.wav", **arguments)
    assert arguments.get("max_tokens", 10_000) > SECONDS * 10


@pytest.mark.parametrize("family", sorted(SILENT))
def test_a_family_that_does_not_write_is_refused(family: str) -> None:
    with pytest.raises(IncompatibleModelError, match="does not transcribe speech"):
        decoder_for(family)


def test_no_family_but_whisper_is_asked_to_translate() -> None:
    sound = AudioSamples(np.zeros(speech_model.SAMPLE_RATE, np.float32), speech_model.SAMPLE_RATE)
    with pytest.raises(CapabilityError, match="does not translate"):
        next(decoder_for("canary").decode(sound, TranscriptionSettings(task=SpeechTask.TRANSLATE)))


def test_languages_are_given_as_each_family_knows_them() -> None:
    german = TranscriptionSettings(language="de")
    assert decoder_for("qwen3_asr").arguments(german, 1.0)["language"] == "German"
    assert decoder_for("granite_speech").arguments(german, 1.0)["source_language"] == "de"
    assert decoder_for("voxtral").arguments(TranscriptionSettings(language="German"), 1.0)["language"] == "de"
    for spelled in ("pt-BR", "pt_BR", "PT-br", "Portuguese"):
        told = TranscriptionSettings(language=spelled)
        assert decoder_for("voxtral").arguments(told, 1.0)["language"] == "pt"
        assert decoder_for("qwen3_asr").arguments(told, 1.0)["language"] == "Portuguese"
    with pytest.raises(CapabilityError, match="language: model 'org/parakeet' cannot be told"):
        decoder_for("parakeet").arguments(german, 1.0)


@pytest.mark.parametrize(
    ("requested", "key"),
    [("de", "de-DE"), ("German", "de-DE"), ("en", "en-US"), ("en_gb", "en-GB"), ("EN-GB", "en-GB"), ("French", "fr")],
)
def test_a_language_is_one_of_the_keys_that_a_model_has(requested: str, key: str) -> None:
    decoder = with_keys("en-US", "en-GB", "de-DE", "fr")
    assert decoder.arguments(TranscriptionSettings(language=requested), 1.0)["language"] == key


def test_a_language_for_which_a_model_has_no_key_is_refused() -> None:
    with pytest.raises(CapabilityError, match=r"^language: model 'org/keyed' does not know 'Spanish'\.$"):
        with_keys("en-US", "de-DE").arguments(TranscriptionSettings(language="Spanish"), 1.0)


def with_keys(*keys: str) -> ChunkedDecoder:
    """Return our side of a model that has a prompt for each of some languages."""

    def generate(audio: str, *, language: str = "") -> STTOutput:
        raise ValueError(f"Unsupported language: {language}" if language else "no sound")

    network = SimpleNamespace(generate=generate, prompt_dictionary=dict.fromkeys(keys, 0))
    return ChunkedDecoder(network, "org/keyed", "keyed")


def test_a_model_that_refuses_a_language_is_no_fault_of_ours_and_another_refusal_is_passed_on() -> None:
    sound = AudioSamples(np.zeros(16_000, np.float32), 16_000)
    with pytest.raises(CapabilityError, match=r"^language: model 'org/keyed' does not know 'fr'\.$"):
        list(with_keys("fr").decode(sound, TranscriptionSettings(language="fr")))
    with pytest.raises(ValueError, match="no sound"):
        list(with_keys("fr").decode(sound, TranscriptionSettings()))


def test_a_hint_goes_where_a_family_takes_one_and_never_replaces_its_instruction() -> None:
    hinted = TranscriptionSettings(hint="Ada, Grace")
    assert decoder_for("vibevoice_asr").arguments(hinted, 1.0)["context"] == "Ada, Grace"
    assert decoder_for("granite_speech").arguments(hinted, 1.0)["hotwords"] == ["Ada, Grace"]
    with pytest.raises(CapabilityError, match="prompt"):
        decoder_for("moonshine").arguments(hinted, 1.0)


@pytest.mark.parametrize(
    ("family", "settings", "name"),
    [
        ("parakeet", TranscriptionSettings(language="de"), "language"),
        ("moonshine", TranscriptionSettings(hint="Ada"), "prompt"),
        ("parakeet", TranscriptionSettings(temperature=0.5), "temperature"),
    ],
)
def test_a_setting_that_a_family_does_not_take_is_named_before_anything_is_heard(
    family: str, settings: TranscriptionSettings, name: str
) -> None:
    events = decoder_for(family).decode(AudioSamples(np.zeros(16_000, np.float32), 16_000), settings)
    with pytest.raises(CapabilityError, match=f"^{name}: ") as caught:
        next(events)
    assert caught.value.detail is not None
    assert caught.value.detail["problems"] == [{"param": name, "message": caught.value.message[len(name) + 2 :]}]


def test_plain_text_is_one_segment_of_the_piece() -> None:
    result = chunk_result(STTOutput(" Hello. ", segments=[{"text": "Hello.", "start": 0.0, "end": 0.0}]), 4.0)
    assert (result.text, result.language) == ("Hello.", None)
    assert [(each.text, each.start, each.end) for each in result.segments] == [("Hello.", 0.0, 4.0)]
    assert chunk_result("Hello.", 4.0) == result
    assert chunk_result([STTOutput("Hello.")], 4.0) == result


def test_segments_keep_times_speakers_words_and_languages() -> None:
    word = {"word": "Hallo", "start": 0.5, "end": 0.9, "probability": np.float32(0.5)}
    found = [
        {"start_time": "0.5", "end_time": 1.0, "content": "Hallo", "speaker_id": 1, "words": [word]},
        {"start": 1.0, "end": 99.0, "text": " Welt", "avg_logprob": math.nan, "words": [7, {**word, "end": "soon"}]},
    ]
    result = chunk_result(STTOutput("Hallo Welt", segments=found, language=["German"]), 2.0)
    first, second = result.segments
    assert (first.text, first.start, first.end, first.speaker) == ("Hallo", 0.5, 1.0, "1")
    assert [(each.text, each.start, each.end, each.probability) for each in first.words] == [("Hallo", 0.5, 0.9, 0.5)]
    assert (second.start, second.end, second.mean_logprob, second.words) == (1.0, 2.0, None, ())
    assert result.language == "German"


def test_sentences_of_timed_tokens_become_segments_with_words() -> None:
    tokens = [AlignedToken(0, " He", 0.0, 0.2), AlignedToken(1, "llo", 0.2, 0.2), AlignedToken(2, " you.", 0.5, 0.3)]
    result = chunk_result(AlignedResult(" Hello you.", [AlignedSentence(" Hello you.", tokens)]), 1.0)
    (segment,) = result.segments
    assert (segment.text, segment.start, segment.end) == ("Hello you.", 0.0, pytest.approx(0.8))
    assert [(each.text, each.start, round(each.end, 3)) for each in segment.words] == [
        (" Hello", 0.0, 0.4),
        (" you.", 0.5, 0.8),
    ]


def test_nothing_heard_is_an_empty_transcript() -> None:
    assert chunk_result(STTOutput("", segments=None), 1.0).segments == ()
    assert chunk_result(STTOutput("", segments=[{"text": " "}]), 1.0).segments == ()


@given(st.integers(1, 40_000), st.integers(100, 5_000), st.integers(0, 9))
def test_pieces_put_together_are_the_recording(samples: int, most: int, seed: int) -> None:
    sound = AudioSamples(np.random.default_rng(seed).standard_normal(samples).astype(np.float32), 1000)
    pieces = split(sound, most / 1000)
    assert np.array_equal(np.concatenate([piece.audio.samples for piece in pieces]), sound.samples)
    assert all(0 < len(piece.audio.samples) <= most for piece in pieces)
    assert [round(piece.start * 1000) for piece in pieces] == [
        sum(len(before.audio.samples) for before in pieces[:index]) for index in range(len(pieces))
    ]


def test_a_recording_is_divided_where_it_is_quiet() -> None:
    samples = np.ones(1000, np.float32)
    samples[430:450] = 0
    first, *_ = split(AudioSamples(samples, 100), 5.0)
    assert 430 <= len(first.audio.samples) <= 450


@pytest.fixture(scope="module")
def moonshine(tmp_path_factory: pytest.TempPathFactory) -> ModelHandle:
    return build_moonshine(tmp_path_factory.mktemp("models") / "moonshine")


@pytest.fixture
def transcriber() -> Iterator[MlxSpeechTranscriber]:
    log = InMemoryEventLog()
    generator = MlxTextGenerator(log, SystemClock())
    yield MlxSpeechTranscriber(generator.leases, log)
    generator.close()


def test_another_family_hears_what_mlx_audio_hears(
    moonshine: ModelHandle, transcriber: MlxSpeechTranscriber, tmp_path: Path
) -> None:
    from mlx_audio.stt.utils import load_model

    path = write_wav(tmp_path / "clip.wav", murmur(1.0))
    theirs = load_model(Path(moonshine.directory), model_name_parts=["moonshine"]).generate(str(path), max_tokens=143)
    *_, ours = transcriber.transcribe(TranscriptionRequest(moonshine, str(path), "clip.wav"))
    assert isinstance(ours, Transcript)
    assert ours.text == theirs.text
    assert [(each.text, each.start, each.end) for each in ours.segments] == [(theirs.text, 0.0, 1.0)]


def test_a_long_recording_is_heard_piece_by_piece(
    moonshine: ModelHandle, transcriber: MlxSpeechTranscriber, tmp_path: Path
) -> None:
    path = write_wav(tmp_path / "long.wav", murmur(40.0))
    *heard, transcript = transcriber.transcribe(TranscriptionRequest(moonshine, str(path), "long.wav"))
    assert isinstance(transcript, Transcript)
    assert len(heard) == 3
    first, second = transcript.segments
    assert 24 <= first.end == second.start <= 30
    assert second.end == pytest.approx(40.0)
    assert transcript.text == first.text + second.text
