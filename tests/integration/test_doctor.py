"""``mlxk doctor`` on real machines with real faults: each is found and named, and mended by the command it names."""

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hub.models import small_model
from hub.server import LoopbackHub

Command = Callable[..., dict[str, Any]]
Program = Callable[..., "subprocess.CompletedProcess[str]"]

pytestmark = pytest.mark.mlx
PLAIN = {"MLXK2_BLAS": "off", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
"""Has the same said wherever tests run, whether or not there is an optimised library or another mlxk."""


@pytest.fixture
def taken() -> Iterator[int]:
    """Take a port, as another program would."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


def found(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the faults by name."""
    return {each["fault"]: each for each in document["checks"] if each["fault"]}


def test_many_faults_are_named_and_mended_by_the_commands_that_are_named(
    mlxk: Program, hub: LoopbackHub, taken: int, tmp_path: Path
) -> None:
    hub.add("org/m", small_model())
    home = tmp_path / "home"
    hub_variables = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    assert mlxk("pull", "org/m", **hub_variables).returncode == 0
    for blob in (home / "hf/hub/models--org--m/snapshots").glob("*/model.safetensors"):
        os.truncate(blob.resolve(), 10)
    blobs = home / "hf/hub/models--org--half/blobs"
    blobs.mkdir(parents=True)
    (blobs / "0123.incomplete").write_bytes(b"1234")
    (home / "hf/token").write_text("hf_read")
    (home / "hf/token").chmod(0o644)
    (home / ".config/mlxk").mkdir(parents=True)
    (home / ".config/mlxk/config.toml").write_text("[serve]\nport = 'many'\n")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/mlxk").write_text("#!/bin/sh\n")
    (tmp_path / "bin/mlxk").chmod(0o755)
    (home / "temporary").write_text("no folder")
    faulty = {
        **PLAIN,
        "PATH": f"{tmp_path / 'bin'}:{PLAIN['PATH']}",
        "HF_HUB_OFFLINE": "1",
        "HF_ENDPOINT": "http://hub.example",
        "MLXK2_PORT": str(taken),
        "MLXK2_PROT": "1",
        "TMPDIR": str(home / "temporary"),
        "HTTPS_PROXY": "http://proxy.example:3128",
    }
    done = mlxk("doctor", "--json", **faulty)
    faults = found(json.loads(done.stdout)["data"])
    assert done.returncode == 1
    assert set(faults) == {
        "another_program_first",
        "broken_model",
        "exposed_secret",
        "hub_offline",
        "not_a_folder",
        "partial_download",
        "port_taken",
        "settings_invalid",
        "unencrypted_hub",
        "unknown_variable",
    }
    assert "HTTPS_PROXY" in faults["unencrypted_hub"]["evidence"]
    assert f"(process {os.getpid()})" in faults["port_taken"]["evidence"]
    assert "line 2" in faults["settings_invalid"]["evidence"]
    assert "hf_read" not in done.stdout + done.stderr

    for fault in ("exposed_secret", "not_a_folder"):
        line = faults[fault]["remedy"].partition(": ")[2]
        subprocess.run(["sh", "-c", line], check=True)
    for fault, words in (("broken_model", ()), ("partial_download", ("--yes",))):
        line = re.findall(r"mlxk ((?:pull|prune) [^.]+)", faults[fault]["remedy"])[-1]
        assert mlxk(*line.split(), *words, **hub_variables).returncode == 0, line
    (home / ".config/mlxk/config.toml").write_text("")
    mended = mlxk("doctor", **hub_variables, **PLAIN, MLXK2_PORT="0")
    assert (mended.returncode, mended.stdout.splitlines()[-1]) == (0, "All is well.")


def test_the_hub_is_asked_whether_it_takes_the_token(command: Command, mlxk: Program, hub: LoopbackHub) -> None:
    document = command("doctor", "--online", HF_TOKEN="hf_read", **PLAIN)["data"]
    assert found(document) == {}
    assert [each["evidence"] for each in document["checks"] if each["check"] == "reachable"] == [f"{hub.url} answers"]
    done = mlxk("doctor", "--online", "--json", HF_TOKEN="hf_expired", HF_ENDPOINT=hub.url, **PLAIN)
    assert (done.returncode, set(found(json.loads(done.stdout)["data"]))) == (1, {"token_rejected"})


def test_a_report_names_faults_and_nobody(mlxk: Program, tmp_path: Path) -> None:
    (tmp_path / "home/hf").mkdir(parents=True)
    (tmp_path / "home/hf/hub").symlink_to("/nowhere")
    done = mlxk("doctor", "--report")
    assert (done.returncode, str(tmp_path) in done.stdout) == (1, False)
    assert "failure cache (link_to_nowhere): ~/hf/hub is a link to nowhere" in done.stdout.splitlines()
