"""Misspelt commands, flags and values: the nearest ones are named, and the hint names the help that lists them."""

import json
import re
import subprocess
from collections.abc import Callable

import pytest
from environment_variables import VARIABLES as TABLE

from mlxk.entrypoints.cli.command_line_parser import EXAMPLES
from mlxk.entrypoints.cli.program import COMMANDS, build_parser, parse
from mlxk.entrypoints.cli.settings_of_command import VARIABLES
from mlxk.entrypoints.cli.synonyms import FLAG_SYNONYMS, UNNEEDED_FLAGS

Program = Callable[..., "subprocess.CompletedProcess[str]"]
pytestmark = pytest.mark.e2e


@pytest.mark.parametrize(
    ("typed", "said", "hint"),
    [
        ("lst", "there is no command 'lst'", "Did you mean list? 'mlxk --help' lists the commands."),
        ("remov x", "there is no command 'remov'", "Did you mean rm? 'mlxk --help' lists the commands."),
        ("chat", "there is no command 'chat'", "Did you mean run? 'mlxk --help' lists the commands."),
        ("frobnicate", "there is no command 'frobnicate'", "'mlxk --help' lists the commands."),
        (
            "run demo hi --temprature 0",
            "unrecognized arguments: --temprature",
            "Did you mean --temperature? 'mlxk run --help' lists the flags.",
        ),
        (
            "run demo hi --max_tokens=3",
            "unrecognized arguments: --max_tokens=3",
            "Did you mean --max-tokens? 'mlxk run --help' lists the flags.",
        ),
        (
            "run demo hi --temp 0",
            "unrecognized arguments: --temp",
            "Did you mean --temperature or --template-option? 'mlxk run --help' lists the flags.",
        ),
        ("--health list", "--health is a flag of list and stands after it", "Write: mlxk list --health"),
        (
            "list a b",
            "unrecognized arguments: b",
            "mlxk list takes PATTERN; text of several words needs quotes. Try 'mlxk list --help'.",
        ),
        (
            "pull a b",
            "unrecognized arguments: b",
            "mlxk pull takes MODEL; text of several words needs quotes. Try 'mlxk pull --help'.",
        ),
        ("pull a/b --revision main", "unrecognized arguments: --revision", "Write it behind the name: NAME@REVISION"),
        ("show a/b --token=x", "unrecognized arguments: --token=x", "Set HF_TOKEN, or run: hf auth login"),
        ("list --sort size", "unrecognized arguments: --sort", "'mlxk list --help' lists the flags."),
        ("run demo hi --n 5", "unrecognized arguments: --n", "'mlxk run --help' lists the flags."),
        ("serve demo", "unrecognized arguments: demo", "Write: mlxk serve --model demo. Try 'mlxk serve --help'."),
        (
            "ps a",
            "unrecognized arguments: a",
            "mlxk ps takes no words. Try 'mlxk ps --help'.",
        ),
        ("list --all=x", "argument -a/--all: takes no value (got 'x')", "Try 'mlxk list --help'."),
        (
            "run",
            "the following arguments are required: MODEL",
            """Try 'mlxk run --help', or for example: mlxk run demo "What is mlxk?\"""",
        ),
        (
            "run demo --audio x --format jsn",
            "argument --format: 'jsn' is not one of text, json, srt, vtt",
            "Did you mean json?",
        ),
    ],
)
def test_a_typo_is_answered_with_what_was_meant(mlxk_here: Program, typed: str, said: str, hint: str) -> None:
    done = mlxk_here(*typed.split())
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [f"Error: {said}", hint]


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        ("--parallel 4", "Did you mean --max-streams? 'mlxk serve --help' lists the flags."),
        ("--lora a", "Did you mean --adapter? 'mlxk serve --help' lists the flags."),
        ("--n-gpu-layers 99", "Leave it out: a model is computed on the GPU, all of it, where there is one."),
        ("--temp=0.2 --seed 3", "Requests say that. For defaults, give the model a name: 'mlxk profile --help'."),
        (
            "-c 4096",
            "The context window is the model's own. For less, give the model a name in the settings file, with"
            " context = N.",
        ),
    ],
)
def test_flags_of_other_servers_are_answered_with_what_does_the_same(mlxk_here: Program, typed: str, hint: str) -> None:
    done = mlxk_here("serve", *typed.split())
    assert (done.returncode, done.stderr.splitlines()[1:]) == (2, [hint])


