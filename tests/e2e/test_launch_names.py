"""Names that ``mlxk launch`` writes into settings of agents."""

import json
import subprocess
import sys
import tomllib
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.e2e

ODD = 'poet-\U0001f600 "é" \\ \x7f\x9f\u2028'
"""A name with what JSON, TOML and YAML escape in different ways."""


def recipe(agent: str, environment: dict[str, str]) -> dict[str, Any]:
    """Return how an agent is set up for the model with the odd name."""
    done = subprocess.run(
        [sys.executable, "-m", "mlxk", "launch", agent, "--print", "--json", "--url", "http://[::1]:8000", "-m", ODD],
        capture_output=True,
        check=True,
        env=environment,
        timeout=60,
    )
    found: dict[str, Any] = json.loads(done.stdout)["data"]["recipe"]
    return found


def test_codex_gets_valid_toml(program_environment: dict[str, str]) -> None:
    command = recipe("codex", program_environment)["commands"][-1]
    [word] = [each for each in command.split("-c ") if "model=" in each]
    assert tomllib.loads(word.strip().strip("'")) == {"model": ODD}


def test_opencode_gets_valid_json(program_environment: dict[str, str]) -> None:
    written = recipe("opencode", program_environment)["environment"]["OPENCODE_CONFIG_CONTENT"]
    assert json.loads(written)["model"] == f"mlxk/{ODD}"


def test_continue_gets_valid_yaml(program_environment: dict[str, str]) -> None:
    [file] = recipe("continue", program_environment)["files"]
    assert yaml.safe_load(file["text"])["models"][0]["model"] == ODD
