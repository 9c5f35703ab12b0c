"""Whisper through our own loop over windows: what mlx-audio hears in one call, we hear window by window."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from doubles.event_log import InMemoryEventLog
from mlx_audio.stt import utils
from mlx_audio.stt.models.whisper.whisper import MultiHeadAttention
from models.tiny_speech import build_whisper, murmur, write_wav

from mlxk.adapters.builtin import PackagedModelSource
from mlxk.adapters.mlx.loading.widening import widen
from mlxk.adapters.mlx.speech.transcriber import MlxSpeechTranscriber
from mlxk.adapters.mlx.speech.whisper import EncoderAttention, compute_on_cpu
from mlxk.adapters.mlx.text_generator import MlxTextGenerator
from mlxk.adapters.system import SystemClock
from mlxk.domain.errors import CapabilityError, ExecutionError, MlxkError, UnhealthyModelError
from mlxk.domain.generation.request import GenerationRequest, TextDelta
from mlxk.domain.generation.settings import GenerationSettings
from mlxk.domain.models.model import ModelHandle
from mlxk.domain.transcription import (
    SpeechTask,
    Transcript,
    TranscriptionProgress,
    TranscriptionRequest,
    TranscriptionSettings,
)

pytestmark = pytest.mark.mlx


class Ear:
    """A transcriber on an engine of its own."""

    def __init__(self) -> None:
        self.log = InMemoryEventLog()
        self.generator = MlxTextGenerator(self.log, SystemClock())
        self.transcriber = MlxSpeechTranscriber(self.generator.leases, self.log)

    def hear(self, model: ModelHandle, path: Path, **settings: Any) -> Transcript:
        """Return what is heard."""
        request = TranscriptionRequest(model, str(path), path.name, TranscriptionSettings(**settings))
        *_, transcript = self.transcriber.transcribe(request)
        assert isinstance(transcript, Transcript)
        return transcript


@pytest.fixture(scope="module")
def ear() -> Iterator[Ear]:
    """Return one transcriber for all tests, as a server has one."""
    ear = Ear()
    yield ear
    ear.generator.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("speech")


@pytest.fixture(scope="module")
def english(folder: Path) -> ModelHandle:
    return build_whisper(folder / "english", seed=1)


@pytest.fixture(scope="module")
def multilingual(folder: Path) -> ModelHandle:
    return build_whisper(folder / "multilingual", multilingual=True)


@pytest.fixture(scope="module")
def demo() -> ModelHandle:
    found = PackagedModelSource().find("demo-speech")
    assert found is not None
    return found


def by_mlx_audio(model: ModelHandle, path: Path, **settings: Any) -> Any:
    """Return what mlx-audio's own ``generate`` hears."""
    from mlx_audio.stt.utils import load_model

    network = load_model(Path(model.directory), model_name_parts=["whisper"])
    return network.generate(str(path), **{"temperature": 0.0, **settings})


def assert_same(ours: Transcript, theirs: Any) -> None:
    """Compare text, language and every segment; theirs keeps segments that were found to be empty."""
    segments = [each for each in theirs.segments if each["text"]]
    assert (ours.text, ours.language) == (theirs.text.strip(), theirs.language)
    assert [each.text for each in ours.segments] == [each["text"] for each in segments]
    assert [list(each.tokens) for each in ours.segments] == [each["tokens"] for each in segments]
    for mine, other in zip(ours.segments, segments, strict=True):
        assert mine.start == pytest.approx(other["start"], abs=1e-6)
        assert mine.end == pytest.approx(max(other["start"], other["end"]), abs=1e-6)
        assert mine.offset == other["seek"]
        spoken = [(each["word"], each["start"], each["end"]) for each in other.get("words", ())]
        assert [(each.text, each.start, each.end) for each in mine.words] == spoken


@pytest.mark.parametrize("seconds", [0.004, 0.9, 34.0])
def test_a_model_for_english_hears_what_mlx_audio_hears(
    seconds: float, ear: Ear, english: ModelHandle, folder: Path
) -> None:
    path = write_wav(folder / "clip.wav", murmur(seconds, seed=int(seconds)))
    assert_same(ear.hear(english, path), by_mlx_audio(english, path))


def test_a_multilingual_model_finds_the_language_that_mlx_audio_finds(
    ear: Ear, multilingual: ModelHandle, folder: Path
) -> None:
    path = write_wav(folder / "clip.wav", murmur(3.0, seed=5))
    theirs = by_mlx_audio(multilingual, path)
    ours = ear.hear(multilingual, path)
    assert_same(ours, theirs)
    told = ear.hear(multilingual, path, language=theirs.language)
    assert (told.text, told.language) == (ours.text, ours.language)


def test_words_are_timed_as_mlx_audio_times_them(ear: Ear, demo: ModelHandle) -> None:
    path = Path(demo.directory, "question.wav")
    ours = ear.hear(demo, path, words=True)
    assert_same(ours, by_mlx_audio(demo, path, word_timestamps=True))
    assert [each.text for each in ours.words] == [" What", " is", " mlxk?"]


def test_translation_and_hints_reach_the_model(ear: Ear, multilingual: ModelHandle, folder: Path) -> None:
    path = write_wav(folder / "clip.wav", murmur(2.0, seed=3))
    translated = ear.hear(multilingual, path, task=SpeechTask.TRANSLATE, language="german")
    assert_same(translated, by_mlx_audio(multilingual, path, task="translate", language="de"))
    hinted = ear.hear(multilingual, path, hint="one two three")
    assert_same(hinted, by_mlx_audio(multilingual, path, initial_prompt="one two three"))


