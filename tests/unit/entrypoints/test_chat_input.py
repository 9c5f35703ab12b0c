"""What a line typed into the chat means."""

from pathlib import Path

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import DummyInput
from prompt_toolkit.output import DummyOutput

from mlxk.domain.errors import StorageError, ValidationError
from mlxk.entrypoints.cli.chat.terminal import Terminal
from mlxk.entrypoints.cli.chat.typed_input import (
    AttachCommand,
    ChatInput,
    Prompt,
    SlashCommand,
    is_unfinished,
    parse_input,
)
from mlxk.entrypoints.cli.output import Output
from mlxk.entrypoints.settings import read_settings


@pytest.mark.parametrize(
    ("line", "meaning"),
    [
        ("hello there", Prompt("hello there")),
        ("", None),
        ("   ", None),
        ("/set temperature 0", SlashCommand("set", "temperature 0")),
        ("/HELP", SlashCommand("help")),
        ("exit", SlashCommand("exit")),
        ("Quit", SlashCommand("exit")),
        ('"""/not a command"""', Prompt("/not a command", quoted=True)),
        ('"""two\nlines"""', Prompt("two\nlines", quoted=True)),
        ("what about exit?", Prompt("what about exit?")),
        ("/image a.png", AttachCommand("image", "a.png")),
        ("/image a.png  What's this?\nSay it.", AttachCommand("image", "a.png", "What's this?\nSay it.")),
        ('/Image "my photo.jpg" What is it?', AttachCommand("image", "my photo.jpg", "What is it?")),
        ("/image 'my photo.jpg'", AttachCommand("image", "my photo.jpg")),
        ("/file notes.md Summarize this", AttachCommand("file", "notes.md", "Summarize this")),
        ("/audio\ttalk.wav", AttachCommand("audio", "talk.wav")),
        ("/system\nBe brief.", SlashCommand("system", "Be brief.")),
        (r"/image my\ photo\'s.jpg Why?", AttachCommand("image", "my photo's.jpg", "Why?")),
    ],
)
def test_a_line_is_a_prompt_an_image_a_command_or_nothing(line: str, meaning: ChatInput | None) -> None:
    assert parse_input(line) == meaning


def test_a_lone_slash_is_refused() -> None:
    with pytest.raises(ValidationError, match="command after it"):
        parse_input("/")


@pytest.mark.parametrize("line", ["/image", "/image   ", "/image \\"])
def test_an_image_without_a_name_is_refused(line: str) -> None:
    with pytest.raises(ValidationError, match="needs a file"):
        parse_input(line)


@pytest.mark.parametrize(
    ("text", "more"), [('"""', True), ('"""a', True), ('"""a\nb"""', False), ("a", False), ('""""""', False)]
)
def test_triple_quotes_ask_for_more_until_they_close(text: str, more: bool) -> None:
    assert is_unfinished(text) is more


def test_a_text_that_has_no_folder_to_be_edited_in_is_an_error_about_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    settings = read_settings({"HOME": str(tmp_path), "EDITOR": "true"})
    with create_app_session(input=DummyInput(), output=DummyOutput()):
        terminal = Terminal(settings, Output(as_json=False, color=False), list)
        with pytest.raises(StorageError, match="the text cannot be edited: No such file"):
            terminal.edit("hi")
