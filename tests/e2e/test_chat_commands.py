"""The commands of the chat that work on its messages, and Tab, on a pseudo-terminal."""

import base64
import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from chatting import PROMPT, end, leave, say, start
from models.pictures import as_png, noise
from models.scripted_model import write_model
from models.tiny_models import TEMPLATE
from models.tiny_vision import build as build_vision

from mlxk.entrypoints.cli.chat.typed_input import NAMES

if TYPE_CHECKING:
    import pexpect

pytestmark = pytest.mark.e2e

EDITOR = """\
#!/bin/sh
grep -q . "$1" && sed -i.bak s/Olga/Ada/ "$1" || printf 'Hello!\\nWhat is mlxk?\\n' > "$1"
"""
CLIPBOARD = "#!/bin/sh\nexec cat > {}\n"


def script(path: Path, text: str) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o700)
    return str(path)


@pytest.fixture
def variables(tmp_path: Path) -> dict[str, str]:
    """Return the variables of the chat."""
    return {"EDITOR": "false", "VISUAL": f"{script(tmp_path / 'edit it', EDITOR)!r}"}


@pytest.fixture
def terminal(
    program_environment: dict[str, str], tmp_path: Path, variables: dict[str, str]
) -> Iterator["pexpect.spawn[str]"]:
    process = start(program_environment, tmp_path, "run", "demo", **variables)
    yield process
    end(process)


def test_messages_are_taken_back_repeated_and_changed(terminal: "pexpect.spawn[str]") -> None:
    for command, expected in (("/undo", "no message"), ("/retry", "no message"), ("/edit last", "no message")):
        say(terminal, command, expected)
    say(terminal, "/copy", "no answer to copy")
    say(terminal, "/stats", "no answer yet")
    say(terminal, "My name is Olga.", "Olga!")
    say(terminal, "What is my name?", "Your name is Olga.")
    say(terminal, "/retry", "Your name is Olga.")
    say(terminal, "/show", "turns: 2")
    say(terminal, "/undo", "taken back: 'What is my name?' (1 turn left)")
    say(terminal, "/edit last", "My name is Ada.")
    assert "Ada!" in terminal.before
    say(terminal, "What is my name?", "Your name is Ada.")
    say(terminal, "/set seed 1", "seed is 1")
    terminal.sendline("/retry")
    terminal.expect_exact("the seed is 1, so that every answer to the same words is the same")
    terminal.expect_exact(PROMPT)
    terminal.sendline("/stats")
    terminal.expect(r"last answer: \d+ tokens, [\d.]+ tokens/s; prompt \d+ tokens")
    terminal.expect(r"first token after \d+\.\d\d s, 0\.00 s of it to load the model")
    terminal.expect(r"this chat: 6 answers, \d+ tokens")
    terminal.expect(r"context: \d+ of \d+ tokens \(\d+ %\)")
    terminal.expect_exact(PROMPT)
    say(terminal, "/edit", "mlxk is the knife")
    say(terminal, "/edit nonsense", "/edit does not know 'nonsense'")
    say(terminal, "/model demo-vision", "the model is demo-vision; it goes on with the 3 turns so far")
    say(terminal, "/model", "the model is demo-vision; another one is named with /model NAME")
    terminal.sendline("/help")
    terminal.expect_exact(PROMPT)
    assert [name for name in NAMES if f"/{name}" not in terminal.before] == ["summarise"]
    leave(terminal)


