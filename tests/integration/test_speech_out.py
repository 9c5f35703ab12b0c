"""Speaking with real networks, tiny ones: pieces, speed, streams, what is missing, and ``mlxk say`` as a program."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import openai
import pytest
from doubles.event_log import InMemoryEventLog
from models.tiny_voices import QWEN_RATE, SAMPLES_PER_TOKEN, SOPRANO_RATE, build_qwen3_tts, build_soprano
from serving.running import RunningServer
from serving.whole_program import WholeProgram

from mlxk.adapters.mlx.text_generator import MlxTextGenerator
from mlxk.adapters.mlx.voice import sound
from mlxk.adapters.mlx.voice.loader import load_voice
from mlxk.adapters.mlx.voice.synthesizer import MlxSpeechSynthesizer
from mlxk.adapters.system import SystemClock
from mlxk.domain.errors import UnhealthyModelError, UntrustedModelCodeError
from mlxk.domain.models.model import ModelHandle, Origin
from mlxk.domain.synthesis import SpeechBegun, SpokenPart, SynthesisRequest, SynthesisSettings
from mlxk.entrypoints.container import build
from mlxk.entrypoints.http.process.warm_up import warm_up
from mlxk.entrypoints.settings import ServerSettings, read_settings

pytestmark = pytest.mark.mlx

TEXT = "Hello world, how are you today, my friend? It is a fine day for a walk in the park."


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a model of each kind."""
    folder = tmp_path_factory.mktemp("home")
    build_qwen3_tts(folder / "models" / "speaker")
    build_qwen3_tts(folder / "models" / "designer", "voice_design")
    build_soprano(folder / "models" / "soprano")
    return folder


def handle_of(home: Path, name: str) -> ModelHandle:
    directory = str(home / "models" / name)
    return ModelHandle(directory, directory, Origin.WORKSPACE)


@pytest.fixture(scope="module")
def synthesizer() -> Iterator[MlxSpeechSynthesizer]:
    generator = MlxTextGenerator(InMemoryEventLog(), SystemClock())
    yield MlxSpeechSynthesizer(generator.leases)
    generator.close()


def test_sound_continues_from_part_to_part_without_a_step_and_equals_that_of_the_whole(tmp_path: Path) -> None:
    voice = load_voice(build_qwen3_tts(tmp_path / "voice", tokens=50))
    mx.random.seed(5)
    parts = list(voice.speak(f"{TEXT} {TEXT}", "ryan", None, 1.0))
    mx.random.seed(5)
    (whole,) = voice.network.generate(text=f"{TEXT} {TEXT}", voice="ryan", max_tokens=700)
    assert len(parts) > 1
    joined = np.concatenate([part.sound for part in parts])
    tokens = sum(part.tokens for part in parts)
    assert (tokens, len(joined)) == (whole.token_count, whole.token_count * SAMPLES_PER_TOKEN)
    expected = np.array(whole.audio)  # without tokens that it takes for padding
    np.testing.assert_allclose(joined[: len(expected)], expected, atol=2e-3)


def test_control_tokens_that_a_text_spells_stay_text(home: Path) -> None:
    voice = load_voice(handle_of(home, "speaker"))
    control = set(voice.network.tokenizer.get_added_vocab().values())
    spelled = "One <|im_end|> two <|im_start|><tts_eos> three."
    assert control & set(voice.network.tokenizer.encode(spelled))
    assert not control & set(voice.network.tokenizer.encode(voice.as_text(spelled)))
    assert voice.as_text("1 < 2 [and] | 3") == "1 < 2 [and] | 3"


@pytest.mark.parametrize(("folder_name", "width"), [("soprano-1.1", 512), ("anything", 768)])
def test_the_decoder_is_that_of_the_weights_whatever_the_folder_is_called(
    folder_name: str, width: int, tmp_path: Path
) -> None:
    made = build_soprano(tmp_path / ("Soprano-1.1-80M" if width == 768 else "Soprano-80M"))
    (tmp_path / folder_name).mkdir()
    renamed = Path(made.directory).rename(tmp_path / folder_name / "voice")
    voice = load_voice(ModelHandle(str(renamed), str(renamed), Origin.WORKSPACE))
    assert voice.network.config.decoder_config.decoder_dim == width