def test_what_flags_of_others_lead_to_exists_and_none_of_them_does() -> None:
    commands = next(each.choices for each in build_parser()._actions if isinstance(each.choices, dict))
    flags = {name: parser._option_string_actions for name, parser in commands.items()}
    for typed, meant in FLAG_SYNONYMS.items():
        assert any(meant in known for known in flags.values())
        assert not any(meant in known and typed in known for known in flags.values())
    assert not UNNEEDED_FLAGS.keys() & flags["serve"].keys()


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("--port", "80x", "argument --port: '80x' is no whole number"),
        ("--keep-alive", "5m", "argument --keep-alive: '5m' is no number"),
        ("--draft-block-size", "4k", "argument --draft-block-size: '4k' is no whole number"),
    ],
)
def test_a_value_that_is_no_number_is_called_so(mlxk_here: Program, flag: str, value: str, said: str) -> None:
    done = mlxk_here("serve", flag, value)
    assert (done.returncode, done.stderr.splitlines()[0]) == (2, f"Error: {said}")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("unload x", "stop"),
        ("status", "ps"),
        ("load x", "serve"),
        ("scan-cache", "du"),
        ("delete-cache", "rm"),
        ("env", "doctor"),
        ("log", "logs"),
    ],
)
def test_a_word_of_another_program_is_answered_with_the_command(mlxk_here: Program, typed: str, meant: str) -> None:
    assert f"Did you mean {meant}?" in mlxk_here(*typed.split()).stderr


def test_a_misspelt_schema_is_answered_with_what_was_meant(mlxk_here: Program) -> None:
    assert mlxk_here("schema", "lst").stderr.splitlines()[-1] == "Did you mean list? mlxk schema lists the names."


def test_a_typo_is_one_json_document_for_programs(mlxk: Program) -> None:
    envelope = json.loads(mlxk("lst", "--json").stdout)
    assert envelope["error"]["type"] == "usage_error"
    assert envelope["error"]["hint"].startswith("Did you mean list?")


@pytest.mark.parametrize(
    ("typed", "like"),
    [
        ("ls", "list"),
        ("help", "--help"),
        ("help run", "run --help"),
        ("version", "--version"),
        ("-V", "--version"),
        ("run -m demo Hello!", "run demo Hello!"),
        ("run --model=demo Hello!", "run demo Hello!"),
        ("run -mdemo Hello!", "run demo Hello!"),
        ("--json show demo --files", "show demo --files --json"),
        ("list -a -v", "list --all --verbose"),
        ("run demo Hello! -s Short.", "run demo Hello! --system Short."),
        ("remove x", "rm x"),
        ("rm x -y", "rm x --yes"),
    ],
)
def test_words_and_letters_that_other_programs_have_do_the_same(mlxk_here: Program, typed: str, like: str) -> None:
    short, long = mlxk_here(*typed.split()), mlxk_here(*like.split())
    assert (short.returncode, short.stdout, short.stderr) == (long.returncode, long.stdout, long.stderr)


def test_a_model_after_joined_short_flags_is_the_model(mlxk_here: Program) -> None:
    assert mlxk_here("run", "-vm", "demo", "Hello!").stdout == mlxk_here("run", "demo", "Hello!").stdout != ""


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_s_help_ends_with_examples_that_are_valid(mlxk_here: Program, command: str) -> None:
    import shlex

    examples = EXAMPLES[command]
    assert mlxk_here(command, "--help").stdout.endswith(
        "\n".join(("examples:", *(f"  {line}" for line in examples))) + "\n"
    )
    for line in examples:
        words = shlex.split(re.split(r" [<>|] ", line.removeprefix('eval "$(').removesuffix(')"'))[0])
        assert parse(build_parser(), words[1:]).command == command


def test_run_says_how_fast_it_was_when_asked(mlxk: Program) -> None:
    done = mlxk("run", "demo", "Hello!", "-v")
    assert done.stdout == mlxk("run", "demo", "Hello!").stdout
    lines = r"\[\d+ tokens, \d+\.\d tokens/s; prompt \d+ tokens\]\n\[computed here: .+\]\n(\[matrices are .+\]\n)?"
    assert re.fullmatch(lines, done.stderr)


def test_the_script_for_zsh_works_where_completion_is_not_set_up(mlxk_here: Program) -> None:
    first = mlxk_here("completion", "zsh").stdout.splitlines()[0]
    assert first == "(( $+functions[compdef] )) || { autoload -Uz compinit && compinit; }"
    assert "compinit" not in mlxk_here("completion", "bash").stdout


def test_a_misspelt_variable_is_named_with_what_was_meant(mlxk_here: Program) -> None:
    done = mlxk_here("list", MLXK2_PRELOAD_MODL="demo", MLXK2_PORT="9001", MLXK2_NOTHING_LIKE_IT="1")
    assert (done.returncode, done.stderr.splitlines()[:2]) == (
        0,
        [
            "[MLXK2_NOTHING_LIKE_IT has no effect.]",
            "[MLXK2_PRELOAD_MODL has no effect. Did you mean MLXK2_PRELOAD_MODEL?]",
        ],
    )
    assert {each.name for each in TABLE if each.name.startswith("MLXK2_")} == VARIABLES
