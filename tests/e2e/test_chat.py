"""The chat in a real pseudo-terminal."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pexpect
import pytest
from chatting import PROMPT, end, leave, say, spawn, start
from models.clips import greys, written
from models.tiny_models import build

if TYPE_CHECKING:
    import subprocess

Program = Callable[..., "subprocess.CompletedProcess[str]"]
pytestmark = pytest.mark.e2e


@pytest.fixture
def model() -> str:
    """Return what to chat with."""
    return "demo"


@pytest.fixture
def flags() -> list[str]:
    """Return how to chat."""
    return []


@pytest.fixture
def terminal(
    program_environment: dict[str, str], tmp_path: Path, model: str, flags: list[str]
) -> Iterator["pexpect.spawn[str]"]:
    """Start a chat on a pseudo-terminal."""
    process = start(program_environment, tmp_path, "run", model, "--chat", *flags)
    yield process
    end(process)


def test_a_chat_remembers_its_turns_and_leaves_on_end_of_input(terminal: "pexpect.spawn[str]") -> None:
    say(terminal, "My name is Olga.", "Olga!")
    say(terminal, "What is my name?", "Your name is Olga.")
    leave(terminal)
    assert terminal.exitstatus == 0


def test_several_lines_stand_between_triple_quotes(terminal: "pexpect.spawn[str]") -> None:
    for line in ('"""', "What is mlxk?"):
        terminal.sendline(line)
        terminal.expect_exact("... ")
    say(terminal, '"""', "mlxk is the knife")


MISSPELT = {
    "/hlep": "Did you mean /help? Type /help for the commands.",
    "/sav talk.json": "Did you mean /save? Type /help for the commands.",
    "/imge photo.jpg": "Did you mean /image? Type /help for the commands.",
    "/frobnicate": "Type /help for the commands.",
    "/set temprature 1": "Did you mean temperature? Type /help for the names.",
    "/set seed": "Did you mean /set seed VALUE? Type /help for the names.",
}


def test_a_misspelt_command_is_answered_with_what_was_meant(terminal: "pexpect.spawn[str]") -> None:
    for typed, hint in MISSPELT.items():
        say(terminal, typed, hint)


def test_an_interrupt_at_the_prompt_leaves_the_chat_open(terminal: "pexpect.spawn[str]") -> None:
    terminal.sendintr()
    terminal.expect_exact(PROMPT)
    say(terminal, "hi", "Hello!")


class TestAnEndlessAnswer:
    """A random model that is held to a list without an end."""

    @pytest.fixture
    def model(self, tmp_path: Path) -> str:
        return build(tmp_path / "talker", num_hidden_layers=8).directory

    @pytest.fixture
    def flags(self, tmp_path: Path) -> list[str]:
        schema = {"type": "array", "items": {"enum": [1, 2]}, "minItems": 100_000}
        (tmp_path / "endless.json").write_text(json.dumps(schema))
        return ["--json-schema", "endless.json"]

    def test_an_interrupt_stops_the_answer_and_not_the_chat(self, terminal: "pexpect.spawn[str]") -> None:
        terminal.sendline("hello")
        terminal.expect(r"\[\s*[12]")
        terminal.sendintr()
        terminal.expect_exact("[stopped]")
        terminal.expect_exact(PROMPT)
        say(terminal, "/show", "turns: 1")
        leave(terminal)
        assert terminal.exitstatus == 0


class TestAnAnswerWithANote:
    """Something was done otherwise than usual."""

    @pytest.fixture
    def flags(self) -> list[str]:
        return ["--max-kv-size", "512"]

    def test_it_is_told_once(self, terminal: "pexpect.spawn[str]") -> None:
        terminal.sendline("My name is Olga.")
        terminal.expect(r"\[\S+ .*\]")
        note = terminal.after
        terminal.expect_exact(PROMPT)
        say(terminal, "What is my name?", "Your name is Olga.")
        assert note not in terminal.before


def test_a_conversation_is_saved_and_loaded(terminal: "pexpect.spawn[str]", tmp_path: Path) -> None:
    say(terminal, "My name is Ada.", "Ada!")
    say(terminal, "/save talk.json", "saved to talk.json")
    saved = json.loads((tmp_path / "talk.json").read_text())
    assert saved["messages"][0] == {"role": "user", "content": "My name is Ada."}
    say(terminal, "/clear", "forgotten")
    say(terminal, "/load talk.json", "loaded 1 turn")
    say(terminal, "What is my name?", "Your name is Ada.")


