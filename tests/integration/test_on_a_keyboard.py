"""Commands on a terminal in this process: the next step that is named, a question that is declined, and Ctrl-C."""

import contextlib
import io
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from dependency_injector import providers
from hub.models import small_model
from hub.server import LoopbackHub
from models.tiny_models import build as build_model

from mlxk.adapters.mlx.conversion import MlxWeightConverter
from mlxk.application.ports.backends import ConvertedWeights
from mlxk.entrypoints.cli.command import CommandContext
from mlxk.entrypoints.cli.program import run
from mlxk.entrypoints.container import Container, build
from mlxk.entrypoints.settings import Settings, read_settings

MOVES = re.compile(r"\x1b\[[0-9?]*[A-Za-z]|\r")
"""What a spinner and a bar write to move on the screen."""


class Keyboard(io.StringIO):
    """A terminal on which something was typed; Ctrl-C comes after it."""

    def isatty(self) -> bool:
        return True

    def readline(self, size: int | None = -1, /) -> str:  # type: ignore[override]  # typeshed has two
        if line := super().readline(-1 if size is None else size):
            return line
        raise KeyboardInterrupt


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


class InterruptedConverter(MlxWeightConverter):
    """Is interrupted once it has written something."""

    def quantize(self, *arguments: Any) -> ConvertedWeights:
        super().quantize(*arguments)
        raise KeyboardInterrupt


@attrs.define
class Terminal:
    """The program in a folder of its own, on a terminal."""

    variables: dict[str, str]
    folder: Path

    def __call__(self, *arguments: str, typed: str = "") -> tuple[int, str, list[str]]:
        """Run a command; return its status, its standard output, and the lines on standard error."""
        out, err = Screen(), Screen()
        with (
            contextlib.chdir(self.folder),
            open(os.devnull) as null,
            keyboard(typed),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            context = CommandContext(read_settings(self.variables), self._build, lambda *_: 1, null.fileno())
            status = run(arguments, context)
        return status, out.getvalue(), MOVES.sub("", err.getvalue()).splitlines()

    def _build(self, settings: Settings, *_: Any) -> Container:
        container = build(settings)
        container.adapters.weight_converter.override(providers.Factory(InterruptedConverter))
        return container


@contextlib.contextmanager
def keyboard(typed: str) -> Iterator[None]:
    kept = sys.stdin
    sys.stdin = Keyboard(typed)
    try:
        yield
    finally:
        sys.stdin = kept


@pytest.fixture
def terminal(program_environment: dict[str, str], hub_variables: dict[str, str], tmp_path: Path) -> Terminal:
    return Terminal({**program_environment, **hub_variables, "TERM": "dumb"}, tmp_path)


@pytest.fixture
def chats(program_environment: dict[str, str]) -> Path:
    """Return the folder of two kept chats."""
    folder = Path(program_environment["HOME"]) / ".local" / "state" / "mlxk" / "chats"
    folder.mkdir(parents=True)
    for name in ("a", "b"):
        (folder / f"{name}.json").write_text('{"version": 1, "model": "demo", "system": null, "messages": []}')
    return folder


def test_whoever_has_nothing_yet_is_told_how_to_begin(terminal: Terminal) -> None:
    assert terminal("alias") == (0, "", ["There are no names yet. Give a model one: mlxk alias NAME MODEL"])
    assert terminal("list")[2] == ["No models yet but the built-in ones. Those that fit this machine: mlxk recommend"]


@pytest.mark.usefixtures("chats")
def test_the_command_that_goes_on_with_a_chat_is_named(terminal: Terminal) -> None:
    assert terminal("chats")[2] == [
        "Go on with the first of these: mlxk run --continue; with another: mlxk run --continue NAME"
    ]


@pytest.mark.parametrize(
    ("typed", "status", "out", "left"),
    [("y\n", 0, ["removed a", "removed b"], []), ("n\n", 1, [], ["a", "b"]), ("\n", 1, [], ["a", "b"])],
)
def test_chats_are_removed_only_after_a_yes(
    terminal: Terminal, chats: Path, typed: str, status: int, out: list[str], left: list[str]
) -> None:
    ended, printed, said = terminal("chats", "rm", "--all", typed=typed)
    assert (ended, sorted(printed.splitlines())) == (status, out)
    assert "Remove 2 chats? [y/N]: " in "\n".join(said)
    assert ("nothing was removed" in said[-1]) is bool(left)
    assert sorted(path.stem for path in chats.iterdir()) == left


def test_an_interrupted_question_removes_nothing(terminal: Terminal, hub: LoopbackHub, cache: Path) -> None:
    hub.add("org/m", small_model())
    assert terminal("pull", "org/m")[0] == 0
    status, out, said = terminal("rm", "org/*")
    assert (status, out, said[-2:]) == (130, "", ["rm: Error: interrupted", "Continue: mlxk rm org/*"])
    status, out, said = terminal("rm", "org/*", typed="n\n")
    assert (status, out) == (0, "rm: Kept org/m\n")
    assert (cache / "models--org--m" / "snapshots").is_dir()


@pytest.mark.usefixtures("cache")
def test_an_interrupted_clone_keeps_what_arrived_and_goes_on(
    terminal: Terminal, hub: LoopbackHub, tmp_path: Path
) -> None:
    hub.add("org/m", small_model(seed=1))
    hub.on_call(r"/resolve/.*config\.json", lambda: os.kill(os.getpid(), signal.SIGINT))
    status, _, said = terminal("clone", "org/m", "./copy")
    assert (status, said[-2:]) == (
        130,
        [
            "clone: Error: interrupted; what is done is kept",
            "Run the same command again, with --force-resume, to continue.",
        ],
    )
    assert not (tmp_path / "copy").exists()
    status, out, _ = terminal("clone", "org/m", "./copy", "--force-resume")
    assert (status, out) == (0, f"clone: org/m → {tmp_path}/copy (✓ healthy)\n")


@pytest.mark.mlx
def test_an_interrupted_conversion_leaves_nothing(terminal: Terminal, tmp_path: Path) -> None:
    build_model(tmp_path / "tiny")
    before = sorted(path.name for path in tmp_path.iterdir())
    status, out, said = terminal("convert", "./tiny", "./small", "--quantize", "4")
    assert (status, out, said[-2:]) == (
        *(130, ""),
        ["convert: Error: interrupted; nothing was made", "Run the same command again."],
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == before