def test_files_are_added_to_a_message_and_nothing_is_overwritten_unasked(
    program_environment: dict[str, str], tmp_path: Path
) -> None:
    replies = {"@@FIRST@@": "The first note.", "@@SECOND@@": "Another file."}
    write_model(tmp_path / "reader", TEMPLATE, "I see nothing.", replies)
    terminal = start(program_environment, tmp_path, "run", "./reader")
    (tmp_path / "my note.md").write_text("@@FIRST@@\nI am here.\n")
    (tmp_path / "other.md").write_text("@@SECOND@@")
    (tmp_path / "image.png").write_bytes(b"\x89PNG\r\n\x1a\n\xff")
    say(terminal, '/file "my note.md"', "'my note.md', 2 lines: added to your next message")
    say(terminal, "/show", "files waiting: my note.md")
    say(terminal, "What is this?", "The first note.")
    say(terminal, "/file other.md What is this?", "Another file.")
    for typed, expected in (
        ("/file", "/file needs a file"),
        ("/file nosuch.md", "/file: 'nosuch.md' cannot be read"),
        ("/file image.png", "/file: 'image.png' is not UTF-8 text"),
        ("/file .", "/file: '.' cannot be read: Is a directory"),
    ):
        say(terminal, typed, expected)
    say(terminal, "What is this? ./other.md", "[./other.md stays words: its text is added by /file ./other.md]")
    (tmp_path / "precious.txt").write_text("precious")
    for answer, expected in (("n", "not saved"), ("", "not saved")):
        terminal.sendline("/save precious.txt")
        terminal.expect_exact("'precious.txt' exists. Replace it? [y/N]: ")
        say(terminal, answer, expected)
        assert (tmp_path / "precious.txt").read_text() == "precious"
    terminal.sendline("/save precious.txt")
    terminal.expect_exact("[y/N]: ")
    say(terminal, "y", "saved to precious.txt")
    saved = json.loads((tmp_path / "precious.txt").read_text())
    assert saved["messages"][0]["content"] == "@@FIRST@@\nI am here.\n\n\nWhat is this?"
    (tmp_path / "other.json").write_text(json.dumps({**saved, "model": "demo-vision"}))
    say(terminal, "/save new.json", "saved to new.json")
    assert stat.S_IMODE((tmp_path / "new.json").stat().st_mode) == 0o600
    terminal.sendline("/load other.json")
    terminal.expect_exact(
        "loaded 3 turns, in place of the 3 turns before, which 'demo-vision' answered; './reader' goes on with it"
    )
    terminal.expect_exact(PROMPT)


class TestTheClipboard:
    @pytest.fixture
    def variables(self, tmp_path: Path) -> dict[str, str]:
        script(tmp_path / "bin" / "wl-copy", "#!/bin/sh\nexit 1\n")
        script(tmp_path / "bin" / "xclip", CLIPBOARD.format(tmp_path / "copied"))
        return {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "EDITOR": "/nonexistent/editor"}

    def test_the_first_program_that_works_gets_the_answer(self, terminal: "pexpect.spawn[str]", tmp_path: Path) -> None:
        say(terminal, "hi", "Hello!")
        say(terminal, "/copy", "copied with xclip")
        assert (tmp_path / "copied").read_text().startswith("Hello!")
        (tmp_path / "bin" / "xclip").unlink()
        say(terminal, "/copy", "no program for the clipboard works here, and this terminal has none")
        say(terminal, "/edit", "the editor '/nonexistent/editor' cannot be used: No such file or directory")


class TestATerminalThatUnderstands:
    @pytest.fixture
    def variables(self, tmp_path: Path) -> dict[str, str]:
        (tmp_path / "my notes").mkdir()
        (tmp_path / "my notes" / "note.md").write_text("Nothing of note.")
        return {"TERM": "xterm", "SSH_TTY": "/dev/pts/1", "EDITOR": "false", "PROMPT_TOOLKIT_NO_CPR": "1"}

    def test_tab_completes_copies_go_through_the_terminal_and_lines_come_back_whole(
        self, terminal: "pexpect.spawn[str]"
    ) -> None:
        for typed, completed in (
            ("/he\t", "/help"),
            ("/model demo-v\t", "/model demo-vision"),
            ("/set temp\t", "/set temperature"),
        ):
            terminal.send(typed)
            terminal.expect_exact(completed.removeprefix(typed.strip()))
            terminal.sendcontrol("u")
            terminal.sendcontrol("c")
        terminal.expect_exact(">>>")
        terminal.send("/file ./my\t")
        terminal.expect_exact("\\ notes/")
        terminal.send("no\t\r")
        terminal.expect_exact("1 line: added to your next message")
        terminal.send("My name is Ada.\r")
        terminal.expect_exact("Ada!")
        terminal.send("What is my name?\r")
        terminal.expect_exact("Your name is Ada.")
        terminal.send("/copy\r")
        terminal.expect(r"\x1b\]52;c;([\w+/=]+)\x07")
        assert terminal.match is not None
        assert base64.b64decode(terminal.match[1]) == b"Your name is Ada."
        terminal.expect_exact("handed to the terminal to be copied (OSC 52), which some terminals ignore")
        terminal.send('"""\r')
        terminal.expect_exact("...")
        terminal.send('What is\rmy name?"""\r')
        terminal.expect_exact("Your name is Ada.")
        terminal.expect_exact(">>>")
        terminal.send("\x1b[A")
        terminal.expect_exact("What is")
        terminal.expect_exact("my name?")
        terminal.send("\r")
        terminal.expect_exact("Your name is Ada.")
        terminal.send("/edit\r")
        terminal.expect_exact("the editor ended with status 1; nothing is sent")