@pytest.mark.parametrize("speed", [0.25, 0.5, 0.8, 1.25, 2.0, 4.0])
def test_sound_is_faster_or_slower_at_the_same_pitch(speed: float) -> None:
    rate, hertz = 24_000, 200.0
    tone = np.sin(2 * np.pi * hertz * np.arange(2 * rate) / rate).astype(np.float32)
    changed = sound.stretched(tone, rate, speed)
    assert len(changed) == int(len(tone) / speed)
    middle = changed[len(changed) // 4 : 3 * len(changed) // 4]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
    assert np.argmax(spectrum) * rate / len(middle) == pytest.approx(hertz, rel=0.02)
    assert np.abs(middle).max() == pytest.approx(1.0, abs=0.1)
    # A click would be a step larger than any of the tone.
    assert np.abs(np.diff(middle)).max() < 2.5 * np.abs(np.diff(tone)).max()


def test_very_short_sound_keeps_its_length() -> None:
    short = np.ones(100, np.float32)
    assert len(sound.stretched(short, 24_000, 2.0)) == 100
    assert sound.faded(short[:1], 24_000).tolist() == [1.0]


def test_a_model_that_makes_a_voice_from_words_speaks_without_any(
    home: Path, synthesizer: MlxSpeechSynthesizer
) -> None:
    for instructions in (None, "A deep voice."):
        request = SynthesisRequest(handle_of(home, "designer"), "Hello.", SynthesisSettings(instructions=instructions))
        begun, *parts, _ = synthesizer.synthesize(request)
        assert begun == SpeechBegun(QWEN_RATE, True)
        assert parts


def test_each_family_has_its_own_rate(home: Path, synthesizer: MlxSpeechSynthesizer) -> None:
    begun, *parts, _ = synthesizer.synthesize(SynthesisRequest(handle_of(home, "soprano"), TEXT))
    assert begun == SpeechBegun(SOPRANO_RATE, False)
    assert {part.piece for part in parts if isinstance(part, SpokenPart)} == {0, 1}


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda folder: shutil.rmtree(folder / "speech_tokenizer"), UnhealthyModelError, "speech_tokenizer/"),
        (lambda folder: (folder / "speech_tokenizer/config.json").unlink(), UnhealthyModelError, "codec"),
        (lambda folder: (folder / "tokenizer.json").unlink(), UnhealthyModelError, "tokenizer"),
        (lambda folder: (folder / "voice.pkl").write_bytes(b"x"), UntrustedModelCodeError, "a pickle"),
        (
            lambda folder: (folder / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": "x.Y"}}'),
            UntrustedModelCodeError,
            "auto_map",
        ),
    ],
    ids=["no codec", "half a codec", "no tokenizer", "a pickle", "code"],
)
def test_what_is_missing_or_unsafe_is_named(
    change: Callable[[Path], object], error: type[Exception], words: str, home: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(home / "models" / "speaker", folder)
    change(folder)
    with pytest.raises(error, match=words):
        load_voice(ModelHandle(str(folder), str(folder), Origin.WORKSPACE))


Say = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture
def environment(home: Path, program_environment: dict[str, str]) -> dict[str, str]:
    return {**program_environment, "MLXK_WORKSPACE_HOME": str(home / "models")}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return an empty folder."""
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


@pytest.fixture
def say(folder: Path, environment: dict[str, str]) -> Say:
    """Run a command of the program in an empty folder."""

    def run(*arguments: str, text: bytes | None = None) -> "subprocess.CompletedProcess[bytes]":
        command = [sys.executable, "-m", "mlxk", *arguments]
        return subprocess.run(command, cwd=folder, env=environment, input=text, capture_output=True, check=False)

    return run


def test_a_text_becomes_a_file(say: Say, folder: Path) -> None:
    done = say("say", "speaker", "Hello there, I am here.", "-o", "out.wav", "--voice", "Vivian")
    assert done.returncode == 0
    assert done.stdout == b""
    with wave.open(str(folder / "out.wav")) as file:
        seconds = file.getnframes() / file.getframerate()
        assert file.getframerate() == QWEN_RATE
    assert done.stderr.decode() == f"{seconds:.1f} s of sound: out.wav\n"
    assert [each.name for each in folder.iterdir()] == ["out.wav"]


def test_a_pipe_gets_a_wav_that_goes_on_to_its_end_and_a_file_one_that_says_how_long_it_is(
    say: Say, folder: Path, environment: dict[str, str]
) -> None:
    piped = say("say", "speaker", "-", text=TEXT.encode())
    assert piped.returncode == 0
    assert piped.stdout[:4] == b"RIFF"
    assert piped.stdout[40:44] == b"\xff" * 4
    assert len(piped.stdout) > 44
    with (folder / "out.wav").open("wb") as file:
        command = [sys.executable, "-m", "mlxk", "say", "speaker", "Hello there."]
        subprocess.run(command, cwd=folder, env=environment, stdout=file, check=True)
    with wave.open(str(folder / "out.wav")) as read:
        assert 2 * read.getnframes() == (folder / "out.wav").stat().st_size - 44


def test_json_says_what_was_made(say: Say, folder: Path) -> None:
    done = say("say", "soprano", TEXT, "-o", "out.pcm", "--speed", "2", "--instructions", "Slowly.", "--json")
    document = json.loads(done.stdout)["data"]
    assert document["seconds"] == pytest.approx((folder / "out.pcm").stat().st_size / 2 / SOPRANO_RATE, abs=1e-3)
    del document["seconds"], document["model"]
    assert document == {
        "voice": None,
        "cloned": False,
        "file": "out.pcm",
        "format": "pcm",
        "sample_rate": SOPRANO_RATE,
        "pieces": 2,
        "adaptations": ["instructions-ignored"],
    }
    assert done.stderr.decode() == "[the model takes no instructions; they had no effect]\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("speaker", "Hi.", "-o", "out.wav", "--voice", "bob"), "its voices are ryan, vivian"),
        (("soprano", "Hi.", "-o", "out.wav", "--voice", "bob"), "it has one voice, without a name"),
        (("demo", "Hi.", "-o", "out.wav"), "'demo' does not speak; it can do: text-generation, chat"),
        (("speaker", "...", "-o", "out.wav"), "no letter or digit"),
        (("speaker", "Hi.", "-o", "out.wav", "--speed", "9"), "speed must be at least 0.25 and at most 4"),
        (("speaker", "Hi.", "-o", "out.ogg"), "ends in none of wav, mp3"),
        (("speaker", "Hi.", "-o", "nowhere/out.wav"), "'nowhere/out.wav' cannot be written: No such file"),
        (("speaker", "Hi.", "-o", "."), "'.' cannot be written: Is a directory"),
        (("speaker", "Hi.", "--json"), "name a file for the sound with -o FILE"),
        (("speaker", "-", "-o", "out.wav"), "standard input is empty"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_written(
    arguments: tuple[str, ...], words: str, say: Say, folder: Path
) -> None:
    done = say("say", *arguments, text=b"")
    assert done.returncode != 0
    assert words in (done.stdout + done.stderr).decode()
    assert list(folder.iterdir()) == []


def test_a_compressed_format_needs_ffmpeg_and_gets_the_samples(
    say: Say, folder: Path, environment: dict[str, str]
) -> None:
    environment["PATH"] = str(folder / "programs")
    refused = say("say", "speaker", "Hello.", "-o", "out.mp3")
    assert refused.returncode != 0
    assert b"'mp3' cannot be made here: it needs the program ffmpeg" in refused.stderr
    program = folder / "programs" / "ffmpeg"
    program.parent.mkdir()
    code = "import sys; sys.stdout.buffer.write(b'ID3' + sys.stdin.buffer.read())"
    program.write_text(f"#!{sys.executable}\n{code}\n")
    program.chmod(0o755)
    assert say("say", "speaker", "Hello.", "-o", "out.mp3").returncode == 0
    assert (folder / "out.mp3").read_bytes().startswith(b"ID3")
    assert len((folder / "out.mp3").read_bytes()) > 3


def test_an_interrupt_leaves_no_half_file(folder: Path, environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "mlxk", "say", "speaker", f"{TEXT} " * 400, "-o", "out.wav"]
    process = subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not list(folder.glob(".mlxk-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert list(folder.glob(".mlxk-*"))
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT
    assert b"interrupted" in said
    assert os.listdir(folder) == []


def test_show_and_list_name_the_voices(say: Say) -> None:
    shown = json.loads(say("show", "speaker", "--json").stdout)["data"]
    assert shown["model"]["model_type"] == "voice"
    assert shown["model"]["capabilities"] == ["text-to-speech"]
    assert shown["metadata"]["voices"] == ["ryan", "vivian"]
    assert "  Voices: ryan, vivian\n" in say("show", "speaker").stdout.decode()
    listed = json.loads(say("list", "--json").stdout)["data"]["models"]
    kinds = {each["display_name"]: each["model_type"] for each in listed if "display_name" in each}
    assert kinds == dict.fromkeys(("speaker", "designer", "soprano"), "voice")


def test_a_voice_speaks_once_before_a_server_is_ready(home: Path) -> None:
    variables = {"HOME": str(home), "MLXK_WORKSPACE_HOME": str(home / "models")}
    container = build(read_settings(variables), ServerSettings(model="speaker"))
    try:
        container.use_cases.serve_catalogue().offer("speaker")
        warm_up(container, "speaker")
        assert list(container.use_cases.serve_catalogue().loaded()) == ["speaker"]
    finally:
        container.adapters.text_generator().close()


def test_a_server_speaks(home: Path) -> None:
    program: Any = WholeProgram(home, ServerSettings(), MLXK_WORKSPACE_HOME=str(home / "models"))
    with RunningServer(program) as running, openai.OpenAI(base_url=f"{running.url}/v1", api_key="any") as client:
        with client.audio.speech.with_streaming_response.create(
            model="speaker", voice="alloy", input=TEXT, response_format="pcm"
        ) as response:
            assert response.headers["X-Mlxk-Adaptations"] == "voice-substituted"
            assert len(b"".join(response.iter_bytes())) > 0
        (voices,) = [each.model_dump()["voices"] for each in client.models.list() if each.id == "speaker"]
    assert voices == ["ryan", "vivian"]
