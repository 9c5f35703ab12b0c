"""The installed program hears its samples, and what it hears can be piped on."""

import json
from collections.abc import Callable
from subprocess import CompletedProcess

import pytest

pytestmark = pytest.mark.e2e

Program = Callable[..., "CompletedProcess[str]"]


def test_a_sample_becomes_subtitles_on_a_fresh_machine(mlxk: Program) -> None:
    done = mlxk("run", "demo-speech", "--audio", "demo-speech/two-phrases.wav", "--format", "srt")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert (lines[0], lines[2], lines[4], lines[6]) == ("1", "Good morning.", "2", "Nothing leaves your machine.")


def test_a_spoken_question_is_answered_by_the_text_model(mlxk: Program) -> None:
    heard = mlxk("run", "demo-speech", "--audio", "demo-speech/question.wav")
    assert heard.stdout == "What is mlxk?\n"
    answered = mlxk("run", "demo", "-", "--temperature", "0", stdin=heard.stdout.strip(), MLXK2_ENABLE_PIPES="1")
    assert answered.stdout.startswith("mlxk is the knife for local models on Apple's MLX")


def test_a_file_that_is_no_sound_is_refused_without_loading_anything(mlxk: Program) -> None:
    done = mlxk("run", "demo-speech", "--audio", "demo-speech/config.json", "--json")
    envelope = json.loads(done.stdout)
    assert (done.returncode, envelope["error"]["type"]) == (1, "validation_error")
    assert envelope["error"]["message"] == "No known sound format: demo-speech/config.json"