def test_sound_and_images_that_a_line_names_are_attached(program_environment: dict[str, str], tmp_path: Path) -> None:
    build_vision(tmp_path / "gemma4", "gemma4", seed=4)
    (tmp_path / "hello.flac").write_bytes((Path(__file__).parents[1] / "sounds" / "hello.flac").read_bytes())
    (tmp_path / "0.png").write_bytes(as_png(noise(1)))
    terminal = start(program_environment, tmp_path, "run", "./gemma4", "--chat", "--max-tokens", "4")
    say(terminal, "What is said? ./hello.flac", "[attached: ./hello.flac]")
    say(terminal, "/audio hello.flac", "'hello.flac': shown with your next message")
    say(terminal, "/show", "recordings waiting: 1")
    say(terminal, "And does ./0.png match?", "[attached: ./0.png]")
    say(terminal, "/show", "turns: 2")
    say(terminal, "/save talk.json", "saved to talk.json, without its")
    say(terminal, "/model demo", "goes on with the 2 turns so far")
    say(terminal, "/undo", "1 turn left")
    say(terminal, "/undo", "0 turns left")
    say(terminal, "/clear", "forgotten")
    say(terminal, "hi ./hello.flac", "[./hello.flac stays words: ")
    end(terminal)


def test_a_kept_chat_is_written_after_every_turn_and_not_after_its_removal(
    program_environment: dict[str, str], tmp_path: Path
) -> None:
    folder = Path(program_environment["HOME"]) / ".local" / "state" / "mlxk" / "chats"
    terminal = start(program_environment, tmp_path, "run", "demo", "--keep")
    assert "This chat is kept; mlxk chats lists the chats" in terminal.before
    say(terminal, "My name is Olga.", "Olga!")
    (first,) = folder.iterdir()
    say(terminal, "hi", "Hello!")
    say(terminal, "/undo", "1 turn left")
    assert len(json.loads(first.read_text())["messages"]) == 2
    say(terminal, "/clear", "forgotten")
    say(terminal, "hi", "Hello!")
    (second,) = set(folder.iterdir()) - {first}
    second.unlink()
    say(terminal, "hi", f"[this chat is not kept any more: '{second.stem}' was removed]")
    say(terminal, "hi", "Hello!")
    assert list(folder.iterdir()) == [first]
    leave(terminal)
    terminal = start(program_environment, tmp_path, "run", "--continue")
    assert f"Continuing '{first.stem}', 1 turn, which began with 'My name is Olga.'." in terminal.before
    say(terminal, "What is my name?", "Your name is Olga.")
    leave(terminal)


def test_a_kept_chat_whose_turns_were_all_taken_back_goes_on(
    program_environment: dict[str, str], tmp_path: Path
) -> None:
    terminal = start(program_environment, tmp_path, "run", "demo", "--keep")
    say(terminal, "hi", "Hello!")
    say(terminal, "/undo", "0 turns left")
    leave(terminal)
    (kept,) = (Path(program_environment["HOME"]) / ".local" / "state" / "mlxk" / "chats").iterdir()
    assert json.loads(kept.read_text())["messages"] == []
    terminal = start(program_environment, tmp_path, "run", "--continue")
    assert f"Continuing '{kept.stem}', 0 turns.\r\n" in terminal.before
    say(terminal, "My name is Olga.", "Olga!")
    leave(terminal)
