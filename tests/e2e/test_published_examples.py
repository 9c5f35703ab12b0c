"""Every command line that mlx-knife's page shows, run as it is written there, against a loopback hub and tiny models.

The page is not part of this repository: the test reads it where it lies beside it, and is skipped elsewhere. Names of
models on the page are names of copies of the built-in ones here.
"""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub.server import LoopbackHub
from typed_commands import BUILT_IN, StartedServer, built_in_files, reader_environment, typed

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
COMMIT = "e96f3b2a0123456789abcdef0123456789abcdef"

TEXT = (
    "mlx-community/Phi-3-mini-4k-instruct-4bit",
    "mlx-community/Phi-4-4bit",
    "mlx-community/Qwen3-4B-4bit",
    "mlx-community/Qwen2.5-3B-Instruct-4bit",
    "mlx-community/translator_model",
    "mlx-community/summarizer_model",
    "mlx-community/chat_model",
    "mlx-community/Big-30B-4bit",
    "mlx-community/model",
    "org/model",
)
VISION = (
    "mlx-community/pixtral-12b-8bit",
    "mlx-community/vision-model",
    "mlx-community/Llama-3.2-11B-Vision-Instruct-4bit",
    "mlx-community/gemma-3n-E2B-it-4bit",
    "mlx-community/Qwen2.5-VL-7B-Instruct-4bit",
)
SPEECH = ("mlx-community/whisper-large-v3-turbo-4bit",)
REMOVED = ("mlx-community/corrupted-model", "mlx-community/test-model-1")
ON_THE_HUB = (
    "mlx-community/Llama-3.2-3B-Instruct-4bit",
    "mlx-community/model-name",
    "mlx-community/production-model",
    "mlx-community/replacement-model",
)
CACHED = dict.fromkeys((*TEXT, *REMOVED), "demo") | dict.fromkeys(VISION, "demo-vision")
CACHED |= dict.fromkeys(SPEECH, "demo-speech")
SPOKEN_TO = {"./gemma-3n-audio-FIXED": "demo-speech"}
"""Workspaces that are not of text."""

WRITTEN: dict[str, str] = {
    "hf_...": "hf_write",
    '"<model>"': '"Phi-4"',
    "your-org/model": "me/model",
    "--private ./workspace org/model": "--private ./workspace me/model",
    "./workspace org/model --private": "./workspace me/model --private",
    "/data/models": "./models",
    "--port 8080": "--port 0",
    "MLXK2_PORT=9000": "MLXK2_PORT=0",
    "--language de": "--language en",
}
"""Placeholders and what stands for them here; ports, which others may use; a language that the tiny model lacks."""

EXCEPTIONS: dict[str, tuple[int, str]] = {
    "mlxk push ./fixed": (1, "a push must say who may see it, with --private or --public"),
    "mlxk show badmodel": (1, "the model does not exist; the page shows where its error goes"),
    "mlxk pull badmodel": (1, "the model does not exist; the page shows where its error goes"),
    "MLXK2_ENABLE_PIPES=1 mlxk list --json": (1, "the list is longer than the context window of the tiny model"),
    "mlxk convert <model>": (0, "no command: <model> and <output> stand for names"),
}
"""Beginnings of lines that are no success, or that are not run (status 0), with the reason."""

STARTED = r"(?m)^mlxk serve$|^MLXK2_PRELOAD_MODEL="
"""The servers that are started."""

_STARTS = re.compile(
    r"^(?:\$ )?(?:[A-Z][A-Z0-9_]*=\S* +)*(?:mlxk|mlx-run|cat|echo|export) |^[A-Z][A-Z0-9_]*=(?:\S+$|\$\(mlxk )"
)
_ASSIGNS = re.compile(r"^[A-Z_]+=\$\(")
_SENTENCE = re.compile(r"→|^mlxk \w+ (?:creates|uploads|verifies|is|will) |other commands")
_GLUED = re.compile(r"[A-Z][a-z]*[ :/(?]|\| [A-Z]|mlxk |[^\x00-\x7f]|list: |# ")
"""What follows a command without a space where the page's blocks have lost their ends."""


def page() -> str:
    """Return the text of the page; empty where it does not lie beside the repository."""
    for parent in ROOT.parents:
        found = sorted((parent / "shared" / "seeds").glob("000*"))
        if found:
            return found[0].read_text(encoding="utf-8")
    return ""


def cut(line: str) -> str:
    """Return a command without its comment, and without the text that is glued to its end."""
    quote = ""
    for index, character in enumerate(line):
        before = line[index - 1] if index else " "
        closed = before in "\"'"
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'" and not before.isalnum():
            quote = character
        elif (
            (character == "#" and before == " ")
            or (closed and character.isalpha())
            or (_GLUED.match(line, index) and (before.islower() or before.isdigit() or closed))
        ):
            return line[:index].strip()
    return line.strip()


