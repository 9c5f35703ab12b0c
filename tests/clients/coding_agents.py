"""What the agents' clients share: a folder with a note, and an agent that is asked about it twice."""

import os
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

NOTE = "@@NOTE@@ It was seen at the river: a heron.\n"
SAID = "The note is about a heron."
QUESTION = "Read note.txt and say what it is about."
SECONDS = 170


def program(name: str) -> str:
    """Return the path of a program that npm has installed."""
    return str(Path(os.environ["NODE_PATH"], ".bin", name))


def address() -> str:
    """Return the address of the server, without ``/v1``."""
    return os.environ["MLXK_BASE_URL"].removesuffix("/v1")


def ask_twice(command: Sequence[str], environment: dict[str, str], cached_share: Callable[[str], float]) -> None:
    """Have an agent read the note in two conversations, the second with its prefix from the cache.

    Args:
        command: Of the agent; its standard output is read.
        environment: Further variables; ``HOME`` is a new folder.
        cached_share: Returns from the output which share of all prompt tokens came from the cache; asserts what it
            shows of the round trip.
    """
    with tempfile.TemporaryDirectory() as folder:
        home, work = Path(folder, "home"), Path(folder, "work")
        home.mkdir()
        work.mkdir()
        (work / "note.txt").write_text(NOTE)
        shares = []
        for _ in range(2):
            done = subprocess.run(
                command,
                cwd=work,
                env={**os.environ, "HOME": str(home), **environment},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=SECONDS / 2,
                check=False,
            )
            assert done.returncode == 0, (done.returncode, done.stdout[-2000:], done.stderr[-2000:])
            assert SAID in done.stdout, (done.stdout[-2000:], done.stderr[-2000:])
            shares.append(cached_share(done.stdout))
        # A conversation has two requests; of the first conversation, only the second can find its prefix.
        assert shares[0] < 0.7, shares
        assert shares[1] > 0.9, shares