def test_what_is_not_text_is_refused_and_the_chat_goes_on(terminal: "pexpect.spawn[str]", tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "\ud800"}, {"role": "assistant", "content": "x"}]
    (tmp_path / "half.json").write_text(
        json.dumps({"version": 1, "model": "demo", "system": None, "messages": turns}), encoding="ascii"
    )
    say(terminal, "My name is Olga.", "Olga!")
    say(terminal, "/load half.json", "'half.json' is not a transcript")
    os.write(terminal.child_fd, b"\xff\r")
    terminal.expect_exact("prompt: is not UTF-8 text")
    terminal.expect_exact(PROMPT)
    say(terminal, "What is my name?", "Your name is Olga.")


def test_a_pipe_is_no_transcript_and_is_not_waited_for(terminal: "pexpect.spawn[str]", tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    say(terminal, "/load pipe", "'pipe' cannot be read")
    say(terminal, "/save pipe", "'pipe' cannot be written")


def test_slash_commands_change_and_show_settings(terminal: "pexpect.spawn[str]") -> None:
    say(terminal, "/help", "/set NAME VALUE")
    say(terminal, "/set temperature 0.5", "temperature is 0.5")
    say(terminal, "/set verbose", "verbose is set")
    say(terminal, "hi", "tokens/s; prompt")
    say(terminal, "/set temperature 99", "temperature must be")
    say(terminal, "/show", "temperature: 0.5")
    say(terminal, "/nosuch", "no command /nosuch")
    say(terminal, "/model nosuch-model", "nosuch-model")
    say(terminal, "/system You are a pirate.", "the system prompt is set")


def test_typed_lines_are_remembered_in_a_private_file(
    terminal: "pexpect.spawn[str]", program_environment: dict[str, str]
) -> None:
    say(terminal, "hi", "Hello!")
    history = Path(program_environment["HOME"]) / ".local" / "state" / "mlxk" / "chat_history"
    assert "+hi" in history.read_text()
    assert history.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("model", ["demo-vision"])
def test_images_are_shown_in_the_chat(terminal: "pexpect.spawn[str]", tmp_path: Path) -> None:
    say(terminal, "/image demo-vision/red-circle.png What color is it?", "It is red.")
    say(terminal, "What shape is it?", "circle")
    say(terminal, "/clear", "forgotten")
    say(terminal, "/image demo-vision/blue-square.jpg", "'blue-square.jpg': shown with your next message")
    say(terminal, "/show", "images: 0 shown, 1 waiting")
    say(terminal, "What color is it?", "It is blue.")
    say(terminal, "/image nosuch.png", "Image not found: nosuch.png")
    say(terminal, "/save talk.json", "saved to talk.json, without its images")
    assert "blue" in (tmp_path / "talk.json").read_text()
    say(terminal, "/model demo", "the model is demo")
    say(terminal, "And now?", "takes no images")


@pytest.mark.parametrize("model", ["demo-vision"])
def test_clips_are_shown_in_the_chat(terminal: "pexpect.spawn[str]", tmp_path: Path) -> None:
    (tmp_path / "walk.mp4").write_bytes(written(greys(8)))
    say(terminal, "/video walk.mp4", "'walk.mp4': shown with your next message")
    say(terminal, "/show", "clips: 0 shown, 1 waiting")
    say(terminal, "Describe the video.", "A ")
    say(terminal, "And here? ./walk.mp4", "attached: ./walk.mp4")
    say(terminal, "/video nosuch.mp4", "Clip not found: nosuch.mp4")
    say(terminal, "/save talk.json", "saved to talk.json, without its video")


@pytest.mark.parametrize("model", ["demo-vision"])
@pytest.mark.parametrize("flags", [["--image", "demo-vision/red-circle.png"]])
def test_what_flags_show_waits_for_the_first_message(terminal: "pexpect.spawn[str]") -> None:
    assert "red-circle.png: shown with your next message" in str(terminal.before)
    say(terminal, "/show", "images: 0 shown, 1 waiting")
    say(terminal, "What color is it?", "It is red.")
    say(terminal, "What shape is it?", "It is a circle.")


@pytest.mark.parametrize("model", ["demo-vision"])
@pytest.mark.parametrize("flags", [["What color is it?", "--image", "demo-vision/red-circle.png", "--chunk", "2"]])
def test_a_prompt_beside_what_flags_show_is_the_first_message(terminal: "pexpect.spawn[str]") -> None:
    said = " ".join(str(terminal.before).split())
    assert "[--chunk has no effect in a chat: the model sees all images of a message together]" in said
    assert "It is red." in said
    say(terminal, "/show", "images: 1 shown, 0 waiting")


@pytest.mark.parametrize("model", ["demo-vision"])
@pytest.mark.parametrize("flags", [["--image", "demo-vision/red-circle.png", "--image", "absent.png"]])
def test_where_one_file_cannot_be_shown_none_is_and_the_chat_goes_on(terminal: "pexpect.spawn[str]") -> None:
    assert "Image not found: absent.png" in str(terminal.before)
    say(terminal, "/show", "turns: 0")
    assert "waiting" not in str(terminal.before)


def test_flags_show_clips_and_images_in_a_chat_without_a_terminal(mlxk_here: Program, tmp_path: Path) -> None:
    (tmp_path / "grey.mp4").write_bytes(written(greys(4)))
    done = mlxk_here("run", "demo-vision", "--chat", "--image", "demo-vision/red-circle.png", stdin="What color is it?")
    assert (done.returncode, done.stdout.strip()) == (0, "It is red.")
    done = mlxk_here("run", "demo-vision", "--chat", "--video", "grey.mp4", "--fps", "1")
    assert done.returncode == 0, done
    assert done.stdout.strip()
    for flags, fault in (
        (["demo", "--image", "demo-vision/red-circle.png"], "'demo' is a text model and takes no images"),
        (["demo-vision", "--video", "absent.mp4"], "Clip not found: absent.mp4"),
        (["demo-vision", "--image", *["demo-vision/red-circle.png"] * 6], "--image: images in one turn"),
        (["demo-speech", "--audio", "demo-speech/hello.wav"], "--chat does not apply to --audio"),
        (["demo-vision", "--audio", "demo-speech/hello.wav"], "audio"),
    ):
        refused = mlxk_here("run", *flags, "--chat")
        assert refused.returncode in (1, 2)
        assert fault in refused.stderr, refused


def test_a_text_model_is_shown_no_images_and_the_chat_goes_on(terminal: "pexpect.spawn[str]") -> None:
    say(terminal, "/image demo-vision/red-circle.png What is it?", "'demo' is a text model and takes no images")
    say(terminal, "hi", "Hello!")


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (("demo", "--draft-tokens", "2"), "--draft-tokens needs --draft-model"),
        (("demo", "--draft-model", "absent"), "absent"),
        (("demo", "--kv-bits", "4", "--max-kv-size", "64"), "exclude each other"),
        (("demo-speech",), "demo-speech"),
    ],
)
def test_what_every_turn_would_be_refused_for_is_said_before_the_first(
    program_environment: dict[str, str], tmp_path: Path, words: tuple[str, ...], fault: str
) -> None:
    process = spawn(program_environment, tmp_path, "run", *words, "--chat")
    process.expect(pexpect.EOF)
    process.close()
    said = process.before or ""
    assert fault in said
    assert "Chatting with" not in said
    assert process.exitstatus not in (0, None)


