"""Kept chats: files of their own, private, listed, removed and continued; in this process and without a terminal."""

import contextlib
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest

from mlxk.domain.errors import StorageError
from mlxk.domain.generation.conversation import Message, Role
from mlxk.entrypoints.cli.chat.kept_chats import Keeper, KeptChats
from mlxk.entrypoints.cli.chat.transcript import SavedChat
from mlxk.entrypoints.cli.command import CommandContext
from mlxk.entrypoints.cli.program import run
from mlxk.entrypoints.container import build
from mlxk.entrypoints.settings import read_settings

pytestmark = pytest.mark.mlx
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def mlxk_here(
    program_environment: dict[str, str],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Run:
    """Run a command line in this process; return status, standard output and standard error."""

    def execute(*arguments: str) -> tuple[int, str, str]:
        with contextlib.chdir(tmp_path), open(os.devnull) as null:
            monkeypatch.setattr("sys.stdin", null)
            settings = read_settings(program_environment)
            context = CommandContext(settings, build, lambda *_: 1, null.fileno())
            status = run(arguments, context)
        printed = capfd.readouterr()
        return status, printed.out, printed.err

    return execute


@pytest.fixture
def folder(program_environment: dict[str, str]) -> Path:
    return Path(program_environment["HOME"]) / ".local" / "state" / "mlxk" / "chats"


def listed(mlxk_here: Run) -> list[dict[str, object]]:
    status, out, _ = mlxk_here("chats", "--json")
    assert status == 0
    chats: list[dict[str, object]] = json.loads(out)["data"]["chats"]
    return chats


def test_a_chat_is_kept_for_its_user_alone_listed_continued_and_removed(mlxk_here: Run, folder: Path) -> None:
    assert mlxk_here("chats")[2] == "No chat is kept. Keep one with: mlxk run MODEL --keep\n"
    assert "no chat is kept yet" in mlxk_here("run", "--continue")[2]
    assert mlxk_here("run", "demo", "--chat", "hi")[0] == 0
    assert not folder.exists()
    assert mlxk_here("run", "demo", "--chat", "--keep", "My name is Olga.")[1].endswith("Olga!\n")
    (path,) = folder.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    status, out, _ = mlxk_here("run", "demo", "What is my name?", "--continue")
    assert (status, out) == (0, "Your name is Olga.\n")
    (chat,) = listed(mlxk_here)
    assert (chat["name"], chat["model"], chat["turns"]) == (path.stem, "demo", 2)
    assert chat["first_words"] == "My name is Olga."
    for row in mlxk_here("chats")[1].splitlines()[2:]:
        assert row.split(" | ")[::2] == [path.stem, "demo ", "My name is Olga."]
    for line in ([path.stem[:12], "What is my name?"], ["What is my name?"]):
        assert mlxk_here("run", "--continue", *line)[:2] == (0, "Your name is Olga.\n")
    status, out, err = mlxk_here("run", "demo-vision", "--continue", path.stem, "--prompt", "What color is it?")
    assert "['demo' had this chat; 'demo-vision' goes on with it]" in err
    assert [each["turns"] for each in listed(mlxk_here)] == [5]
    status, _, err = mlxk_here("run", "--continue", "hi")
    assert (status, err.splitlines()[-1]) == (1, "See all: mlxk chats. A prompt of one word: --prompt hi")
    assert mlxk_here("chats", "rm", path.stem)[1] == f"removed {path.stem}\n"
    assert listed(mlxk_here) == []


def test_chats_are_removed_by_the_beginning_of_a_name_and_all_together_after_a_question(
    mlxk_here: Run, folder: Path
) -> None:
    for _ in range(2):
        mlxk_here("run", "demo", "--chat", "--keep", "hi")
    names = [str(each["name"]) for each in listed(mlxk_here)]
    assert len(set(names)) == 2
    (folder / "broken.json").write_text("{")
    (folder / ".mlxk-chat.tmp").write_text("left over")
    assert "[broken cannot be read; remove it with: mlxk chats rm broken]" in mlxk_here("chats")[2]
    status, _, err = mlxk_here("chats", "rm", "--all")
    assert status == 1
    assert "Write the exact names, or confirm it with --yes." in err
    (folder / "folder.json").mkdir()
    refused = mlxk_here("chats", "rm", "folder")
    assert (refused[0], "the chat 'folder' cannot be removed: Is a directory" in refused[2]) == (1, True)
    (folder / "folder.json").rmdir()
    assert "begins the names of 2 kept chats" in mlxk_here("chats", "rm", "20")[2]
    assert "no kept chat is called 'brokn'" in mlxk_here("chats", "rm", "brokn")[2]
    assert "Did you mean broken?" in mlxk_here("chats", "rm", "brokn")[2]
    assert mlxk_here("chats", "rm", "brok")[0] == 1
    assert mlxk_here("chats", "rm")[0] == mlxk_here("chats", "rm", names[0], "--all")[0] == 2
    assert mlxk_here("chats", "--all")[0] == 2
    status, out, _ = mlxk_here("chats", "rm", "--all", "--yes", "--json")
    assert sorted(json.loads(out)["data"]["removed"]) == sorted([*names, "broken"])
    assert listed(mlxk_here) == []


def test_a_link_to_nothing_hides_no_chat_and_can_be_removed(mlxk_here: Run, folder: Path) -> None:
    mlxk_here("run", "demo", "--chat", "--keep", "My name is Olga.")
    (name,) = [str(each["name"]) for each in listed(mlxk_here)]
    (folder / "dangling.json").symlink_to(folder / "gone")
    (folder / "endless.json").symlink_to(folder / "endless.json")
    status, out, err = mlxk_here("chats")
    assert (status, name in out) == (0, True)
    for broken in ("dangling", "endless"):
        assert f"[{broken} cannot be read; remove it with: mlxk chats rm {broken}]" in err
    assert mlxk_here("run", "--continue", "--prompt", "What is my name?")[1] == "Your name is Olga.\n"
    assert mlxk_here("chats", "rm", "dangling")[:2] == (0, "removed dangling\n")
    mlxk_here("chats", "rm", "--all", "--yes")
    assert list(folder.iterdir()) == []


def test_the_settings_file_keeps_chats_and_the_flag_decides(
    mlxk_here: Run, folder: Path, program_environment: dict[str, str]
) -> None:
    path = Path(program_environment["HOME"]) / ".config" / "mlxk" / "config.toml"
    path.parent.mkdir(parents=True)
    path.write_text("[chat]\nkeep = true\n")
    mlxk_here("run", "demo", "--chat", "--no-keep", "hi")
    assert listed(mlxk_here) == []
    mlxk_here("run", "demo", "--chat", "hi")
    assert [each["turns"] for each in listed(mlxk_here)] == [1]
    assert "[--keep keeps chats, and this is none" in mlxk_here("run", "demo", "hi", "--keep")[2]
    folder.chmod(0o755)
    mlxk_here("run", "demo", "--chat", "hi")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_chats_of_one_second_are_numbered(tmp_path: Path) -> None:
    chats = KeptChats(str(tmp_path / "chats"))
    for _ in range(5):
        names = [chats.create(SavedChat("demo", None, ())) for _ in range(3)]
        if names[2].startswith(names[0]):  # the second did not end between them
            break
    assert names[1:] == [f"{names[0]}-2", f"{names[0]}-3"]


def test_a_message_in_quotes_is_listed_with_them(tmp_path: Path) -> None:
    chats = KeptChats(str(tmp_path))
    chats.create(SavedChat("demo", None, (Message(Role.USER, "'Hi' and 'bye'"), Message(Role.ASSISTANT, "Hi."))))
    assert chats.listed()[0][0].first_words == "'Hi' and 'bye'"


class ChangedWhileRead(KeptChats):
    def read(self, name: str) -> SavedChat:
        saved = super().read(name)
        self.write(name, attrs.evolve(saved, system="You are another."))
        return saved


def test_a_chat_that_changes_while_it_is_continued_goes_on_under_a_new_name(tmp_path: Path) -> None:
    turn = (Message(Role.USER, "Hi"), Message(Role.ASSISTANT, "Hi."))
    name = KeptChats(str(tmp_path)).create(SavedChat("demo", None, turn))
    keeper = Keeper(ChangedWhileRead(str(tmp_path)))
    saved = keeper.resume(name)
    assert "was changed by another chat" in keeper.keep(attrs.evolve(saved, messages=(*turn, *turn)))
    assert KeptChats(str(tmp_path)).read(name).system == "You are another."


TURN = (Message(Role.USER, "Hi"), Message(Role.ASSISTANT, "Hi."))
TALK = SavedChat("demo", None, TURN)
LONGER = SavedChat("demo", None, TURN * 2)


def test_a_chat_that_was_removed_meanwhile_is_not_made_again(tmp_path: Path) -> None:
    keeper = Keeper(KeptChats(str(tmp_path)))
    assert keeper.keep(TALK) == ""
    assert keeper.name is not None
    keeper.chats.remove([keeper.name, "never-was"])
    with pytest.raises(StorageError) as gone:
        keeper.keep(LONGER)
    assert gone.value.message == f"'{keeper.name}' was removed"
    assert list(tmp_path.iterdir()) == []


def test_a_chat_that_begins_anew_leaves_the_first_as_it_is(tmp_path: Path) -> None:
    keeper = Keeper(KeptChats(str(tmp_path)))
    keeper.keep(LONGER)
    first = keeper.name
    assert first is not None
    keeper.begin_anew()
    assert keeper.keep(attrs.evolve(TALK, messages=())) == ""
    assert [path.stem for path in tmp_path.iterdir()] == [first]
    keeper.keep(TALK)
    assert keeper.name not in {None, first}
    assert {path.stem for path in tmp_path.iterdir()} == {first, keeper.name}
    assert (keeper.chats.read(first), keeper.chats.read(str(keeper.name))) == (LONGER, TALK)


def test_only_a_chat_that_changed_is_written(tmp_path: Path) -> None:
    keeper = Keeper(KeptChats(str(tmp_path)))
    keeper.keep(TALK)
    assert keeper.name is not None
    state = keeper.chats.state(keeper.name)
    keeper.keep(TALK)
    keeper.writes = False
    keeper.keep(LONGER)
    assert keeper.chats.state(keeper.name) == state
    keeper.writes = True
    keeper.keep(LONGER)
    assert keeper.chats.state(keeper.name) != state
    assert keeper.chats.read(keeper.name) == LONGER


def test_a_folder_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    chats = KeptChats(str(tmp_path / "file"))
    with pytest.raises(StorageError, match=r"^the folder of kept chats cannot be read: Not a directory$"):
        chats.names()
    with pytest.raises(StorageError, match=r"^the folder of kept chats cannot be made: File exists$"):
        chats.create(TALK)
