"""Runs real clients, headless, against a started ``mlxk serve`` with the built-in model.

    make clients
    make clients-all
    python tests/clients/run.py [--all] [--jobs N] [--mlxk COMMAND] [--python INTERPRETER] [CLIENT …]

Clients have packages of their own (``requirements.txt`` and ``package.json``), which ``make clients`` installs in an
environment of theirs, so they are programs, not tests of the suite; npm's are found by ``NODE_PATH``. Those in ``all/``
are larger, and installed and run by ``make clients-all`` only.
Each is told the address by ``MLXK_BASE_URL``, and the program and its models by ``MLXK_COMMAND`` and
``MLXK_WORKSPACE_HOME`` where it starts a server of its own, and fails by ending with another status than 0. A client
that lacks what it needs on this machine is not run, and the reason is said, and said again at the end. The figures
after each are the server's; of clients that run at the same time, each has a server of its own. Those with a browser
take Chromium, by the variable ``CHROMIUM`` or by its name, and leave pictures in ``build/pictures``.
"""

import argparse
import json
import os
import queue
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from coding_agents import NOT_RUN

HERE = Path(__file__).parent
NODE_PACKAGES = {
    "ollama_npm_client": "ollama",
    "openai_npm_client": "openai",
    "open_webui_client": "playwright-core",
    "page_client": "playwright-core",
    "hostile_answer_client": "playwright-core",
    "nchat_client": "playwright-core",
}
"""The npm package that a client imports."""
FIGURES = {
    "mlxk_http_requests_total": "requests",
    "mlxk_prompt_tokens_total": "prompt tokens",
    "mlxk_cached_prompt_tokens_total": "of them cached",
}
"""What is said about each client, by the server's metrics."""
LONGEST = "schemathesis_client"
SECONDS = 200
"""For one client."""
RUNNERS = {".py": lambda python, path: [python, str(path)], ".cjs": lambda python, path: ["node", str(path)]}


class Server(NamedTuple):
    """A started server."""

    address: str
    home: str
    """Folder for the clients' own files."""
    models: str
    """Folder of the models."""


@contextmanager
def started(command: str, models: str) -> Iterator[Server]:
    """Yield a server, which ends with the block."""
    with tempfile.TemporaryDirectory() as home:
        process = subprocess.Popen(
            [*shlex.split(command), "serve", "--port", "0", "--model", "demo", "--json", "--log-level", "warning"],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "HF_HOME": home, "MLXK_WORKSPACE_HOME": models},
        )
        if process.stdout is None:
            raise RuntimeError("the server has no output")
        try:
            ready = json.loads(process.stdout.readline())
            yield Server(f"{ready['data']['url']}/v1", home, models)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


def missing(name: str) -> str | None:
    """Return what a client lacks to be run on this machine; None when it lacks nothing, or is to fail without it."""
    package = NODE_PACKAGES.get(name)
    if package is None:
        return None
    if shutil.which("node") is None:
        return "there is no Node here"
    folders = os.environ.get("NODE_PATH", "").split(os.pathsep)
    return None if any(Path(folder, package).is_dir() for folder in folders) else "its package is not installed: npm"


def figures(address: str) -> Counter[str]:
    """Return the server's figures up to now; none of a server that does not answer."""
    totals: Counter[str] = Counter()
    try:
        with urllib.request.urlopen(f"{address.removesuffix('/v1')}/metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines()
    except OSError:
        return totals
    for line in lines:
        name, _, value = line.rpartition(" ")
        metric = name.partition("{")[0]
        # Reading the figures is a request, too.
        if metric in FIGURES and 'route="/metrics"' not in name:
            totals[metric] += int(value)
    return totals


class Outcome(NamedTuple):
    """How a client went."""

    good: bool
    """Whether nothing failed."""
    said: str
    lacks: str = ""
    """Why it was not run."""


def outcome(command: list[str], environment: dict[str, str]) -> Outcome:
    """Run a client's program."""
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False, errors="replace"
        )
    except subprocess.TimeoutExpired:
        return Outcome(False, f"FAILED: no end after {SECONDS} s")
    if done.returncode == NOT_RUN:
        lacks = done.stdout.strip()
        return Outcome(True, f"NOT RUN: {lacks}", lacks)
    if done.returncode != 0:
        return Outcome(False, f"FAILED\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return Outcome(True, "ok")


def run(path: Path, server: Server, python: str, mlxk: str) -> Outcome:
    """Run one client and say how it went."""
    name = path.stem
    reason = missing(name)
    if reason is not None:
        sys.stdout.write(f"{name:24}   NOT RUN: {reason}\n")
        return Outcome(True, "", reason)
    environment = {"MLXK_BASE_URL": server.address, "OPENAI_API_KEY": "any", "PYTHONPATH": str(HERE)}
    environment |= {"HOME": server.home, "LLM_USER_PATH": server.home}
    environment |= {"MLXK_COMMAND": mlxk, "MLXK_WORKSPACE_HOME": server.models}
    environment["CLIENTS_BIN"] = str(Path(python).parent)
    before = figures(server.address)
    began = time.monotonic()
    found = outcome(RUNNERS[path.suffix](python, path), {**os.environ, **environment})
    seconds = time.monotonic() - began
    spent = figures(server.address)
    counted = ", ".join(f"{spent[metric] - before[metric]} {words}" for metric, words in FIGURES.items())
    sys.stdout.write(f"{name:24} {seconds:5.1f} s  {counted}  {found.said}\n")
    sys.stdout.flush()
    return found


def main() -> int:
    """Run the clients named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mlxk", default=f"{sys.executable} -m mlxk", help="the program to test")
    parser.add_argument("--python", default=sys.executable, help="the interpreter that has the clients' packages")
    parser.add_argument("--all", action="store_true", help="the larger clients in all/ instead")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="how many run at the same time (default: 2)")
    parser.add_argument("clients", nargs="*", metavar="CLIENT", help="only these")
    arguments = parser.parse_args()
    known = {path.stem: path for path in sorted((HERE / "all" if arguments.all else HERE).glob("*_client.*"))}
    unknown = [name for name in arguments.clients if name not in known]
    if unknown:
        parser.error(f"there is no {unknown[0]}; there are {', '.join(known)}")
    # The longest one begins first.
    paths = sorted((known[name] for name in arguments.clients or known), key=lambda path: path.stem != LONGEST)
    interpreter, *words = shlex.split(arguments.mlxk)
    # Clients work in folders of their own.
    mlxk = shlex.join([os.path.abspath(shutil.which(interpreter) or interpreter), *words])
    with tempfile.TemporaryDirectory() as models, ExitStack() as stack:
        subprocess.run([interpreter, HERE / "agent_models.py", models], check=True)
        servers: queue.SimpleQueue[Server] = queue.SimpleQueue()
        for _ in range(arguments.jobs):
            servers.put(stack.enter_context(started(arguments.mlxk, models)))

        def run_on_a_free_server(path: Path) -> Outcome:
            server = servers.get()
            try:
                return run(path, server, arguments.python, mlxk)
            finally:
                servers.put(server)

        with ThreadPoolExecutor(arguments.jobs) as threads:
            outcomes = list(threads.map(run_on_a_free_server, paths))
    for path, found in zip(paths, outcomes, strict=True):
        if found.lacks:
            sys.stderr.write(f"NOT RUN, so nothing is known about it: {path.stem}: {found.lacks}\n")
    return 0 if all(found.good for found in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
