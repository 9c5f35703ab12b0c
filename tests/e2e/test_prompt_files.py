"""Files beside a prompt: text by ``--file``, and the images and recordings that typed words name."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pexpect
import pytest
from chatting import end

import mlxk.adapters.builtin as built_in

if TYPE_CHECKING:
    import subprocess

Program = Callable[..., "subprocess.CompletedProcess[str]"]
pytestmark = pytest.mark.e2e

MODELS = Path(built_in.__path__[0]) / "models"
SHOWN = ("--show-prompt", "--json")


@pytest.fixture(autouse=True)
def files(tmp_path: Path) -> None:
    """Put texts, images and a recording into the working directory."""
    (tmp_path / "notes.md").write_text("\ufeffOlga is a cat.\n", encoding="utf-8")
    (tmp_path / "more.md").write_text("She is grey. ./square.jpg\n")
    (tmp_path / "empty.md").write_text("\n")
    (tmp_path / "latin.md").write_bytes(b"caf\xe9")
    (tmp_path / "utf-16.md").write_bytes("Olga is a cat.".encode("utf-16"))
    (tmp_path / "folder").mkdir()
    (tmp_path / "damaged.jpg").write_text("no image")
    for name in ("square.jpg", "blue square.jpg", "no-suffix"):
        shutil.copy(MODELS / "demo-vision" / "blue-square.jpg", tmp_path / name)
    shutil.copy(MODELS / "demo-vision" / "red-circle.png", tmp_path / "circle.png")
    shutil.copy(MODELS / "demo-speech" / "hello.wav", tmp_path / "hello.wav")


def prompt_of(done: "subprocess.CompletedProcess[str]") -> str:
    """Return the prompt of a run."""
    found: str = json.loads(done.stdout)["data"]["prompt"]
    return found


@pytest.mark.parametrize(
    ("arguments", "stdin", "prompt"),
    [
        (["--file", "notes.md", "Who?"], "", "Olga is a cat.\n\n\nWho?"),
        (["--file", "notes.md"], "", "Olga is a cat.\n"),
        (["Who?", "--file", "notes.md", "really?"], "piped", "piped\n\nOlga is a cat.\n\n\nWho? really?"),
        (
            ["--file", "notes.md", "--file", "more.md", "--prompt", "Who?"],
            "",
            "notes.md:\nOlga is a cat.\n\n\nmore.md:\nShe is grey. ./square.jpg\n\n\nWho?",
        ),
        (["--file", "-", "Who?"], "piped", "piped\n\nWho?"),
        (["--file", "/dev/stdin", "Who?"], "piped", "piped\n\nWho?"),
    ],
)
def test_texts_of_files_stand_before_the_words(
    mlxk_here: Program, arguments: list[str], stdin: str, prompt: str
) -> None:
    assert prompt_of(mlxk_here("run", "demo", *arguments, *SHOWN, stdin=stdin)) == prompt


@pytest.mark.parametrize(
    ("file", "named"),
    [
        ("nosuch.md", "--file: 'nosuch.md' cannot be read: No such file or directory"),
        ("folder", "--file: 'folder' cannot be read: Is a directory"),
        ("/dev/zero", "--file: '/dev/zero' is no regular file"),
        ("latin.md", "--file: 'latin.md' is not UTF-8 text"),
        ("latin.md", "Save a text as UTF-8. "),
        ("utf-16.md", "It is UTF-16. Convert it: iconv -f UTF-16 -t UTF-8 utf-16.md"),
        ("square.jpg", "Show images with --image and clips with --video, and give sound with --audio."),
        ("empty.md", "--file: 'empty.md' is empty"),
        ("large.md", "--file: 'large.md' is larger than 64 MiB"),
    ],
)
def test_a_file_that_is_no_text_is_refused_by_name(mlxk_here: Program, tmp_path: Path, file: str, named: str) -> None:
    with open(tmp_path / "large.md", "wb") as large:
        large.truncate(64 * 1024**2 + 1)
    done = mlxk_here("run", "demo", "Who?", "--file", file)
    assert (done.returncode, done.stdout) == (1, "")
    assert named in done.stderr


@pytest.mark.parametrize(
    ("words", "prompt", "attached"),
    [
        (["What is this? ./square.jpg"], "What is this?", "./square.jpg"),
        (["What", "is", "this?", "./blue square.jpg"], "What is this?", "./blue square.jpg"),
        (["./blue\\ square.jpg What is this?"], "What is this?", "./blue square.jpg"),
        (['What is this? "./blue square.jpg"'], "What is this?", "./blue square.jpg"),
        (["What is in ./folder/../square.jpg?"], "What is in square.jpg?", "./folder/../square.jpg"),
        (["What is in ./no-suffix, please?"], "What is in no-suffix, please?", "./no-suffix"),
        (["--prompt", "What is (in) (./square.jpg)?"], "What is (in) (square.jpg)?", "./square.jpg"),
        (["./square.jpg"], "Describe the image.", "./square.jpg"),
        (["What is this? ~/square.jpg"], "What is this?", "~/square.jpg"),
        (["What is this? {folder}/square.jpg"], "What is this?", "{folder}/square.jpg"),
    ],
)
def test_an_image_that_typed_words_name_is_attached_and_said(
    mlxk_here: Program, tmp_path: Path, words: list[str], prompt: str, attached: str
) -> None:
    words = [word.format(folder=tmp_path) for word in words]
    done = mlxk_here("run", "demo-vision", *words, *SHOWN, HOME=str(tmp_path))
    assert (prompt_of(done), done.stderr) == (prompt, f"[attached: {attached.format(folder=tmp_path)}]\n")


def test_an_attached_image_is_seen(mlxk: Program) -> None:
    done = mlxk("run", "demo-vision", "What is this? ./square.jpg")
    assert done.stdout.endswith("\nA blue square.\n")


def test_several_images_keep_their_names_in_the_sentence(mlxk_here: Program) -> None:
    done = mlxk_here("run", "demo-vision", "Compare ./square.jpg with ./circle.png", "--json", "--chunk", "2")
    assert prompt_of(done) == "Compare square.jpg with circle.png"
    assert done.stderr.startswith("[attached: ./square.jpg]\n[attached: ./circle.png]\n")
    assert "| 2 |" in json.loads(done.stdout)["data"]["response"]


def test_a_named_recording_is_transcribed(mlxk: Program) -> None:
    done = mlxk("run", "demo-speech", "./hello.wav")
    assert (done.returncode, done.stdout, done.stderr) == (0, "Hello world.\n", "[attached: ./hello.wav]\n")


@pytest.mark.parametrize(
    ("arguments", "stdin", "said"),
    [
        (
            ["demo-vision", "What is in ./nosuch.jpg or ./folder?"],
            "",
            "[./nosuch.jpg stays words: there is no such file]\n",
        ),
        (["demo-vision", "What is in ./square.jpg?", "--no-attach"], "", ""),
        (["demo-vision", "What is it?", "--file", "more.md"], "", ""),
        (["demo-vision", "What is it?"], "./square.jpg", "[joined to the prompt: standard input, 1 line]\n"),
        (
            ["demo", "Convert ./square.jpg to PNG"],
            "",
            "[./square.jpg stays words: 'demo' takes no images]\n",
        ),
        (
            ["demo", "Read 'no ./nosuch' or \"./blue square.jpg\" "],
            "",
            "[./blue square.jpg stays words: 'demo' takes no images]\n",
        ),
        (["demo", "Play ./hello.wav"], "", "[./hello.wav stays words: 'demo' takes no sound]\n"),
        (
            ["demo", "Summarize ./notes.md"],
            "",
            "[./notes.md stays words: its text is joined by --file ./notes.md]\n",
        ),
        (["demo", "Convert ./nosuch.jpg to PNG"], "", ""),
        (["demo-vision", "Is '~/no such.png' red?"], "", "[~/no such.png stays words: there is no such file]\n"),
        (
            ["demo-vision", "What is (square.jpg)?"],
            "",
            "[square.jpg stays words: a path begins with ./, as in ./square.jpg]\n",
        ),
        (["demo-vision", "Is photo.jpg a good name, or https://example.com/a.jpg?"], "", ""),
        (["demo-vision", "What is ./nosuch.jpg?", "--no-attach"], "", ""),
        (
            ["demo-vision", "Look at ./square.jpg", "--no-chat-template"],
            "",
            "[./square.jpg stays words: --no-chat-template and images exclude each other]\n",
        ),
    ],
)
def test_what_is_no_image_for_the_model_stays_words(
    mlxk_here: Program, arguments: list[str], stdin: str, said: str
) -> None:
    done = mlxk_here("run", *arguments, *SHOWN, stdin=stdin)
    assert arguments[1] in prompt_of(done)
    assert done.stderr == said


def test_a_named_image_that_is_damaged_is_refused(mlxk_here: Program) -> None:
    done = mlxk_here("run", "demo-vision", "What is in ./damaged.jpg?")
    assert done.returncode == 1
    assert "is not an image of a known format" in done.stderr


@pytest.mark.parametrize("flags", [[], ["--no-attach"]])
def test_in_a_chat_named_images_are_attached(
    program_environment: dict[str, str], tmp_path: Path, flags: list[str]
) -> None:
    process = pexpect.spawn(
        sys.executable,
        ["-m", "mlxk", "run", "demo-vision", "--chat", "What is this? ./square.jpg", *flags],
        env={**os.environ, **program_environment, "TERM": "dumb", "NO_COLOR": "1"},
        cwd=str(tmp_path),
        encoding="utf-8",
        timeout=60,
        dimensions=(40, 200),
    )
    if flags:
        process.expect_exact(">>> ")
        assert "[attached" not in process.before
        end(process)
        return
    process.expect_exact("[attached: ./square.jpg]")
    process.expect_exact("A blue square.")
    process.expect_exact(">>> ")
    for line, said in (
        ("/clear", "the conversation is forgotten"),
        (f"{tmp_path}/circle.png What is this?", "A red circle."),
        ("/clear", "the conversation is forgotten"),
        ("./square.jpg", "shown with your next message"),
        ("What is this?", "A blue square."),
        ("Look at ./damaged.jpg", "is not an image of a known format"),
        ("Look at ./nosuch.jpg", "[./nosuch.jpg stays words: there is no such file]"),
        ("Hear ./hello.wav", "[./hello.wav stays words: Model 'demo-vision' does not support audio inputs"),
        ("/nosuch/folder", "there is no command /nosuch/folder"),
    ):
        process.sendline(line)
        process.expect_exact(said)
        process.expect_exact(">>> ")
    end(process)
