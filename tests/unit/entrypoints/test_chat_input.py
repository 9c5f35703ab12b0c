"""What a line typed into the chat means."""

import pytest

from mlxk.domain.errors import ValidationError
from mlxk.entrypoints.cli.chat.input import Command, Prompt, read_line, wants_more


@pytest.mark.parametrize(
    ("line", "meaning"),
    [
        ("hello there", Prompt("hello there")),
        ("", None),
        ("   ", None),
        ("/set temperature 0", Command("set", "temperature 0")),
        ("/HELP", Command("help")),
        ("exit", Command("exit")),
        ("Quit", Command("exit")),
        ('"""/not a command"""', Prompt("/not a command")),
        ('"""two\nlines"""', Prompt("two\nlines")),
        ("what about exit?", Prompt("what about exit?")),
    ],
)
def test_a_line_is_a_prompt_a_command_or_nothing(line: str, meaning: Prompt | Command | None) -> None:
    assert read_line(line) == meaning


def test_a_lone_slash_is_refused() -> None:
    with pytest.raises(ValidationError, match="command after it"):
        read_line("/")


@pytest.mark.parametrize(
    ("text", "more"), [('"""', True), ('"""a', True), ('"""a\nb"""', False), ("a", False), ('""""""', False)]
)
def test_triple_quotes_ask_for_more_until_they_close(text: str, more: bool) -> None:
    assert wants_more(text) is more
