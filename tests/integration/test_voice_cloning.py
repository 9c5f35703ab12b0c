"""Speech in the voice of a recording: what is read of it, who may ask, ``mlxk say``, the server, and what is left."""

import base64
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from doubles.event_log import InMemoryEventLog
from models.tiny_voices import QWEN_RATE, build_qwen3_tts, build_soprano, build_voxcpm, write_recording
from serving.forms import FormPart, post_form, uploads_left_behind
from serving.parts import CLONER, CLONER_MODEL, VOICE, VOICE_MODEL, Parts
from serving.running import RunningServer
from serving.whole_program import WholeProgram

from mlxk.adapters.filesystem.media_folders import FolderMediaSource
from mlxk.adapters.mlx.engine.model_pool import WantedModel
from mlxk.adapters.mlx.spoken_families import FAMILIES
from mlxk.adapters.mlx.text_generator import MlxTextGenerator
from mlxk.adapters.mlx.voice import sound
from mlxk.adapters.mlx.voice.loader import Voice, load_voice
from mlxk.adapters.mlx.voice.synthesizer import MlxSpeechSynthesizer
from mlxk.adapters.system import SystemClock
from mlxk.application.named_media import NamedMedia
from mlxk.domain.errors import MlxkError, ValidationError
from mlxk.domain.models.detection import clones_voices
from mlxk.domain.models.model import ModelHandle, Origin
from mlxk.domain.synthesis import SpeechBegun, SynthesisRequest, SynthesisSettings, VoiceSample
from mlxk.entrypoints.cli.command import CommandContext
from mlxk.entrypoints.cli.program import run
from mlxk.entrypoints.container import build
from mlxk.entrypoints.settings import ServerSettings, read_settings

pytestmark = pytest.mark.mlx

