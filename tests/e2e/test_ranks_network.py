"""A model over two hosts with a network between them that falls silent, and comes back: root and Linux only."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from models import tiny_models
from models.answers import oracle
from serving.program import CHAT, ServedProgram

HERE, THERE = "198.18.77.1", "198.18.77.2"
"""Of a range that is meant for tests of networks."""

SILENT_SECONDS = 5.0 + 3.0
"""Within which a network that falls silent is noticed, and every client has an error."""

BACK_SECONDS = 30.0 * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
"""Within which requests are answered again once the network is back: the server has tried in vain meanwhile."""


def ip(*words: str) -> bool:
    """Run ``ip``, and return whether it succeeded."""
    return subprocess.run(["ip", *words], capture_output=True, check=False).returncode == 0


def may_make_networks() -> bool:
    """Whether this process may make a network namespace with a link to it."""
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    name = f"mlxk-t{os.getpid()}"
    made = ip("netns", "add", name) and ip("link", "add", name, "type", "veth", "peer", "netns", name)
    ip("netns", "del", name)
    return made


pytestmark = [
    pytest.mark.e2e,
    pytest.mark.mlx,
    pytest.mark.skipif(not may_make_networks(), reason="it needs root, ip, and network namespaces"),
]


@pytest.fixture
def link() -> Iterator[str]:
    """Connect this machine with a namespace, the other host; return the name of both."""
    name = f"mlxk{os.getpid()}"
    there = ("-n", name)
    for words in (
        ("netns", "add", name),
        ("link", "add", name, "type", "veth", "peer", "name", "there", "netns", name),
        ("addr", "add", f"{HERE}/30", "dev", name),
        ("link", "set", name, "up"),
        (*there, "addr", "add", f"{THERE}/30", "dev", "there"),
        (*there, "link", "set", "there", "up"),
        (*there, "link", "set", "lo", "up"),
    ):
        assert ip(*words), words
    yield name
    ip("netns", "del", name)


def question(**fields: Any) -> dict[str, Any]:
    """Return a request."""
    return {"model": "spread", "messages": [{"role": "user", "content": "Hello"}], "temperature": 0, **fields}


def test_a_network_that_falls_silent_ends_what_runs_and_serves_again_when_it_is_back(
    link: str, tmp_path: Path, program_environment: dict[str, str]
) -> None:
    handle = tiny_models.build(tmp_path / "spread", "llama")
    hosts = [{"ssh": "one", "ips": [HERE]}, {"ssh": "two", "ips": [THERE]}]
    (tmp_path / "hosts.json").write_text(json.dumps(hosts))
    ssh = tmp_path / "bin" / "ssh"
    ssh.parent.mkdir()
    ssh.write_text(f'#!/bin/sh\nwhile [ "$1" != two ]; do shift; done\nshift\nexec ip netns exec {link} sh -c "$*"\n')
    ssh.chmod(0o755)
    program_environment["PATH"] = f"{ssh.parent}:{program_environment['PATH']}"
    flags = ("--model", handle.directory, "--hostfile", "hosts.json")
    with ServedProgram(tmp_path, program_environment, *flags) as server, ThreadPoolExecutor() as threads:
        completion = {"model": "spread", "prompt": "Hello", "temperature": 0, "max_tokens": 24}
        status, first = server.ask("POST", "/v1/completions", completion)
        assert (status, first["choices"][0]["text"]) == (
            200,
            b"".join(oracle(handle, "Hello")).decode(errors="replace"),
        )
        ends = json.loads((tmp_path / "spread" / "generation_config.json").read_text())["eos_token_id"]
        long = question(max_tokens=3000, logit_bias={str(token): -100 for token in ends})
        asked = [threads.submit(server.ask, "POST", CHAT, long) for _ in range(4)]
        time.sleep(0.5)
        assert ip("link", "set", link, "down")
        silent = time.monotonic()
        answers = [each.result() for each in asked]
        assert time.monotonic() - silent < SILENT_SECONDS
        assert [(status, body["error"]["type"]) for status, body in answers] == [(503, "rank_lost")] * 4
        assert ip("link", "set", link, "up")
        back = time.monotonic()
        while (again := server.ask("POST", "/v1/completions", completion))[0] == 503:
            assert time.monotonic() - back < BACK_SECONDS
            time.sleep(0.2)
        assert (again[0], again[1]["choices"]) == (200, first["choices"])