def commands() -> list[str]:
    """Return the command lines of the page, each once, with the variables that lines before it set."""
    found: dict[str, None] = {}
    variables: list[str] = []
    lines = iter(page().splitlines())
    for line in lines:
        if line.startswith("for "):
            found["\n".join([*variables, line, *until(lines, "done")])] = None
        if not _STARTS.match(line):
            variables = variables if line.startswith("#") else []
            continue
        while line.rstrip().endswith(("\\", "| \\")):
            line = line.rstrip()[:-1] + next(lines, "")
        command = cut(line.removeprefix("$ "))
        if _SENTENCE.search(command):
            continue
        if not re.search(r"\b(?:mlxk|mlx-run)\b", command):
            variables.append(command if command.startswith("export ") else f"export {command}")
            continue
        if _ASSIGNS.match(command):
            variables = [command]
        found["\n".join([*(each for each in variables if each != command), command])] = None
    return list(found)


def until(lines: Iterator[str], end: str) -> list[str]:
    """Return the lines up to one that begins with a word, of which only the word is kept."""
    block = []
    for line in lines:
        block.append(end if line.startswith(end) else line)
        if line.startswith(end):
            break
    return block


COMMANDS = commands()


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackHub]:
    """Serve the models that the page fetches, and one to push to."""
    with LoopbackHub(tmp_path_factory.mktemp("hub")) as served:
        for name in (*ON_THE_HUB, *TEXT[:1], *SPEECH):
            served.add(name, built_in_files("demo-speech" if name in SPEECH else "demo"), tags=("mlx",))
        served.add("org/private-model", built_in_files("demo"), tags=("mlx",), private=True, readers=frozenset({"me"}))
        served.add("me/model", private=True)
        yield served


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a home with the models that the page has in its cache, under its names."""
    home = tmp_path_factory.mktemp("home")
    for name, built_in in CACHED.items():
        folder = home / "hf" / "hub" / f"models--{name.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text(COMMIT)
        link_files(BUILT_IN / built_in, folder / "snapshots" / COMMIT)
    return home


def link_files(source: Path, target: Path) -> None:
    """Copy the files of a built-in model."""
    target.mkdir(parents=True)
    for path in source.iterdir():
        if path.is_file():
            shutil.copyfile(path, target / path.name)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a working directory with the pictures, recordings and texts that the page names."""
    picture = (BUILT_IN / "demo-vision" / "blue-square.jpg").read_bytes()
    sound = (BUILT_IN / "demo-speech" / "hello.wav").read_bytes()
    (tmp_path / "photos").mkdir()
    for name in ("photo", "cat", "img1", "img2", "img3", "photos/a", "photos/b"):
        (tmp_path / f"{name}.jpg").write_bytes(picture)
    for name in ("podcast", "speech", "meeting", "short-clip"):
        (tmp_path / f"{name}.wav").write_bytes(sound)
    for name in ("speech", "german"):
        shutil.copyfile(ROOT / "tests" / "sounds" / "hello.mp3", tmp_path / f"{name}.mp3")
    for name in ("article.txt", "README.md"):
        (tmp_path / name).write_text("What is mlxk?\n")
    return tmp_path


def prepare_workspaces(command: str, folder: Path) -> None:
    """Make the workspaces that a command reads; those that it makes must not exist."""
    made = re.findall(r"(?:clone \S+|convert \S+) (\./\S+)", command)
    for name in re.findall(r"(?<![\w$])\./[\w-]+", command):
        if name not in made and not (folder / name).exists():
            link_files(BUILT_IN / SPOKEN_TO.get(name, "demo"), folder / name)


@pytest.mark.skipif(not COMMANDS, reason="the page does not lie beside this repository")
@pytest.mark.skipif(shutil.which("bash") is None or shutil.which("jq") is None, reason="the examples need bash and jq")
@pytest.mark.parametrize("command", COMMANDS or [""])
def test_the_example_runs_as_it_is_written(command: str, home: Path, hub: LoopbackHub, folder: Path) -> None:
    last = command.splitlines()[-1]
    expected, reason = next((known for begins, known in EXCEPTIONS.items() if last.startswith(begins)), (0, ""))
    if reason and not expected:
        pytest.skip(reason)
    for written, here in WRITTEN.items():
        command = command.replace(written, here)
    prepare_workspaces(command, folder)
    variables = {**reader_environment(home, hub.url), "MLXK2_PORT": "0"}
    if re.search(STARTED, command):
        server = StartedServer.start(command, variables, folder)
        server.stop()
        assert server.said.startswith("mlxk serves at ")
        return
    done = typed(command, variables, folder)
    assert done.status == expected, done.text
    if "model_config" in command:
        assert "LlamaForCausalLM" in done.text


def test_the_page_is_read_as_a_whole() -> None:
    if not COMMANDS:
        pytest.skip("the page does not lie beside this repository")
    assert len(COMMANDS) > 90
    verbs = {verb for each in COMMANDS for verb in re.findall(r"\bmlxk ([a-z]+)", each)}
    assert verbs >= {"list", "show", "health", "pull", "rm", "run", "serve", "server", "clone", "convert", "push"}