def test_the_built_in_model_writes_down_its_samples_as_mlx_audio_does(ear: Ear, demo: ModelHandle) -> None:
    expected = {
        "hello.wav": "Hello world.",
        "question.wav": "What is mlxk?",
        "two-phrases.wav": "Good morning. Nothing leaves your machine.",
    }
    for name, text in expected.items():
        path = Path(demo.directory, name)
        ours = ear.hear(demo, path)
        assert ours.text == text
    assert_same(ours, by_mlx_audio(demo, path))
    assert [segment.text for segment in ours.segments] == [" Good morning.", " Nothing leaves your machine."]


@pytest.mark.parametrize("language", ["de", "german", "xx"])
def test_a_language_that_the_model_does_not_know_is_refused(
    language: str, ear: Ear, english: ModelHandle, folder: Path
) -> None:
    path = write_wav(folder / "clip.wav", murmur(1.0))
    with pytest.raises(CapabilityError, match="language"):
        ear.hear(english, path, language=language)


def test_a_model_without_its_tokenizer_is_refused_with_what_is_missing(ear: Ear, folder: Path) -> None:
    model = build_whisper(folder / "no-tokenizer")
    Path(model.directory, "preprocessor_config.json").unlink()
    path = write_wav(folder / "clip.wav", murmur(1.0))
    with pytest.raises(UnhealthyModelError, match="tokenizer or preprocessor"):
        ear.hear(model, path)


def test_a_truncated_weight_file_is_a_typed_error(ear: Ear, folder: Path) -> None:
    model = build_whisper(folder / "truncated")
    weights = Path(model.directory, "model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(MlxkError, match=r"could not be loaded|fit together"):
        ear.hear(model, write_wav(folder / "clip.wav", murmur(1.0)))


def test_answers_go_on_while_a_recording_is_heard(ear: Ear, english: ModelHandle, folder: Path) -> None:
    path = write_wav(folder / "long.wav", murmur(65.0))
    text_model = PackagedModelSource().find("demo")
    assert text_model is not None
    settings = GenerationSettings(max_tokens=500, temperature=0.0, ignore_eos=True)
    events = ear.transcriber.transcribe(TranscriptionRequest(english, str(path), path.name))
    first = next(events)
    meanwhile = []
    with ear.generator.submit(GenerationRequest(text_model, "Count", settings)) as stream:
        for event in events:
            meanwhile.extend(stream.take())
            if isinstance(event, Transcript):
                break
    assert isinstance(first, TranscriptionProgress)
    assert any(isinstance(event, TextDelta) for event in meanwhile)
    assert ear.generator.state(5.0).responding


def test_a_recording_that_is_given_up_leaves_the_engine_free(ear: Ear, english: ModelHandle, folder: Path) -> None:
    path = write_wav(folder / "long.wav", murmur(65.0))
    events = ear.transcriber.transcribe(TranscriptionRequest(english, str(path), path.name))
    next(events)
    events.close()
    assert english in ear.generator.unload()


def test_a_closed_engine_refuses_and_does_not_hang(english: ModelHandle, folder: Path) -> None:
    ear = Ear()
    path = write_wav(folder / "clip.wav", murmur(65.0))
    events = ear.transcriber.transcribe(TranscriptionRequest(english, str(path), path.name))
    next(events)
    ear.generator.close()
    with pytest.raises(ExecutionError, match="closed"):
        list(events)


def test_silence_is_not_crawled_through(ear: Ear, demo: ModelHandle, folder: Path) -> None:
    path = write_wav(folder / "silence.wav", [0.0] * (29 * 16_000))
    request = TranscriptionRequest(demo, str(path), "silence.wav", TranscriptionSettings())
    *events, transcript = ear.transcriber.transcribe(request)
    assert isinstance(transcript, Transcript)
    assert len(events) < 10


def test_memory_for_a_recording_of_six_minutes_is_bounded(folder: Path) -> None:
    import mlx.core as mx

    from mlxk.adapters.mlx.speech.whisper import Spectrum

    sound = murmur(360.0)
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    spectrum = Spectrum(sound, 80)
    assert spectrum.frames == 36_000
    assert mx.get_peak_memory() - before < 64 * 1024**2


def test_a_config_nested_without_end_is_not_readable(ear: Ear, tmp_path: Path) -> None:
    model = build_whisper(tmp_path / "whisper")
    (tmp_path / "whisper" / "config.json").write_text("[" * 100_000)
    with pytest.raises(UnhealthyModelError, match=r"no readable config\.json"):
        ear.hear(model, tmp_path / "clip.wav")


def test_the_encoder_in_32_bits_computes_the_same_by_other_means(english: ModelHandle) -> None:
    network = utils.load_model(Path(english.directory), model_name_parts=["whisper"])
    widen(network)
    frames, bands = 2 * network.dims.n_audio_ctx, network.dims.n_mels
    for scale in (1.0, 40.0):
        mel = mx.random.normal((2, frames, bands), key=mx.random.key(1)) * scale
        plain = network.encoder(mel)
        compute_on_cpu(network)
        assert {type(block.attn) for block in network.encoder.blocks} == {EncoderAttention}
        assert mx.allclose(network.encoder(mel), plain, rtol=1e-3, atol=1e-4)
        for block in network.encoder.blocks:
            block.attn.__class__ = MultiHeadAttention
    half = mx.ones((1, 4, network.dims.n_audio_state), mx.float16)
    attention = network.encoder.blocks[0].attn
    plain = attention.qkv_attention(half, half, half)[0]
    compute_on_cpu(network)
    assert mx.array_equal(attention.qkv_attention(half, half, half)[0], plain)
