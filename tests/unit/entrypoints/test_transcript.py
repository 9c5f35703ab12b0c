"""Conversations as files."""

from pathlib import Path

import pytest

from mlxk.domain.conversation import Message, Role
from mlxk.domain.errors import StorageError, ValidationError
from mlxk.entrypoints.cli.chat.transcript import Transcript, load, save

TALK = Transcript("demo", "Be brief.", (Message(Role.USER, "Grüße 😀"), Message(Role.ASSISTANT, "Hallo")))


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
