"""Runs every example of docs/clients/sdks.md, for Python and for Node, as it stands there but for the address."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from coding_agents import NOT_RUN, address

PAGE = Path(__file__).parents[2] / "docs" / "clients" / "sdks.md"
SAID = "knife for local models"


def examples(language: str) -> list[str]:
    """Return the programs of the page in a language."""
    text = PAGE.read_text(encoding="utf-8").replace("http://127.0.0.1:8000", address())
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def run(interpreter: str, folder: Path, suffix: str, text: str) -> None:
    """Run one program in a folder from which it finds its packages."""
    with tempfile.NamedTemporaryFile("w", suffix=suffix, dir=folder) as file:
        file.write(text)
        file.flush()
        done = subprocess.run([interpreter, file.name], capture_output=True, text=True, timeout=100, check=False)
    assert SAID in done.stdout, f"{text}\n{done.stdout}{done.stderr}"


if __name__ == "__main__":
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    with tempfile.TemporaryDirectory() as scratch:
        for example in examples("python"):
            run(sys.executable, Path(scratch), ".py", example)
    packages = Path(os.environ.get("NODE_PATH", ""))
    if shutil.which("node") is None or not (packages / "openai").is_dir():
        sys.stdout.write("those for Python are right; those for Node need Node and npm's packages\n")
        sys.exit(NOT_RUN)
    for example in examples("js"):
        run("node", packages.parent, ".mjs", example)
