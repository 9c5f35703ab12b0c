"""``run --audio`` with a model that writes text and takes sound beside it, as people type it."""

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from models.pictures import about, as_png, as_wav, loaded, noise, oracle, tone
from models.tiny_vision import build

from mlxk.adapters.mlx.audio_file import MlxAudioDecoder
from mlxk.domain.generation.conversation import Conversation
from mlxk.domain.models.model import ModelHandle

pytestmark = pytest.mark.mlx
Command = Callable[..., dict[str, Any]]
Program = Callable[..., "CompletedProcess[str]"]


@pytest.fixture
def model(tmp_path: Path) -> ModelHandle:
    """Return a model beside which there are a short and a long recording."""
    (tmp_path / "short.wav").write_bytes(as_wav(tone(440, 1.5)))
    (tmp_path / "long.wav").write_bytes(as_wav(tone(220, 31.5)))
    return build(tmp_path / "model", "gemma4", seed=4)


def expected(model: ModelHandle, conversation: Conversation) -> str:
    """Return mlx-vlm's own answer."""
    found = b"".join(oracle(model, conversation)).decode(errors="replace")
    loaded.cache_clear()
    return found


@pytest.mark.parametrize("prompt", [(), ("What do you hear?",)])
def test_the_greedy_answer_is_mlx_vlms_own(
    prompt: tuple[str, ...], command: Command, model: ModelHandle, tmp_path: Path
) -> None:
    answer = command("run", "./model", *prompt, "--audio", "short.wav", "--max-tokens", "24")["data"]
    asked = prompt[0] if prompt else "Transcribe this audio."
    sound = MlxAudioDecoder().decode(str(tmp_path / "short.wav"), "short.wav")
    assert answer["response"] == expected(model, about(sound, asked))
    assert (answer["prompt"], "transcript" in answer) == (asked, False)


def test_what_such_a_model_cannot_do_is_refused_by_name(command: Command, model: ModelHandle) -> None:
    for flags in (("--words",), ("--language", "de"), ("--translate",)):
        error = command("run", "./model", "--audio", "short.wav", *flags)["error"]
        assert error["type"] == "capability_not_supported"
        assert error["message"].startswith(f"{flags[0]}: './model' answers in plain text")
    error = command("run", "./model", "--audio", "short.wav", "--no-chat-template")["error"]
    assert (error["type"], error["message"]) == ("usage_error", "--no-chat-template and --audio exclude each other")


def test_a_chat_begins_with_what_flags_play(mlxk_here: Program, model: ModelHandle, tmp_path: Path) -> None:
    sound = MlxAudioDecoder().decode(str(tmp_path / "short.wav"), "short.wav")
    asked = ("run", "./model", "--chat", "--audio", "short.wav", "--max-tokens", "24")
    done = mlxk_here(*asked, "--temperature", "0", stdin="What do you hear?")
    assert (done.returncode, done.stdout.strip()) == (0, expected(model, about(sound, "What do you hear?")).strip())
    refused = mlxk_here(*asked, "--words", stdin="What?")
    assert (refused.returncode, "--words: './model' answers in plain text" in refused.stderr) == (1, True), refused


def test_images_and_sounds_are_asked_about_together(command: Command, model: ModelHandle, tmp_path: Path) -> None:
    sounds = [MlxAudioDecoder().decode(str(tmp_path / "short.wav"), "short.wav"), tone(220, 0.5)]
    (tmp_path / "other.wav").write_bytes(as_wav(sounds[1]))
    sounds[1] = MlxAudioDecoder().decode(str(tmp_path / "other.wav"), "other.wav")
    pictures = [noise(1), noise(2)]
    for number, picture in enumerate(pictures):
        (tmp_path / f"{number}.png").write_bytes(as_png(picture))
    limits = ("--max-tokens", "24")

    def ask(*flags: str) -> dict[str, Any]:
        found: dict[str, Any] = command("run", "./model", *flags, *limits)["data"]
        return found

    both = ask("Do they match?", "--image", "0.png", "--audio", "short.wav")
    table, _, words = both["response"].rpartition("</details>\n\n")
    assert "| 1 | image_" in table
    assert words == expected(model, about(pictures[0], sounds[0], "Do they match?"))
    together = ("--chunk", "2", "--image", "0.png", "1.png", "--audio", "short.wav", "--audio", "other.wav")
    _, _, words = ask(*together)["response"].rpartition("</details>\n\n")
    shown = ("Image 1:", pictures[0], "Image 2:", pictures[1], *sounds, "Describe what is to be seen and heard.")
    assert words == expected(model, about(*shown))
    one_by_one = ask("Well?", *together[2:])["response"].split("</details>\n\n")[1:]
    alone = [expected(model, about(picture, *sounds, "Well?")) for picture in pictures]
    assert one_by_one[0].startswith(alone[0])
    assert one_by_one[1] == alone[1]


def test_what_a_prompt_names_is_shown_and_played(mlxk_here: Program, model: ModelHandle, tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(as_png(noise(1)))
    words = ("run", "./model", "Do ./0.png and ./short.wav match?")
    done = mlxk_here(*words, "--max-tokens", "8")
    assert done.returncode == 0, done
    assert "[attached: ./0.png]\n[attached: ./short.wav]\n" in done.stderr
    assert "| 1 | image_" in done.stdout
    shown = mlxk_here(*words, "--show-prompt").stdout
    assert (shown.count("<|image|>"), shown.count("<|audio|>")) == (1, 1), shown


def test_what_a_model_does_not_take_is_refused_by_name(command: Command, model: ModelHandle, tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(as_png(noise(1)))
    both = ("--image", "0.png", "--audio", "short.wav")
    error = command("run", "demo-speech", *both)["error"]
    assert (error["type"], error["message"]) == ("usage_error", "--image does not apply to --audio")
    for name, kind in (("demo-vision", "audio"), ("demo", "audio")):
        error = command("run", name, *both)["error"]
        assert (error["type"], kind in error["message"]) == ("capability_not_supported", True), error
    error = command("run", "./model", *both, "--tools", "tools.json")["error"]
    assert (error["type"], error["message"]) == ("usage_error", "--tools and --image exclude each other")
    error = command("run", "./model", "--audio", "short.wav", "--chunk", "2")["error"]
    assert (error["type"], error["message"]) == ("usage_error", "--chunk requires --image FILE.")


def test_a_long_recording_is_refused_with_both_numbers(command: Command, model: ModelHandle) -> None:
    error = command("run", "./model", "--audio", "long.wav")["error"]
    assert error["type"] == "validation_error"
    assert error["message"].startswith("long.wav has 31.5 s of sound; in a prompt a model takes at most 30 s")


def test_the_text_alone_is_printed(mlxk_here: Program, model: ModelHandle) -> None:
    asked = ("run", "./model", "--audio", "short.wav", "--max-tokens", "8")
    plain, same = mlxk_here(*asked), mlxk_here(*asked, "--format", "text")
    assert plain.returncode == 0
    assert plain.stdout == same.stdout != ""
    assert plain.stderr.startswith("[Output cut at 8 tokens")
    assert plain.stderr.count("\n") == 1
    error = json.loads(mlxk_here("run", "./model", "--audio", "nowhere.wav", "--json").stdout)["error"]
    assert error["message"] == "Audio file not found: nowhere.wav"


def test_subtitles_are_refused_by_name(mlxk: Program, model: ModelHandle) -> None:
    done = mlxk("run", "./model", "--audio", "short.wav", "--format", "vtt")
    assert (done.returncode, done.stdout) == (1, "")
    assert "--format vtt: './model' answers in plain text" in done.stderr