SAID = "Good morning, secret listeners."
TEXT = "Hello world, how are you today, my friend? It is a fine day for a walk in the park."


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a model of each kind, and a recording."""
    folder = tmp_path_factory.mktemp("home")
    build_qwen3_tts(folder / "models" / "base", "base")
    build_qwen3_tts(folder / "models" / "speaker")
    build_voxcpm(folder / "models" / "voxcpm")
    build_voxcpm(folder / "models" / "voxcpm2", 2)
    build_soprano(folder / "models" / "soprano")
    write_recording(folder / "ada.wav")
    return folder


def handle_of(home: Path, name: str) -> ModelHandle:
    directory = str(home / "models" / name)
    return ModelHandle(directory, directory, Origin.WORKSPACE, display_name=name)


@pytest.fixture(scope="module")
def generator() -> Iterator[MlxTextGenerator]:
    made = MlxTextGenerator(InMemoryEventLog(), SystemClock())
    yield made
    made.close()


def test_a_recording_is_read_at_one_rate_whatever_its_own(tmp_path: Path) -> None:
    for rate in (8_000, 44_100, 48_000):
        write_recording(tmp_path / "a.wav", 2.0, rate=rate)
        read = sound.read_sample(VoiceSample(str(tmp_path / "a.wav"), "a.wav"))
        assert len(read) == pytest.approx(2.0 * sound.SAMPLE_RATE, rel=0.01)
        assert np.abs(read).max() == pytest.approx(8000 / 32768, rel=0.1)


def make_text(path: Path) -> None:
    path.write_text("This is no sound. " * 40)


def cut_short(path: Path) -> None:
    write_recording(path)
    path.write_bytes(path.read_bytes()[:30])


def make_constant(path: Path) -> None:
    write_recording(path, 3.0, 0)
    path.write_bytes(path.read_bytes()[:44] + b"\x00\x20" * 48_000)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "Audio file not found: ada.wav"),
        (lambda path: path.write_bytes(b""), "Empty audio file: ada.wav"),
        (make_text, "No known sound format: ada.wav"),
        (cut_short, "damaged, or not what it says it is: ada.wav"),
        (os.mkfifo, "No regular file, such as a pipe or a device: ada.wav"),
        (os.mkdir, "That is a directory|not found: ada.wav"),
        (lambda path: write_recording(path, 61.5, rate=2_000), r"too long \(>60 s\): ada.wav"),
        (lambda path: write_recording(path, 0.4), "has 0.4 s of sound; a voice is imitated from 1 s on"),
        (lambda path: write_recording(path, 3.0, 20), "The recording is silent: ada.wav"),
        (make_constant, "The recording is silent: ada.wav"),
    ],
    ids=["none", "empty", "text", "cut", "pipe", "folder", "long", "short", "quiet", "constant"],
)
def test_what_is_no_recording_of_a_voice_is_refused_by_name(
    make: Callable[[Path], object], words: str, tmp_path: Path
) -> None:
    make(tmp_path / "ada.wav")
    with pytest.raises(ValidationError, match=words):
        sound.read_sample(VoiceSample(str(tmp_path / "ada.wav"), "ada.wav"))


@pytest.mark.parametrize("name", ["voxcpm", "voxcpm2"])
def test_another_recording_is_another_voice(name: str, home: Path, tmp_path: Path) -> None:
    write_recording(tmp_path / "bob.wav", rate=22_050, pitch=3_000)
    voice, spoken = load_voice(handle_of(home, name)), []
    for path in (home / "ada.wav", tmp_path / "bob.wav", home / "ada.wav"):
        mx.random.seed(7)
        read = sound.resampled(sound.read_sample(VoiceSample(str(path), "x")), sound.SAMPLE_RATE, voice.sample_rate)
        (part,) = voice.speak("Hello there.", None, None, 1.0, voice.imitating(read, SAID))
        spoken.append(part.sound)
    ada, bob, again = spoken
    assert np.abs(ada - bob).max() > 100 * np.abs(ada - again).max()


def test_speaking_leaves_nothing_of_the_recording_in_the_model(home: Path, generator: MlxTextGenerator) -> None:
    handle, synthesizer = handle_of(home, "base"), MlxSpeechSynthesizer(generator.leases)

    def known() -> tuple[int, bool]:
        with generator.leases.lease(WantedModel(handle, load=load_voice), Voice) as lease:
            network: Any = lease.model.network
            heard = network.speech_tokenizer.encoder_model.encoder_cache
            return lease.call(lambda: (len(network._icl_cache), any(each.keys is not None for each in heard)))

    sample = VoiceSample(str(home / "ada.wav"), "ada.wav", SAID)
    events = synthesizer.synthesize(SynthesisRequest(handle, TEXT, SynthesisSettings(sample=sample)))
    assert next(events) == SpeechBegun(QWEN_RATE, True)
    next(events)
    assert known() == (1, True)
    events.close()  # as for a client that leaves
    assert known() == (0, False)


def test_words_that_a_codec_cannot_use_are_said_to_have_no_effect(
    home: Path, tmp_path: Path, generator: MlxTextGenerator
) -> None:
    handle = build_qwen3_tts(tmp_path / "deaf", "base")
    config = tmp_path / "deaf" / "speech_tokenizer" / "config.json"
    told = json.loads(config.read_text())
    config.write_text(json.dumps({name: each for name, each in told.items() if name != "encoder_config"}))
    settings = SynthesisSettings(sample=VoiceSample(str(home / "ada.wav"), "ada.wav", SAID))
    begun, *_ = MlxSpeechSynthesizer(generator.leases).synthesize(SynthesisRequest(handle, "Hello there.", settings))
    assert begun == SpeechBegun(QWEN_RATE, True, takes_sample_text=False)


@pytest.mark.parametrize("name", ["speaker", "soprano"])
def test_the_adapter_itself_refuses_a_model_that_would_ignore_the_recording(
    name: str, home: Path, generator: MlxTextGenerator
) -> None:
    settings = SynthesisSettings(sample=VoiceSample("/nowhere.wav", "nowhere.wav"))
    with pytest.raises(MlxkError, match=f"'{name}' does not imitate the voice of a recording"):
        next(
            MlxSpeechSynthesizer(generator.leases).synthesize(SynthesisRequest(handle_of(home, name), "Hi.", settings))
        )


def test_the_table_of_families_says_how_each_that_imitates_is_given_a_recording() -> None:
    assert {name for name, family in FAMILIES.items() if family.cloning} == {
        name for name in FAMILIES if clones_voices({"model_type": name})
    }
    assert not clones_voices({"model_type": ["qwen3_tts"]})
    assert not clones_voices({"model_type": "qwen3_tts", "tts_model_type": "voice_design"})


Say = Callable[..., tuple[int, str, str]]


@pytest.fixture
def mlxk(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Say:
    """Run a command in an empty folder, and return status, output and talk."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str) -> tuple[int, str, str]:
        settings = read_settings({"HOME": str(home), "MLXK_WORKSPACE_HOME": str(home / "models")})
        with open(os.devnull) as null:
            context = CommandContext(settings, build, lambda *_: 1, null.fileno())
            status = run(arguments, context)
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return command