def test_without_a_terminal_all_of_standard_input_is_one_prompt(mlxk: Program) -> None:
    done = mlxk("run", "demo", stdin="What is mlxk?\n")
    assert done.returncode == 0
    assert done.stdout.startswith("mlxk is the knife")


def test_a_chat_tells_of_calls_and_of_cuts(mlxk_here: Program, tmp_path: Path) -> None:
    tool = {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
    (tmp_path / "tools.json").write_text(json.dumps([{"type": "function", "function": tool}]))
    called = mlxk_here("run", "demo", "--chat", "--tools", "tools.json", stdin="What is the weather in Paris?")
    assert json.loads(called.stdout) == {"name": "get_weather", "arguments": {"city": "Paris"}}
    cut = mlxk_here("run", "demo", "--chat", "--max-tokens", "3", stdin="Count to ten.")
    assert "[Output cut at 3 tokens (max_tokens). Allow more with: /set max_tokens N]" in cut.stderr


@pytest.mark.parametrize("flag", ["--json", "--no-chat-template"])
def test_what_a_chat_cannot_honour_is_refused(mlxk_here: Program, flag: str) -> None:
    done = mlxk_here("run", "demo", "--chat", flag)
    assert done.returncode == 2
    assert f"chat and {flag} exclude each other" in done.stderr + done.stdout


def test_an_empty_standard_input_ends_with_a_clear_line(mlxk_here: Program) -> None:
    done = mlxk_here("run", "demo")
    assert done.returncode == 2
    assert "run needs a prompt" in done.stderr
