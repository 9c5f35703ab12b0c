"""The grammar of the command line."""

import pytest

from mlxk.domain.errors import UsageError
from mlxk.entrypoints.cli.command_line_parser import HelpRequested
from mlxk.entrypoints.cli.program import build_parser, parse


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "demo", "two", "words", "--temperature", "0"],
        ["run", "demo", "--temperature", "0", "two", "words"],
        ["run", "demo", "two", "--temperature", "0", "words"],
        ["run", "--temperature", "0", "demo", "two", "words"],
    ],
)
def test_the_words_of_a_prompt_may_stand_around_flags(arguments: list[str]) -> None:
    parsed = parse(build_parser(), arguments)
    assert (parsed.model, parsed.words, parsed.temperature) == ("demo", ["two", "words"], 0.0)


@pytest.mark.parametrize(
    ("arguments", "field", "value"),
    [
        (["clone", "org/model", "--branch", "dev", "./dev"], "target", "./dev"),
        (["clone", "org/model", "./dev", "--branch", "dev"], "target", "./dev"),
        (["embed", "org/model", "--truncate", "text"], "text", "text"),
        (["chats", "rm", "--yes", "one", "two"], "names", ["one", "two"]),
        (["alias", "--json", "fast", "demo"], "words", ["fast", "demo"]),
    ],
)
def test_an_argument_that_may_be_left_out_may_stand_behind_flags(
    arguments: list[str], field: str, value: object
) -> None:
    assert getattr(parse(build_parser(), arguments), field) == value


@pytest.mark.parametrize("arguments", [["--json", "list"], ["list", "--json"]])
def test_json_is_accepted_before_and_after_the_command(arguments: list[str]) -> None:
    assert parse(build_parser(), arguments).json


def test_a_dash_is_a_word() -> None:
    assert parse(build_parser(), ["run", "demo", "-", "--seed", "1", "sum it up"]).words == ["-", "sum it up"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["run", "demo", "hi", "--nosuch"], "--nosuch"),
        (["list", "a", "b"], "b"),
        (["nosuch"], "nosuch"),
        (["run"], "MODEL"),
        (["run", "demo", "--seed", "x"], "--seed"),
    ],
)
def test_a_mistake_is_named(arguments: list[str], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        parse(build_parser(), arguments)


@pytest.mark.parametrize("arguments", [["run", "demo", "-hello"], ["run", "demo", "hi", "--system", "-x"]])
def test_a_text_that_starts_with_a_dash_is_told_how_to_be_written(arguments: list[str]) -> None:
    with pytest.raises(UsageError) as refused:
        parse(build_parser(), arguments)
    assert "--system=TEXT" in str(refused.value.hint)


def test_a_text_that_starts_with_a_dash_can_be_written() -> None:
    parsed = parse(build_parser(), ["run", "demo", "--system=-x", "--", "-hello"])
    assert (parsed.system, parsed.words) == ("-x", ["-hello"])


@pytest.mark.parametrize("arguments", [["--help"], ["run", "-h"]])
def test_help_is_handed_to_the_program_and_not_printed(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(HelpRequested, match="usage: mlxk"):
        parse(build_parser(), arguments)
    assert capsys.readouterr() == ("", "")
