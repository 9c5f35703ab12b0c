"""What pull, rm, clone, convert and push really print with ``--json``, held against the contracts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub.models import sharded_model, small_model
from hub.server import LoopbackHub

Command = Callable[..., dict[str, Any]]
Faults = Callable[[str, Any], list[str]]
Held = Callable[..., dict[str, Any]]

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def held(command: Command, faults: Faults, hub: LoopbackHub) -> Held:
    """Run a command, hold its document against its contract, and return the document."""
    hub.add("org/m", {**small_model(), "pytorch_model.bin": b"\0"}, tags=("mlx",))
    hub.add("org/plain", sharded_model((100, 200)))
    hub.add("me/open")

    def run(name: str, *arguments: str, **variables: str) -> dict[str, Any]:
        document = command(name, *arguments, HF_TOKEN="hf_write", **variables)
        assert faults(name, document) == []
        return document

    return run


def test_documents_of_successes_keep_to_the_contracts(held: Held, tmp_path: Path) -> None:
    for arguments in (
        ["pull", "org/m", "--dry-run"],
        ["pull", "org/m"],
        ["pull", "org/m"],
        ["pull", "org/plain@main"],
        ["pull", "demo"],
        ["clone", "org/m", "./copy"],
        ["clone", "demo", "./demo", "--no-health-check"],
        ["push", "./copy", "me/new", "--check-only"],
        ["push", "./copy", "me/new", "--private", "--dry-run"],
        ["push", "./copy", "me/new", "--private", "--create"],
        ["push", "./copy", "me/new", "--private"],
        ["push", "./copy", "me/new", "--private", "--create", "--branch", "dev"],
        ["search", "org", "m"],
        ["search", "nosuch", "--mlx"],
        ["recommend"],
        ["recommend", "--for", "code", "--online"],
        ["outdated"],
        ["show", "org/m", "--remote"],
        ["show", "org/plain", "--remote", "--config"],
        ["show", "me/open", "--remote"],
        ["du"],
        ["du", "plain"],
        ["prune", "--dry-run"],
        ["prune", "--yes"],
        ["rm", "*/plain", "--dry-run"],
        ["rm", "org/*", "--force"],
    ):
        assert held(*arguments)["status"] == "success", arguments


@pytest.mark.mlx
def test_documents_of_conversions_keep_to_the_contracts(held: Held) -> None:
    for arguments in (
        ["demo", "./q", "--quantize", "4", "--q-group-size", "32"],
        ["./q", "./full", "--dequantize", "--skip-health"],
        ["demo", "./fixed", "--repair-index"],
    ):
        assert held("convert", *arguments)["status"] == "success", arguments


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["pull", "org/none"], "model_not_found"),
        (["pull", "a//b"], "validation_error"),
        (["pull"], "usage_error"),
        (["rm", "org/none"], "model_not_found"),
        (["rm", "demo"], "workspace_model"),
        (["rm", "*"], "model_not_found"),
        (["search", " "], "validation_error"),
        (["search", "m", "--limit", "0"], "validation_error"),
        (["show", "org/none", "--remote"], "model_not_found"),
        (["show", "org/m", "--remote", "--recalc-hash"], "usage_error"),
        (["outdated", "none"], "model_not_found"),
        (["prune", "none"], "model_not_found"),
        (["clone", "demo"], "validation_error"),
        (["clone", "org/none", "./x"], "model_not_found"),
        (["convert", "demo", "./x"], "usage_error"),
        (["convert", "demo", "./x", "--quantize", "5"], "validation_error"),
        (["convert", "./none", "./x", "--dequantize"], "model_not_found"),
        (["push", "./none", "me/x", "--private"], "model_not_found"),
        (["push", ".", "me/open", "--private"], "validation_error"),
    ],
)
def test_documents_of_failures_keep_to_the_contracts(
    held: Held, tmp_path: Path, arguments: list[str], code: str
) -> None:
    (tmp_path / "config.json").write_text("{}")
    document = held(*arguments)
    assert document["error"]["type"] == code