def test_say_imitates_a_voice_and_says_whose_consent_is_needed(mlxk: Say, home: Path, tmp_path: Path) -> None:
    recording = ("--clone-voice", str(home / "ada.wav"), "--clone-text", SAID)
    status, printed, said = mlxk("say", "voxcpm", "Hello there.", "-o", "out.wav", *recording)
    assert (status, printed) == (0, "")
    assert f"the voice of '{home}/ada.wav' is imitated: its speaker must have consented; it is not kept" in said
    assert (tmp_path / "out.wav").read_bytes().startswith(b"RIFF")
    status, printed, said = mlxk("say", "voxcpm2", "Hello there.", "-o", "out.pcm", *recording[:2], "--json")
    assert (status, "its speaker must have consented" in said) == (0, True)
    document = json.loads(printed)["data"]
    assert (document["voice"], document["cloned"], document["adaptations"]) == (None, True, [])
    assert [each.name for each in tmp_path.iterdir() if not each.name.startswith("out.")] == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("soprano", "--clone-voice", "ADA"), "soprano' does not imitate the voice of a recording; Qwen3-TTS Base"),
        (("speaker", "--clone-voice", "ADA"), "Models that can have the capability voice-cloning"),
        (("demo", "--clone-voice", "ADA"), "'demo' does not speak"),
        (("voxcpm", "--clone-voice", "ADA"), "--clone-text is needed: 'voxcpm' imitates a voice only with the words"),
        (("voxcpm", "--clone-text", "Hi."), "--clone-voice, which is missing"),
        (("voxcpm2", "--clone-voice", "ADA", "--voice", "ryan"), "--voice and --clone-voice exclude each other"),
        (("voxcpm2", "--clone-voice", "ADA", "--clone-text", "?"), "--clone-text has no letter or digit"),
        (("voxcpm2", "--clone-voice", "ADA", "--clone-text", "a" * 2001), "--clone-text must have at most 2000"),
        (("voxcpm2", "--clone-voice", "nowhere.wav"), "Audio file not found: nowhere.wav"),
    ],
    ids=["soprano", "custom voice", "text model", "no words", "no recording", "voice", "no letter", "long", "nowhere"],
)
def test_say_refuses_what_cannot_be_and_loads_and_writes_nothing(
    arguments: tuple[str, ...], words: str, mlxk: Say, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loading(*_: object) -> None:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr("mlxk.adapters.mlx.voice.loader.load_voice", loading)
    model, *flags = (str(home / "ada.wav") if each == "ADA" else each for each in arguments)
    status, _, said = mlxk("say", model, "Hello there.", "-o", "out.wav", *flags)
    assert status != 0
    assert words in said
    assert list(tmp_path.iterdir()) == []


def test_list_and_show_say_which_models_can(mlxk: Say) -> None:
    listed = {
        each["display_name"]: each
        for each in json.loads(mlxk("list", "--json")[1])["data"]["models"]
        if each.get("display_name")
    }
    cloners = {name for name, each in listed.items() if "voice-cloning" in each["capabilities"]}
    assert cloners == {"base", "voxcpm", "voxcpm2"}
    shown = json.loads(mlxk("show", "base", "--json")[1])["data"]["model"]
    assert (shown["capabilities"], shown["runtime_compatible"]) == (["text-to-speech", "voice-cloning"], True)
    assert "voice+cloning" in mlxk("list", "--verbose")[1]


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    (tmp_path / "sounds").mkdir()
    write_recording(tmp_path / "sounds" / "ada.wav")
    allowed = NamedMedia(FolderMediaSource((str(tmp_path / "sounds"),)))
    models = {VOICE_MODEL: VOICE, CLONER_MODEL: CLONER}
    return Parts(settings=ServerSettings(allow_voice_cloning=True), models=models, named_media=allowed)


@pytest.fixture
def server(parts: Parts) -> Iterator[RunningServer]:
    with RunningServer(parts) as running:
        yield running
    assert uploads_left_behind() == []


@pytest.fixture
def wav(home: Path) -> bytes:
    return (home / "ada.wav").read_bytes()


def asked(**fields: object) -> dict[str, object]:
    return {"model": CLONER_MODEL, "input": "Hello there.", "response_format": "wav", **fields}


def test_a_server_takes_a_recording_as_data_as_a_path_and_as_a_part_of_a_form(
    server: RunningServer, parts: Parts, wav: bytes, tmp_path: Path
) -> None:
    encoded = base64.b64encode(wav).decode()
    for sent in (encoded, f"data:audio/wav;base64,{encoded}", f"{tmp_path}/sounds/ada.wav"):
        fields = asked(ref_audio=sent, ref_text=SAID, voice="alloy")
        status, headers, body = server.post("/v1/audio/speech", fields)
        assert (status, headers.get("x-mlxk-adaptations"), body[:4]) == (200, None, b"RIFF")
    form: list[FormPart] = [(name, str(value)) for name, value in asked(ref_text=SAID, speed=2).items()]
    status, body = post_form(server, "/v1/audio/speech", [*form, ("ref_audio", ("my voice.wav", wav))])
    assert (status, body[:4]) == (200, b"RIFF")
    assert parts.synthesizer.recordings == [wav] * 4
    samples = [each.settings.sample for each in parts.synthesizer.requests]
    assert [each.text for each in samples if each] == [SAID] * 4
    assert not any(os.path.exists(each.path) for each in samples if each)
    assert parts.synthesizer.requests[-1].settings.speed == 2.0
    logged = repr(parts.log.events) + repr(parts.telemetry.served) + repr(parts.synthesizer.requests)
    assert SAID not in logged
    assert encoded[:40] not in logged


def test_a_form_without_a_recording_is_a_request_like_any_other(server: RunningServer, parts: Parts) -> None:
    form: list[FormPart] = [("model", VOICE_MODEL), ("input", "Hello there."), ("voice", "ryan"), ("speed", "fast")]
    status, body = post_form(server, "/v1/audio/speech", form)
    assert (status, body["error"]["param"]) == (400, "speed")
    status, _ = post_form(server, "/v1/audio/speech", [*form[:3], ("response_format", "pcm")])
    assert (status, parts.synthesizer.requests[-1].settings.voice) == (200, "ryan")


def test_words_without_effect_are_said(server: RunningServer, parts: Parts, wav: bytes) -> None:
    parts.synthesizer._takes_sample_text = False
    fields = asked(ref_audio=base64.b64encode(wav).decode(), ref_text=SAID)
    assert server.post("/v1/audio/speech", fields)[1]["x-mlxk-adaptations"] == "ref-text-ignored"


WAV = "UklGRg=="


@pytest.mark.parametrize(
    ("fields", "status", "param", "words"),
    [
        ({"ref_audio": "https://example.org/a.wav"}, 400, "ref_audio", "is an address; send the recording itself"),
        ({"ref_audio": "/etc/hosts.wav"}, 400, "ref_audio", "is not below a folder"),
        ({"ref_audio": "***"}, 400, "ref_audio", "is not valid base64"),
        ({"ref_audio": 7}, 400, "ref_audio", "must be a string"),
        ({"ref_audio": "bm8gc291bmQ="}, 400, "ref_audio", "No known sound format"),
        ({"ref_audio": WAV}, 400, "ref_audio", "The recording is silent"),
        ({"ref_text": SAID}, 400, "ref_text", "is what is said in ref_audio, which is missing"),
        ({"ref_audio": WAV, "ref_text": "?"}, 400, "ref_text", "no letter or digit"),
        ({"ref_audio": WAV, "ref_text": "a" * 2001}, 400, "ref_text", "at most 2000 characters"),
        ({"ref_audio": WAV, "voice": "ryan"}, 400, "voice", "cannot be given with ref_audio"),
        ({"ref_audio": WAV, "model": VOICE_MODEL}, 422, "model", "does not imitate the voice of a recording"),
    ],
)
def test_what_is_no_recording_names_the_field(
    fields: dict[str, object], status: int, param: str | None, words: str, server: RunningServer
) -> None:
    found, _, body = server.post("/v1/audio/speech", asked(**fields))
    assert (found, body["error"]["param"]) == (status, param)
    assert words in body["error"]["message"]


def test_a_server_whose_operator_has_not_allowed_it_says_who_can(wav: bytes) -> None:
    with RunningServer(Parts(models={CLONER_MODEL: CLONER})) as closed:
        fields = asked(ref_audio=base64.b64encode(wav).decode(), ref_text=SAID)
        status, _, body = closed.post("/v1/audio/speech", fields)
        error = body["error"]
        assert (status, error["code"], error["param"]) == (403, "feature_disabled", "ref_audio")
        assert error["hint"] == "The operator of the server can allow it: mlxk serve --allow-voice-cloning"
        form: list[FormPart] = [*((name, str(value)) for name, value in asked().items()), ("ref_audio", ("a.wav", wav))]
        assert post_form(closed, "/v1/audio/speech", form)[0] == 403
        assert closed.post("/v1/audio/speech", asked(ref_audio=None, ref_text=None))[0] == 200
    assert uploads_left_behind() == []


def test_the_list_of_models_says_which_can(server: RunningServer) -> None:
    listed = {each["id"]: each["capabilities"] for each in server.get("/v1/models")[2]["data"]}
    assert listed[CLONER_MODEL] == ["text-to-speech", "voice-cloning"]
    assert listed[VOICE_MODEL] == ["text-to-speech"]


def test_a_whole_server_imitates_a_voice(home: Path, wav: bytes) -> None:
    program: Any = WholeProgram(
        home, ServerSettings(allow_voice_cloning=True), MLXK_WORKSPACE_HOME=str(home / "models")
    )
    with RunningServer(program) as running:
        fields = asked(model="voxcpm", ref_audio=base64.b64encode(wav).decode())
        status, _, body = running.post("/v1/audio/speech", fields)
        assert (status, body["error"]["param"]) == (400, "ref_text")
        assert "imitates a voice only with the words that are said in the recording" in body["error"]["message"]
        status, _, body = running.post("/v1/audio/speech", {**fields, "ref_text": SAID})
        assert (status, body[:4]) == (200, b"RIFF")
        assert SAID not in repr(program.log.events)
