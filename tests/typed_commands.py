"""Commands as documents show them, typed by a reader: in this process where no shell is needed, else in a shell."""

import contextlib
import glob
import io
import os
import re
import shlex
import signal
import subprocess
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path

import attrs

import mlxk.adapters.builtin

BUILT_IN = Path(mlxk.adapters.builtin.__file__).parent / "models"

NEEDS_A_SHELL = re.compile(r"[|<>$;&]|--background| -- mlxk|^(?!(?:[A-Z_0-9]+=\S* +|export \S+\s+)*(?:mlxk|mlx-run)\b)")
"""What this process cannot do: pipes, files, variables, several commands, one in another, those of others, going on."""


@attrs.frozen
class Typed:
    """What a command did."""

    status: int
    """Its exit status."""
    text: str
    """What it printed, standard output and standard error in their order."""


def built_in_files(name: str) -> dict[str, bytes]:
    """Return the files of a built-in model by their names."""
    return {path.name: path.read_bytes() for path in (BUILT_IN / name).iterdir() if path.is_file()}


def reader_environment(home: Path, hub_url: str) -> dict[str, str]:
    """Return the variables of a reader with this home, who may write to a hub on this machine."""
    return {
        "HOME": str(home),
        "HF_HOME": str(home / "hf"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HF_ENDPOINT": hub_url,
        "HF_TOKEN": "hf_write",
        "HF_HUB_DISABLE_XET": "1",
        "MLX_DISABLE_COMPILE": "1",
        "PYTHONPATH": os.environ["PYTHONPATH"],
    }


def typed(command: str, variables: Mapping[str, str], folder: Path) -> Typed:
    """Run a command to its end; standard input is empty."""
    run = in_a_shell if NEEDS_A_SHELL.search(command) else in_this_process
    return run(command, variables, folder)


def in_this_process(command: str, variables: Mapping[str, str], folder: Path) -> Typed:
    """Run a command that needs no shell, in a tenth of the time of a process.

    ``serve`` gets as far as the server, which is not started.
    """
    from mlxk.entrypoints.cli.command import CommandContext
    from mlxk.entrypoints.cli.program import run
    from mlxk.entrypoints.container import build
    from mlxk.entrypoints.settings import read_settings

    known = dict(variables)
    words = shlex.split(" ".join(command.removeprefix("export ").replace("\nexport ", " ").splitlines()))
    while "=" in words[0]:
        name, _, known[name] = words.pop(0).partition("=")
    printed = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    with (
        contextlib.chdir(folder),
        open(os.devnull) as null,
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # as in a process of its own
        expanded = [path for word in words[1:] for path in (sorted(glob.glob(word)) if "*.jpg" in word else [word])]
        context = CommandContext(
            settings=read_settings(known),
            build=build,
            standard_input=null.fileno(),
            serve=lambda *_: 0,
        )
        status = run(["run", *expanded] if words[0] == "mlx-run" else expanded, context)
    return Typed(status, text_of(printed))


def text_of(stream: io.TextIOWrapper) -> str:
    """Return what was written to a stream of bytes."""
    stream.flush()
    written = stream.buffer
    assert isinstance(written, io.BytesIO)
    return written.getvalue().decode("utf-8")


def in_a_shell(command: str, variables: Mapping[str, str], folder: Path) -> Typed:
    """Run a command line as the shell does."""
    ran = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        env=dict(variables),
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,
        check=False,
    )
    return Typed(ran.returncode, ran.stdout)


@attrs.frozen
class StartedServer:
    """A server in the foreground of a shell, which was started until it was ready."""

    process: "subprocess.Popen[str]"
    said: str
    """Its first lines."""

    @classmethod
    def start(cls, command: str, variables: Mapping[str, str], folder: Path, lines: int = 1) -> "StartedServer":
        """Start it, and wait for its first lines on standard output."""
        process = subprocess.Popen(
            ["bash", "-c", command],
            env=dict(variables),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        assert process.stdout is not None
        return cls(process, "".join(process.stdout.readline() for _ in range(lines)))

    def stop(self) -> None:
        """Press Ctrl-C, unless it has ended, and wait for the end."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGINT)
        self.process.communicate(timeout=60)
