"""What the agents' clients share: a folder with a note, and an agent that is asked about it, once or twice."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType

NOTE = "@@NOTE@@ It was seen at the river: a heron.\n"
SAID = "The note is about a heron."
QUESTION = "Read note.txt and say what it is about."
SECONDS = 170
"""For all conversations of a client."""
NOT_RUN = 77
"""Exit status of a client that lacks what it needs on this machine; its output says what."""


def program(name: str) -> str:
    """Return the path of a program in the environment of the clients; where it is missing, say so and end."""
    folders = [Path(os.environ.get("NODE_PATH", ""), ".bin"), Path(sys.executable).parent]
    found = shutil.which(name, path=os.pathsep.join(map(str, folders)))
    if found is None:
        sys.stdout.write(f"{name} is not installed\n")
        sys.exit(NOT_RUN)
    return found


def address() -> str:
    """Return the address of the server, without ``/v1``."""
    return os.environ["MLXK_BASE_URL"].removesuffix("/v1")


def codex_provider() -> dict[str, str]:
    """Return the settings that have Codex ask the server over the Responses API, without trying again."""
    return {
        "model_provider": '"mlxk"',
        "model_providers.mlxk.name": '"mlxk"',
        "model_providers.mlxk.base_url": json.dumps(f"{address()}/v1"),
        "model_providers.mlxk.wire_api": '"responses"',
        "model_providers.mlxk.request_max_retries": "0",
        "model_providers.mlxk.stream_max_retries": "0",
    }


def codex_command(words: Sequence[str], settings: Mapping[str, str] = MappingProxyType({})) -> list[str]:
    """Return the command that has Codex do one turn and report events as lines of JSON.

    Args:
        words: Flags and the question.
        settings: Of its configuration, as TOML values.
    """
    flags = ["--skip-git-repo-check", "--json", "--dangerously-bypass-approvals-and-sandbox"]
    given = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    return [program("codex"), "exec", *flags, *given, *words]


@contextmanager
def folders(files: Mapping[str, str]) -> Iterator[tuple[Path, Path]]:
    """Make a home with the given files, by their paths in it, and a folder to work in, with the note."""
    with tempfile.TemporaryDirectory() as folder:
        home, work = Path(folder, "home"), Path(folder, "work")
        work.mkdir()
        home.mkdir()
        (work / "note.txt").write_text(NOTE)
        for name, text in files.items():
            path = home / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        yield home, work


def run(command: Sequence[str], environment: Mapping[str, str], home: Path, work: Path, seconds: float) -> str:
    """Run an agent's program to its end and return its standard output."""
    # An agent that Node runs is to find the Node that was installed with it, and one in Python no module of ours; some
    # work in the folder that the shell was in last.
    path = os.pathsep.join((str(Path(command[0]).parent), os.environ["PATH"]))
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    process = subprocess.Popen(
        command,
        cwd=work,
        env={**inherited, "HOME": str(home), "PWD": str(work), "PATH": path, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=seconds)
    finally:
        # With what it started and left.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, (process.returncode, output[-2000:], errors[-2000:])
    return output


def ask_once(
    command: Sequence[str],
    environment: Mapping[str, str] | None = None,
    files: Mapping[str, str] | None = None,
    *,
    before: Sequence[str] = (),
    said: str = SAID,
) -> str:
    """Have an agent read the note in one conversation.

    Args:
        command: Of the agent; its standard output is read.
        environment: Further variables; ``HOME`` is a new folder.
        files: What to write into that folder, by path.
        before: A command of the agent that configures it.
        said: What the model answers; the scripted ones say it only when the note has reached them.

    Returns:
        The agent's output.
    """
    with folders(files or {}) as (home, work):
        if before:
            run(before, environment or {}, home, work, SECONDS / 2)
        output = run(command, environment or {}, home, work, SECONDS)
    assert said in output, output[-2000:]
    return output


def ask_launched(agent: str, model: str, words: Sequence[str], files: Mapping[str, str], own: Sequence[str]) -> None:
    """Have ``mlxk launch`` start an agent that reads the note, and see that the user's files stay as they are.

    Args:
        agent: What ``mlxk launch`` calls it, which is also the name of its program.
        model: The model.
        words: For the agent.
        files: What the user has in the home folder, by path.
        own: Where the agent and mlxk write, as beginnings of paths in the home folder.
    """
    command = [*shlex.split(os.environ["MLXK_COMMAND"]), "launch", agent, "--model", model, "--", *words]
    path = os.pathsep.join((str(Path(program(agent)).parent), os.environ["PATH"]))
    with folders(files) as (home, work):
        output = run(command, {"PATH": path, "IS_SANDBOX": "1"}, home, work, SECONDS / 3)
        assert SAID in output, output[-2000:]
        assert {name: (home / name).read_text() for name in files} == dict(files)
        left = [str(each.relative_to(home)) for each in home.rglob("*") if each.is_file() or each.is_symlink()]
        others = [name for name in left if name not in files and not name.startswith(tuple(own))]
        assert others == [], others


def ask_twice(command: Sequence[str], environment: dict[str, str], cached_share: Callable[[str], float]) -> None:
    """Have an agent read the note in two conversations, the second with its prefix from the cache.

    Args:
        command: Of the agent; its standard output is read.
        environment: Further variables; ``HOME`` is a new folder.
        cached_share: Returns from the output which share of all prompt tokens came from the cache; asserts what it
            shows of the round trip.
    """
    with folders({}) as (home, work):
        shares = []
        for _ in range(2):
            output = run(command, environment, home, work, SECONDS / 2)
            assert SAID in output, output[-2000:]
            shares.append(cached_share(output))
        # A conversation has two requests; of the first conversation, only the second can find its prefix.
        assert shares[0] < 0.7, shares
        assert shares[1] > 0.9, shares
