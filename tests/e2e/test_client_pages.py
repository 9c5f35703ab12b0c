"""The pages about clients: their examples run, their settings can be read, their versions are those that are tested."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from serving.program import ServedProgram

from mlxk.entrypoints.cli.agents import AGENTS, Agent, Connection

pytestmark = [pytest.mark.e2e, pytest.mark.mlx]

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "clients"
CLIENTS = ROOT / "tests" / "clients"
KNIFE = "knife for local models"


def blocks(page: str, language: str) -> list[str]:
    """Return the blocks of a page in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", (PAGES / page).read_text(encoding="utf-8"), re.DOTALL | re.M)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A clean environment with a home of its own."""
    home = tmp_path_factory.mktemp("home")
    return {
        "HOME": str(home),
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.environ["PYTHONPATH"],
        "MLX_DISABLE_COMPILE": "1",
    }


@pytest.fixture(scope="module")
def server(environment: dict[str, str]) -> Iterator[ServedProgram]:
    """Serve the built-in model."""
    with ServedProgram(Path(environment["HOME"]), environment, "--model", "demo") as started:
        yield started


def run(command: list[str], environment: dict[str, str]) -> str:
    """Run a program to its good end; return what it printed."""
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("jq")), reason="needs curl and jq")
def test_every_example_of_the_shell_page_works(server: ServedProgram, environment: dict[str, str]) -> None:
    examples = [text.replace(":8000", f":{server.port}") for text in blocks("shell.md", "sh")]
    printed = [run(["bash", "-euo", "pipefail", "-c", text], environment) for text in examples]
    answer, quoted, streamed, city, models, tokens, failed = printed
    assert KNIFE in answer
    assert KNIFE in streamed
    assert quoted.strip()
    assert city.strip() in {"Paris", "Rome"}
    assert "demo" in models.splitlines()
    assert int(tokens) > 0
    assert "no-such" in failed
    assert failed.endswith("there is no such model\n")


def test_the_python_examples_of_the_sdk_page_work(server: ServedProgram, environment: dict[str, str]) -> None:
    # Those of other libraries are run by tests/clients/documented_client.py, in the environment that has them.
    examples = {text: re.findall(r"^(?:from|import) (\w+)", text, re.M) for text in blocks("sdks.md", "python")}
    runnable = [text for text, names in examples.items() if all(map(importlib.util.find_spec, names))]
    assert len([text for text in runnable if "openai import OpenAI" in text]) == 2
    for text in runnable:
        assert KNIFE in run([sys.executable, "-c", text.replace(":8000", f":{server.port}")], environment)


@pytest.mark.parametrize("page", sorted(path.name for path in PAGES.glob("*.md")))
def test_the_settings_of_a_page_can_be_read(page: str) -> None:
    read = {"json": json.loads, "toml": tomllib.loads, "yaml": yaml.safe_load}
    settings = [parse(text) for language, parse in read.items() for text in blocks(page, language)]
    assert all(isinstance(each, dict | list) and each for each in settings)
    # Every agent has its settings in a block of one of these languages, or in variables.
    assert settings or page in {"sdks.md"}


@pytest.mark.parametrize("agent", AGENTS.values(), ids=AGENTS)
def test_the_pages_say_the_same_as_the_program(agent: Agent) -> None:
    pages = "".join(page.read_text(encoding="utf-8") for page in PAGES.glob("*.md"))
    shown = [file.text for file in agent.written(Connection())]
    # The page has the command of a container on several lines.
    shown += [line for line in agent.commands(Connection()) if not line.startswith("docker ")]
    assert [text for text in shown if text not in pages] == []
    assert shown or agent.remark


def test_the_versions_of_the_agents_are_those_that_are_run() -> None:
    rows = re.findall(r"^\| (.+?) \| ([\d.]+) \| .+ \|$", (PAGES / "agents.md").read_text(encoding="utf-8"), re.M)
    packages = {
        **json.loads((CLIENTS / "package.json").read_text())["dependencies"],
        **json.loads((CLIENTS / "all" / "package.json").read_text())["dependencies"],
    }
    for name in ("aider", "gptme"):
        lock = (CLIENTS / "all" / f"{name}.lock").read_text()
        packages |= dict(re.findall(rf"^({name}(?:-chat)?)==(\S+)", lock, re.M))
    names = {
        "Claude Code": "@anthropic-ai/claude-code",
        "Codex": "@openai/codex",
        "opencode": "opencode-ai",
        "qwen-code": "@qwen-code/qwen-code",
        "Continue's `cn`": "@continuedev/cli",
        "Cline's `cline`": "cline",
        "pi": "@earendil-works/pi-coding-agent",
        "aider": "aider-chat",
        "gptme": "gptme",
    }
    assert dict(rows) == {shown: packages[package] for shown, package in names.items()}
