"""A model over two hosts with a cable between them that is slow, stuck, cut and mended: root and Linux only."""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import attrs
import pytest
from models import tiny_models
from models.answers import oracle
from serving.cable import HERE, THERE, Cable, may_lay_cables
from serving.program import CHAT, ServedProgram
from serving.running import eventually

TIMEOUT_SECONDS = 3.0

NOTICED_SECONDS = TIMEOUT_SECONDS + 2.0
"""Within which a cable that was cut is noticed, and every client has an error."""

BACK_SECONDS = 30.0 * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
"""Within which requests are answered again once the cable is mended: the server has tried in vain meanwhile."""

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.mlx,
    pytest.mark.skipif(not may_lay_cables(), reason="it needs root, ip, network namespaces and /dev/net/tun"),
]


@attrs.frozen
class Hosts:
    """A server over two hosts."""

    cable: Cable
    server: ServedProgram
    text: str
    """What one process answers."""
    ends: tuple[int, ...]
    """The tokens that end answers."""

    def answer(self) -> tuple[int, Any]:
        """Ask for a short answer; return status and body."""
        completion = {"model": "spread", "prompt": "Hello", "temperature": 0, "max_tokens": 24}
        return self.server.ask("POST", "/v1/completions", completion)

    def answers_as_one(self) -> bool:
        """Whether the answer is that of one process."""
        status, body = self.answer()
        return status == 200 and body["choices"][0]["text"] == self.text

    def processes_there(self) -> list[str]:
        """Return the processes of the other host."""
        listed = ["ip", "netns", "pids", self.cable.namespace]
        return subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split()


@pytest.fixture
def hosts(tmp_path: Path, program_environment: dict[str, str]) -> Iterator[Hosts]:
    """Start a server on this machine and a namespace."""
    handle = tiny_models.build(tmp_path / "spread", "llama")
    listed = [{"ssh": "one", "ips": [HERE]}, {"ssh": "two", "ips": [THERE]}]
    (tmp_path / "hosts.json").write_text(json.dumps(listed))
    ssh = tmp_path / "bin" / "ssh"
    ssh.parent.mkdir()
    program_environment["PATH"] = f"{ssh.parent}:{program_environment['PATH']}"
    flags = ("--model", handle.directory, "--hostfile", "hosts.json", "--rank-timeout", f"{TIMEOUT_SECONDS:g}")
    with Cable() as cable:
        enter = f'exec ip netns exec {cable.namespace} sh -c "$*"'
        ssh.write_text(f'#!/bin/sh\nwhile [ "$1" != two ]; do shift; done\nshift\n{enter}\n')
        ssh.chmod(0o755)
        ends = json.loads((tmp_path / "spread" / "generation_config.json").read_text())["eos_token_id"]
        text = b"".join(oracle(handle, "Hello")).decode(errors="replace")
        with ServedProgram(tmp_path, program_environment, *flags) as server:
            yield Hosts(cable, server, text, tuple(ends))


def test_a_slow_cable_changes_nothing_and_one_that_is_cut_ends_what_runs_until_it_is_mended(hosts: Hosts) -> None:
    assert hosts.answers_as_one()
    hosts.cable.delay = 0.02
    assert hosts.answers_as_one()
    hosts.cable.delay = 0.0
    with ThreadPoolExecutor(8) as threads:
        hosts.cable.hold()
        late = threads.submit(hosts.answers_as_one)
        time.sleep(TIMEOUT_SECONDS / 2)
        assert not late.done()
        hosts.cable.release()
        assert late.result()

        fields = {"max_tokens": 3000, "temperature": 0, "logit_bias": {str(token): -100 for token in hosts.ends}}
        long = {"model": "spread", "messages": [{"role": "user", "content": "Hello"}], **fields}
        asked = [threads.submit(hosts.server.ask, "POST", CHAT, long) for _ in range(8)]
        time.sleep(0.5)
        hosts.cable.cut()
        cut = time.monotonic()
        answers = [each.result() for each in asked]
    assert time.monotonic() - cut < NOTICED_SECONDS
    assert [(status, body["error"]["type"]) for status, body in answers] == [(503, "rank_lost")] * 8
    assert "rank 1 on two has been silent for 3 seconds" in answers[0][1]["error"]["message"]
    first = set(hosts.processes_there())
    assert eventually(lambda: not first & set(hosts.processes_there()), NOTICED_SECONDS)  # which nobody could tell
    hosts.cable.mend()
    mended = time.monotonic()
    while not hosts.answers_as_one():
        assert time.monotonic() - mended < BACK_SECONDS
        time.sleep(0.2)
