"""Conversations as files."""

import json
import os
import stat
from pathlib import Path

import pytest

from mlxk.domain.errors import StorageError, ValidationError
from mlxk.domain.generation.conversation import Message, Role, ToolCall
from mlxk.entrypoints.cli.chat.transcript import FIRST_WORDS, MAX_TRANSCRIPT_BYTES, SavedChat, first_words, load, save

TALK = SavedChat("demo", "Be brief.", (Message(Role.USER, "Grüße 😀"), Message(Role.ASSISTANT, "Hallo")))


def test_a_saved_conversation_is_loaded_unchanged(tmp_path: Path) -> None:
    save(str(tmp_path / "talk.json"), TALK)
    assert load(str(tmp_path / "talk.json")) == TALK
    assert [each.name for each in tmp_path.iterdir()] == ["talk.json"]


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"messages": 1}', '{"model": 1, "messages": []}', "[" * 50_000]
)
def test_a_file_that_is_no_transcript_is_refused_by_name(tmp_path: Path, content: str) -> None:
    path = tmp_path / "talk.json"
    path.write_text(content)
    with pytest.raises(ValidationError, match=r"talk\.json"):
        load(str(path))


def test_a_directory_and_a_missing_file_are_refused_by_name(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nosuch"):
        with pytest.raises(StorageError, match=path.name):
            load(str(path))
    with pytest.raises(StorageError, match="nosuch"):
        save(str(tmp_path / "nosuch" / "talk.json"), TALK)


def test_the_functions_a_model_called_are_kept(tmp_path: Path) -> None:
    calls = (ToolCall("get_weather", '{"city": "Berlin"}', "call_1"), ToolCall("cut", '{"city": "Ber'))
    talk = SavedChat("demo", None, (Message(Role.USER, "Weather?"), Message(Role.ASSISTANT, "", calls)))
    save(str(tmp_path / "talk.json"), talk)
    assert load(str(tmp_path / "talk.json")) == talk


def test_results_of_calls_and_what_was_summarized_are_kept(tmp_path: Path) -> None:
    call = ToolCall("get_weather", '{"city": "Berlin"}', "call_1")
    turn = (
        Message(Role.USER, "Weather?"),
        Message(Role.ASSISTANT, "", (call,)),
        Message(Role.TOOL, "rain", tool_call_id="call_1"),
        Message(Role.ASSISTANT, "It rains."),
    )
    talk = SavedChat("demo", None, turn, earlier=turn * 2, summary="They spoke of the weather.")
    save(str(tmp_path / "talk.json"), talk)
    assert load(str(tmp_path / "talk.json")) == talk
    assert json.loads((tmp_path / "talk.json").read_text())["messages"][2] == {
        **{"role": "tool", "content": "rain", "tool_call_id": "call_1"}
    }


def test_a_file_larger_than_any_transcript_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    save(str(path), TALK)
    os.truncate(path, MAX_TRANSCRIPT_BYTES + 1)
    with pytest.raises(ValidationError) as refusal:
        load(str(path))
    assert refusal.value.message == f"'{path}' is larger than any transcript"


@pytest.mark.parametrize(
    ("content", "shown"),
    [
        (None, ""),
        ("Hi\n  there", "'Hi there'"),
        ("x" * FIRST_WORDS, f"'{'x' * FIRST_WORDS}'"),
        ("x" * (FIRST_WORDS + 1), f"'{'x' * (FIRST_WORDS - 1)}…'"),
    ],
    ids=["none", "lines", "longest", "too long"],
)
def test_the_first_words_of_a_chat_are_one_short_line(content: str | None, shown: str) -> None:
    assert first_words(() if content is None else (Message(Role.USER, content),)) == shown


def test_what_a_model_thought_is_kept(tmp_path: Path) -> None:
    thought = Message(Role.ASSISTANT, "Hallo", reasoning="A greeting.")
    talk = SavedChat("demo", None, (Message(Role.USER, "Hi"), thought))
    save(str(tmp_path / "talk.json"), talk)
    assert load(str(tmp_path / "talk.json")) == talk


@pytest.mark.parametrize(
    "change",
    [
        {"version": "1"},
        {"version": True},
        {"version": None},
        {"system": 5},
        {"model": "\ud800"},
        {"system": "\ud800"},
        {"messages": [{"role": "user", "content": "\ud800"}, {"role": "assistant", "content": "x"}]},
        {"messages": [{"role": "user", "content": "unanswered"}]},
        {"messages": [{"role": "assistant", "content": "x"}, {"role": "user", "content": "x"}]},
        {"messages": [{"role": "tool", "content": "x"}, {"role": "system", "content": "x"}]},
        {
            "messages": [
                {
                    "role": "user",
                    "content": "x",
                    "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}],
                },
                {"role": "assistant", "content": "x"},
            ]
        },
        {"messages": [{"role": "user", "content": "x", "tool_calls": 1}, {"role": "assistant", "content": "x"}]},
        {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "x", "tool_calls": [{}]}]},
    ],
    ids=json.dumps,
)
def test_what_no_chat_could_have_saved_is_refused_by_name(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "talk.json"
    path.write_text(json.dumps({"version": 1, "model": "demo", "system": None, "messages": [], **change}))
    with pytest.raises(ValidationError, match=r"talk\.json.*not a transcript"):
        load(str(path))


def test_a_transcript_of_a_later_version_says_which(tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    path.write_text('{"version": 99}')
    with pytest.raises(ValidationError, match=r"talk\.json.*version 99"):
        load(str(path))


def test_a_new_transcript_is_private_and_a_replaced_file_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    save(str(path), TALK)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o640)
    save(str(path), TALK)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_link_stays_a_link_to_the_file_that_is_written(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("talk.json")
    for _ in range(2):
        save(str(tmp_path / "link"), TALK)
        assert (tmp_path / "link").is_symlink()
        assert load(str(tmp_path / "talk.json")) == TALK


def test_what_is_no_file_is_neither_replaced_nor_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(StorageError, match="pipe"):
        save(str(path), TALK)
    assert path.is_fifo()
    with pytest.raises(StorageError, match="pipe"):
        load(str(path))
    with pytest.raises(StorageError, match=tmp_path.name):
        save(str(tmp_path), TALK)
    assert [each.name for each in tmp_path.iterdir()] == ["pipe"]


def test_a_name_that_no_file_can_have_is_refused() -> None:
    with pytest.raises(ValidationError, match="name of a file"):
        save("a\0b", TALK)
    with pytest.raises(ValidationError, match="name of a file"):
        load("a\0b")
