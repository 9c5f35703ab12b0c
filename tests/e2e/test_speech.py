"""The installed program hears its samples, and what it hears can be piped on."""

import json
import re
import shutil
import wave
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

pytestmark = pytest.mark.e2e

DEMO = Path(__file__).parents[2] / "adapters" / "builtin" / "models" / "demo-speech"

Program = Callable[..., "CompletedProcess[str]"]


def test_a_sample_becomes_subtitles_on_a_fresh_machine(mlxk: Program) -> None:
    done = mlxk("run", "demo-speech", "--audio", "demo-speech/two-phrases.wav", "--format", "srt")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert (lines[0], lines[2], lines[4], lines[6]) == ("1", "Good morning.", "2", "Nothing leaves your machine.")


@pytest.mark.parametrize("channels", [3, 5, 6, 8])
def test_a_voice_in_every_channel_is_the_same_words(channels: int, mlxk_here: Program, tmp_path: Path) -> None:
    with wave.open(str(DEMO / "hello.wav")) as file:
        rate, voice = file.getframerate(), file.readframes(file.getnframes())
    with wave.open(str(tmp_path / "many.wav"), "wb") as file:
        file.setparams((channels, 2, rate, 0, "NONE", ""))
        file.writeframes(b"".join(voice[at : at + 2] * channels for at in range(0, len(voice), 2)))
    done = mlxk_here("run", "demo-speech", "--audio", str(tmp_path / "many.wav"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "Hello world.\n", "")


def test_a_tokenizer_that_ends_before_its_timestamps_gives_the_same_times(mlxk_here: Program, tmp_path: Path) -> None:
    model = tmp_path / "early"
    shutil.copytree(DEMO, model)
    whole = mlxk_here("run", str(model), "--audio", "demo-speech/two-phrases.wav", "--format", "srt")
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    words = [each for each in tokenizer["added_tokens"] if not re.fullmatch(r"<\|\d+\.\d\d\|>", each["content"])]
    assert len(tokenizer["added_tokens"]) - len(words) == 1501
    (model / "tokenizer.json").write_text(json.dumps({**tokenizer, "added_tokens": words}))
    early = mlxk_here("run", str(model), "--audio", "demo-speech/two-phrases.wav", "--format", "srt")
    assert (early.returncode, early.stdout) == (0, whole.stdout)
    assert "00:00:00,100 --> 00:00:00,720" in early.stdout

    unknown = [each for each in words if each["content"] != "<|notimestamps|>"]
    (model / "tokenizer.json").write_text(json.dumps({**tokenizer, "added_tokens": unknown}))
    refused = mlxk_here("run", str(model), "--audio", "demo-speech/two-phrases.wav")
    assert refused.returncode == 1
    assert "has no timestamps" in refused.stderr
    assert "Use a version of the model whose tokenizer.json has" in refused.stderr


@pytest.mark.parametrize("language", ["en-US", "en_GB", "EN", "English", "auto"])
def test_a_language_is_understood_with_its_region_and_by_name(language: str, mlxk_here: Program) -> None:
    done = mlxk_here("run", "demo-speech", "--audio", "demo-speech/hello.wav", "--language", language)
    assert (done.returncode, done.stdout) == (0, "Hello world.\n")


def test_a_spoken_question_is_answered_by_the_text_model(mlxk: Program) -> None:
    heard = mlxk("run", "demo-speech", "--audio", "demo-speech/question.wav")
    assert heard.stdout == "What is mlxk?\n"
    answered = mlxk("run", "demo", "-", "--temperature", "0", stdin=heard.stdout.strip())
    assert answered.stdout.startswith("mlxk is the knife for local models on Apple's MLX")


def test_a_file_that_is_no_sound_is_refused_without_loading_anything(mlxk_here: Program) -> None:
    done = mlxk_here("run", "demo-speech", "--audio", "demo-speech/config.json", "--json")
    envelope = json.loads(done.stdout)
    assert (done.returncode, envelope["error"]["type"]) == (1, "validation_error")
    assert envelope["error"]["message"] == "No known sound format: demo-speech/config.json"
