"""Runs real clients, headless, against a started ``mlxk serve`` with the built-in model.

    make clients
    python tests/clients/run.py [--mlxk COMMAND] [--python INTERPRETER] [CLIENT …]

Clients have packages of their own (``requirements.txt`` and ``package.json``), which ``make clients`` installs in an
environment of theirs, so they are programs, not tests of the suite; the npm client finds its package by ``NODE_PATH``.
Each is told the address by ``MLXK_BASE_URL`` and fails by ending with another status than 0. Where there is no Node or
no package for it, its client is not run, and that is said.
"""

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CLIENTS = sorted(path.stem for path in Path(__file__).parent.glob("*_client.*"))
NODE_PACKAGES = {
    "claude_code_client": "@anthropic-ai/claude-code",
    "codex_client": "@openai/codex",
    "codex_tools_client": "@openai/codex",
    "ollama_npm_client": "ollama",
    "openai_npm_client": "openai",
}
"""The npm package that a client needs."""
RUNNERS = {".py": lambda python, path: [python, str(path)], ".cjs": lambda python, path: ["node", str(path)]}


def serve(command: str, home: str) -> tuple["subprocess.Popen[str]", str]:
    """Start the server and return it with its address."""
    server = subprocess.Popen(
        [*shlex.split(command), "serve", "--port", "0", "--model", "demo", "--json", "--log-level", "warning"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "HF_HOME": home, "MLXK_WORKSPACE_HOME": str(Path(home, "models"))},
    )
    if server.stdout is None:
        raise RuntimeError("the server has no output")
    ready = json.loads(server.stdout.readline())
    return server, f"{ready['data']['url']}/v1"


def missing(name: str) -> str | None:
    """Return what a client lacks to be run on this machine; None when it lacks nothing, or is to fail without it."""
    package = NODE_PACKAGES.get(name)
    if package is None:
        return None
    if shutil.which("node") is None:
        return "there is no Node here"
    folders = os.environ.get("NODE_PATH", "").split(os.pathsep)
    return None if any(Path(folder, package).is_dir() for folder in folders) else "its package is not installed: npm"


def run(name: str, address: str, python: str, home: str) -> bool:
    """Run one client and say how it went."""
    [path] = Path(__file__).parent.glob(f"{name}.*")
    reason = missing(name)
    if reason is not None:
        sys.stdout.write(f"{name:24}   NOT RUN: {reason}\n")
        return True
    began = time.monotonic()
    done = subprocess.run(
        RUNNERS[path.suffix](python, path),
        env={**os.environ, "MLXK_BASE_URL": address, "OPENAI_API_KEY": "any", "HOME": home, "LLM_USER_PATH": home},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    outcome = "ok" if done.returncode == 0 else f"FAILED\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
    sys.stdout.write(f"{name:24} {time.monotonic() - began:5.1f} s  {outcome}\n")
    return done.returncode == 0


def main() -> int:
    """Run the clients named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mlxk", default=f"{sys.executable} -m mlxk", help="the program to test")
    parser.add_argument("--python", default=sys.executable, help="the interpreter that has the clients' packages")
    parser.add_argument("clients", nargs="*", default=CLIENTS, metavar="CLIENT")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        interpreter = shlex.split(arguments.mlxk)[0]
        subprocess.run([interpreter, Path(__file__).parent / "agent_models.py", Path(home, "models")], check=True)
        server, address = serve(arguments.mlxk, home)
        try:
            outcomes = [run(name, address, arguments.python, home) for name in arguments.clients]
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(30)
    return 0 if all(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
