"""Models that ask for code of their own: it never runs, whoever asks and whatever would load them."""

import json
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from doubles.event_log import InMemoryEventLog
from models.tiny_embedding import build_bert
from models.tiny_speech import build_whisper, murmur, write_wav

from mlxk.adapters.mlx.embedding.embedder import MlxTextEmbedder
from mlxk.adapters.mlx.loading.model_files import offline, refuse_untrusted_code
from mlxk.adapters.mlx.speech.transcriber import MlxSpeechTranscriber
from mlxk.adapters.mlx.text_generator import MlxTextGenerator
from mlxk.adapters.system import SystemClock
from mlxk.domain.embedding import EmbeddingRequest
from mlxk.domain.errors import UnhealthyModelError, UntrustedModelCodeError
from mlxk.domain.models.model import ModelHandle, Origin
from mlxk.domain.transcription import TranscriptionRequest

Attack = Callable[[Path], None]

CODE = "import pathlib\npathlib.Path({trace!r}).touch()\n"
AUTO_MAP = {"AutoModel": "evil.Model", "AutoTokenizer": ["evil.Tokenizer", None], "AutoProcessor": "evil.Processor"}


class Evil:
    """Leaves a trace when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.trace,)


def asks_for_code(path: str, entry: dict[str, object]) -> Attack:
    """Return an attack: a JSON document that names a Python file, which is there."""

    def attack(directory: Path) -> None:
        (directory / "evil.py").write_text(CODE.format(trace=str(directory.parent / "trace")))
        document = directory / path
        document.parent.mkdir(exist_ok=True)
        known = json.loads(document.read_text()) if document.exists() else {}
        document.write_text(json.dumps({**known, **entry}))

    return attack


def brings_a_pickle(name: str) -> Attack:
    """Return an attack: a file that runs code when it is unpickled."""

    def attack(directory: Path) -> None:
        (directory / name).write_bytes(pickle.dumps(Evil(directory.parent / "trace")))

    return attack


ATTACKS = {
    "model_file": asks_for_code("config.json", {"model_file": "evil.py"}),
    "config": asks_for_code("config.json", {"auto_map": AUTO_MAP}),
    "nested": asks_for_code("config.json", {"text_config": {"parts": [{"auto_map": AUTO_MAP}]}}),
    "tokenizer": asks_for_code("tokenizer_config.json", {"auto_map": AUTO_MAP}),
    "preprocessor": asks_for_code("preprocessor_config.json", {"auto_map": AUTO_MAP}),
    "processor": asks_for_code("processor_config.json", {"auto_map": AUTO_MAP}),
    "subfolder": asks_for_code("1_Pooling/config.json", {"auto_map": AUTO_MAP}),
    "any document": asks_for_code("something.json", {"auto_map": AUTO_MAP}),
    "pickle": brings_a_pickle("processor.pkl"),
}


@pytest.fixture
def generator() -> Iterator[MlxTextGenerator]:
    generator = MlxTextGenerator(InMemoryEventLog(), SystemClock())
    yield generator
    generator.close()


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_a_speech_model_that_would_run_code_does_not(
    attack: Attack, generator: MlxTextGenerator, tmp_path: Path
) -> None:
    model = build_whisper(tmp_path / "whisper")
    attack(Path(model.directory))
    clip = write_wav(tmp_path / "clip.wav", murmur(0.2))
    transcriber = MlxSpeechTranscriber(generator.leases, InMemoryEventLog())
    with pytest.raises(UntrustedModelCodeError, match="never executed"):
        list(transcriber.transcribe(TranscriptionRequest(model, str(clip), "clip.wav")))
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_an_embedding_model_that_would_run_code_does_not(
    attack: Attack, generator: MlxTextGenerator, tmp_path: Path
) -> None:
    model = build_bert(tmp_path / "bert")
    attack(Path(model.directory))
    with pytest.raises(UntrustedModelCodeError, match="never executed"):
        MlxTextEmbedder(generator.leases).embed(EmbeddingRequest(model, ("hello",)))
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("pipe", ["x.json", "modules.json", "1_Pooling/config.json"])
def test_pipes_among_the_files_of_a_model_are_not_waited_for(
    pipe: str, generator: MlxTextGenerator, tmp_path: Path
) -> None:
    embedding, speech = build_bert(tmp_path / "bert"), build_whisper(tmp_path / "whisper")
    for model in (embedding, speech):
        path = Path(model.directory) / pipe
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        os.mkfifo(path)
    with pytest.raises(UnhealthyModelError, match=f"{pipe} .* no regular file"):
        MlxTextEmbedder(generator.leases).embed(EmbeddingRequest(embedding, ("hello",)))
    clip = write_wav(tmp_path / "clip.wav", murmur(0.2))
    transcriber = MlxSpeechTranscriber(generator.leases, InMemoryEventLog())
    with pytest.raises(UnhealthyModelError, match=f"{pipe} .* no regular file"):
        list(transcriber.transcribe(TranscriptionRequest(speech, str(clip), "clip.wav")))


def test_a_pipe_in_place_of_a_speech_models_config_is_not_waited_for(
    generator: MlxTextGenerator, tmp_path: Path
) -> None:
    model = build_whisper(tmp_path / "whisper")
    (tmp_path / "whisper" / "config.json").unlink()
    os.mkfifo(tmp_path / "whisper" / "config.json")
    transcriber = MlxSpeechTranscriber(generator.leases, InMemoryEventLog())
    with pytest.raises(UnhealthyModelError, match=r"config\.json"):
        list(transcriber.transcribe(TranscriptionRequest(model, str(tmp_path / "clip.wav"), "clip.wav")))


def test_links_and_directories_are_files_of_a_model_like_others(generator: MlxTextGenerator, tmp_path: Path) -> None:
    model = build_bert(tmp_path / "bert")
    for file in list((tmp_path / "bert").iterdir()):
        blob = file.rename(tmp_path / f"blob-{file.name}")
        file.symlink_to(blob)
    (tmp_path / "bert" / "more").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "bert" / "notes").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "bert" / "gone.json").symlink_to(tmp_path / "nowhere")
    assert MlxTextEmbedder(generator.leases).embed(EmbeddingRequest(model, ("hello",))).vectors


def test_weights_that_are_a_pickle_are_refused_unless_there_are_safe_ones(tmp_path: Path) -> None:
    handle = ModelHandle("org/model", str(tmp_path), Origin.CACHE)
    brings_a_pickle("pytorch_model.bin")(tmp_path)
    with pytest.raises(UntrustedModelCodeError, match=r"pytorch_model\.bin"):
        refuse_untrusted_code(handle)
    (tmp_path / "model.safetensors").touch()
    refuse_untrusted_code(handle)


def test_words_in_a_vocabulary_are_no_entries_of_a_config(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps({"auto_map": 17, "model_file": 18}))
    (tmp_path / "config.json").write_text(json.dumps({"auto_map": {}, "model_file": None}))
    refuse_untrusted_code(ModelHandle("org/model", str(tmp_path), Origin.CACHE))


def test_a_document_that_cannot_be_read_asks_for_nothing(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"{\xff")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    refuse_untrusted_code(ModelHandle("org/model", str(tmp_path), Origin.CACHE))


def test_a_directory_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(UnhealthyModelError):
        refuse_untrusted_code(ModelHandle("org/model", str(tmp_path / "nowhere"), Origin.CACHE))


def test_the_hub_client_is_offline_inside_and_as_before_outside() -> None:
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = False
    try:
        with offline():
            assert constants.HF_HUB_OFFLINE
        assert not constants.HF_HUB_OFFLINE
    finally:
        constants.HF_HUB_OFFLINE = before
