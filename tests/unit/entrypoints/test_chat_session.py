"""Slash commands that change or show the state of a chat, on the built-in models, none of which is loaded."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlxk.application.generation_input import GenerationOptions
from mlxk.domain.errors import MlxkError, ValidationError
from mlxk.domain.generation.conversation import Message, Role
from mlxk.domain.generation.request import Finished, FinishReason, Timings, Usage
from mlxk.domain.generation.settings import GenerationSettings
from mlxk.entrypoints.cli.chat.session import ChatSession
from mlxk.entrypoints.cli.chat.typed_input import HELP, SlashCommand, parse_input
from mlxk.entrypoints.container import build
from mlxk.entrypoints.settings import read_settings

Typed = Callable[[str], str]


def turn(number: int) -> tuple[Message, Message]:
    return Message(Role.USER, f"question {number}"), Message(Role.ASSISTANT, f"answer {number}")


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ChatSession:
    monkeypatch.chdir(tmp_path)
    container = build(read_settings({"HOME": str(tmp_path)}))
    room: Any = None  # only /summarize makes room
    return ChatSession(
        generate=container.use_cases.generate_text(),
        room=room,
        built_in=container.adapters.built_in_models(),
        model="demo",
        settings=GenerationSettings(),
        options=GenerationOptions(),
    )


@pytest.fixture
def typed(session: ChatSession) -> Typed:
    """Type a line, and return what is answered."""

    def execute(line: str) -> str:
        command = parse_input(line)
        assert isinstance(command, SlashCommand)
        return session.execute(command)

    return execute


def refusal(typed: Typed, line: str) -> tuple[str, str]:
    """Return message and hint of the error that a line gets."""
    with pytest.raises(MlxkError) as refused:
        typed(line)
    return refused.value.message, str(refused.value.hint or "")


@pytest.mark.parametrize(
    ("line", "field", "value", "said"),
    [
        ("/set temperature 0.5", "temperature", 0.5, "temperature is 0.5"),
        ("/set temperature=0.5", "temperature", 0.5, "temperature is 0.5"),
        ("/set parameter temperature = 0.5", "temperature", 0.5, "temperature is 0.5"),
        ("/set TOP-K 5", "top_k", 5, "top_k is 5"),
        ("/set stop a = b", "stop", ("a = b",), "stop is a = b"),
        ("/set stop default", "stop", (), "stop is default"),
        ("/set seed default", "seed", None, "seed is default"),
    ],
)
def test_a_setting_is_set_in_every_form(
    typed: Typed, session: ChatSession, line: str, field: str, value: Any, said: str
) -> None:
    session.settings = GenerationSettings(seed=3, stop=("x",))
    assert typed(line) == said
    changed: dict[str, Any] = {"seed": 3, "stop": ("x",), field: value}
    assert session.settings == GenerationSettings(**changed)


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        ("/set", "/set needs a name", "For example: /set temperature 0.5"),
        ("/set = 3", "/set needs a name", "For example: /set temperature 0.5"),
        ("/set top_k", "/set top_k needs a value", "Did you mean /set top_k VALUE? Type /help for the names."),
        ("/set num_predict 5", "/set does not know 'num_predict'", "Did you mean max_tokens? Type /help"),
        ("/set temprature 5", "/set does not know 'temprature'", "Did you mean temperature? Type /help"),
        ("/set system Be brief.", "/set does not know 'system'", "Did you mean /system TEXT? Type /help"),
        ("/set verbose yes", "/set does not know 'verbose'", ""),
        ("/set top_k many", "top_k must be a whole number (got 'many')", ""),
        ("/set top_k 1e3", "top_k must be a whole number (got '1e3')", ""),
        ("/set temperature warm", "temperature must be a number (got 'warm')", ""),
        ("/set temperature nan", "temperature must be", ""),
        ("/set temperature 99", "temperature must be", ""),
        ("/set max_tokens 0", "max_tokens must be", ""),
    ],
)
def test_what_cannot_be_set_is_said_and_changes_nothing(
    typed: Typed, session: ChatSession, line: str, message: str, hint: str
) -> None:
    said, advice = refusal(typed, line)
    assert (said.startswith(message), advice.startswith(hint)) == (True, True), (said, advice)
    assert (session.settings, session.verbose) == (GenerationSettings(), False)


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ("/set verbose", "verbose", True),
        ("/set quiet", "verbose", False),
        ("/set reasoning", "show_reasoning", True),
        ("/set noreasoning", "show_reasoning", False),
    ],
)
def test_a_switch_has_no_value(typed: Typed, session: ChatSession, line: str, field: str, value: bool) -> None:
    setattr(session, field, not value)
    assert typed(line) == f"{line.split()[1]} is set"
    assert getattr(session, field) is value


def test_what_is_set_is_shown(typed: Typed, session: ChatSession) -> None:
    assert typed("/show") == "model: demo\nturns: 0"
    session.settings = GenerationSettings(temperature=0.0, seed=0, stop=("a", "b"))
    session.options = GenerationOptions(thinking=False)
    session.messages, session.earlier, session.summary = turn(3), (*turn(1), *turn(2)), "They spoke."
    Path("notes.md").write_text("one\ntwo\n")
    assert session.attach("file", "notes.md") == "'notes.md', 2 lines: added to your next message"
    assert typed("/system Be brief.") == "the system prompt is set"
    assert typed("/show").splitlines() == [
        "model: demo",
        "temperature: 0.0",
        "seed: 0",
        "stop: 'a', 'b'",
        "thinking: no",
        "system: Be brief.",
        "files waiting: notes.md",
        "summary: They spoke.",
        "turns: 1, and 2 dropped",
    ]
    assert typed("/system") == "the system prompt is removed"
    assert typed("/clear") == "the conversation is forgotten"
    assert typed("/show").splitlines()[4:] == ["thinking: no", "turns: 0"]


def test_turns_are_taken_back_one_by_one(typed: Typed, session: ChatSession) -> None:
    assert refusal(typed, "/undo")[0] == "there is no message yet"
    session.messages = (*turn(1), *turn(2))
    assert typed("/undo") == "taken back: 'question 2' (1 turn left)"
    assert list(session.messages) == [*turn(1)]
    assert typed("/undo") == "taken back: 'question 1' (0 turns left)"
    assert not session.messages


def test_a_conversation_is_saved_and_loaded_in_place_of_another(typed: Typed, session: ChatSession) -> None:
    assert refusal(typed, "/load") == ("/load needs a file", "For example: /load talk.json")
    with pytest.raises(ValidationError, match="/save needs a file"):
        session.save("", replace=False)
    session.system, session.summary = "Be brief.", "They spoke."
    session.messages, session.earlier = turn(2), turn(1)
    assert session.save("talk.json", replace=False) == "saved to talk.json"
    with pytest.raises(FileExistsError):
        session.save("talk.json", replace=False)
    saved = session.saved
    typed("/clear")
    assert typed("/load 'talk.json'") == "loaded 1 turn"
    assert session.saved == saved
    written = json.loads(Path("talk.json").read_text())
    Path("talk.json").write_text(json.dumps({**written, "model": "org/other"}))
    assert typed("/load talk.json") == (
        "loaded 1 turn, in place of the 1 turn before, "
        "which 'org/other' answered; 'demo' goes on with it (or: /model org/other)"
    )


def test_another_model_goes_on_and_one_that_is_not_here_does_not(typed: Typed, session: ChatSession) -> None:
    assert typed("/model") == "the model is demo; another one is named with /model NAME, and Tab shows the names"
    assert "nosuch" in refusal(typed, "/model nosuch")[0]
    assert session.model == "demo"
    assert typed("/model demo-vision") == "the model is demo-vision"
    session.messages = turn(1)
    assert typed("/model demo") == "the model is demo; it goes on with the 1 turn so far"
    assert session.model == "demo"


def test_what_the_answers_took_is_counted(session: ChatSession) -> None:
    assert session.statistics() == ("no answer yet",)
    for tokens in (1, 10):
        session.count(Finished(FinishReason.STOP, Usage(20, tokens, 8), Timings(0.5, 0.25, 2.0, 0.25)))
    assert session.statistics() == (
        "last answer: 10 tokens, 5.0 tokens/s; prompt 20 tokens, 8 cached",
        "first token after 1.00 s, 0.50 s of it to load the model",
        "this chat: 2 answers, 11 tokens",
    )


def test_help_is_about_all_commands_or_one(typed: Typed) -> None:
    assert typed("/help") == HELP
    about = typed("/help undo")
    assert about.split(maxsplit=1) == ["/undo", "take back the last message and its answer"]
    assert typed("/? /UNDO") == about
    for line in ("/help udno", "/udno"):
        assert refusal(typed, line) == (
            "there is no command /udno",
            "Did you mean /undo or /audio? Type /help for the commands.",
        )
    message, hint = refusal(typed, "/a/b is no file")
    assert (message, hint.endswith('A message that begins with a slash stands between """.')) == (
        "there is no command /a/b",
        True,
    )


@pytest.mark.parametrize("line", ["/undo 2", "/clear all"])
def test_words_after_a_command_that_takes_none_are_refused(typed: Typed, line: str) -> None:
    name, _, more = line.partition(" ")
    assert refusal(typed, line) == (f"{name} takes nothing after it (got '{more}')", f"Write only {name}.")


@pytest.mark.parametrize("line", ["/bye", "/exit", "exit", "Quit"])
def test_a_chat_is_left(typed: Typed, session: ChatSession, line: str) -> None:
    assert typed(line) == ""
    assert session.finished
