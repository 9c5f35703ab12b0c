"""Codex beyond one round trip: a tool of a namespace, a patch, a full context window, and its way for local models."""

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from coding_agents import NOTE, QUESTION, SAID, SECONDS, address, codex_command, codex_provider

OVERFLOW = "ran out of room"
CATALOGUE = {
    "models": [
        {
            "slug": "patches",
            "display_name": "patches",
            "context_window": 131072,
            "shell_type": "default",
            "visibility": "list",
            "supported_in_api": True,
            "priority": 1,
            "truncation_policy": {"mode": "tokens", "limit": 10000},
            "input_modalities": ["text"],
            "base_instructions": "You edit files.",
            "support_verbosity": False,
            "supports_parallel_tool_calls": True,
            "supports_reasoning_summaries": False,
            "supported_reasoning_levels": [],
            "experimental_supported_tools": [],
            "apply_patch_tool_type": "freeform",
        }
    ]
}
"""What Codex has to be told of a model before it offers the tool for patches."""


def ask(folder: Path, model: str, flags: Sequence[str], **configuration: str) -> tuple[int, str]:
    """Ask Codex in a folder with a note; return its exit status and output."""
    work = folder / "work"
    work.mkdir(parents=True)
    (work / "note.txt").write_text(NOTE)
    (folder / "home").mkdir()
    done = subprocess.run(
        codex_command([*flags, "-m", model, QUESTION], configuration),
        cwd=work,
        env={**os.environ, "HOME": str(folder / "home"), "CODEX_OSS_BASE_URL": f"{address()}/v1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS / 3,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def main(folder: Path) -> None:
    """Ask in every way."""
    status, output = ask(folder / "namespace", "closes", (), **codex_provider())
    assert (status, SAID in output) == (0, True), output[-3000:]
    catalogue = folder / "catalogue.json"
    catalogue.write_text(json.dumps(CATALOGUE))
    status, output = ask(
        folder / "patch", "patches", (), **codex_provider(), model_catalog_json=json.dumps(str(catalogue))
    )
    assert (status, SAID in output) == (0, True), output[-3000:]
    assert NOTE.split()[0] in (folder / "patch" / "work" / "made.txt").read_text()
    status, output = ask(folder / "small", "small", (), **codex_provider())
    assert (status != 0, OVERFLOW in output) == (True, True), output[-3000:]
    status, output = ask(folder / "local", "reads-by-shell", ("--oss", "--local-provider", "lmstudio"))
    assert (status, SAID in output) == (0, True), output[-3000:]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))
