"""Two hosts on one machine: a network namespace with a link to it. Root and Linux only."""

import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest
from serving.cable import ip

HERE, THERE = "198.18.78.1", "198.18.78.2"
"""Of a range that is meant for tests of networks, and of no other test, which may run at the same time."""


def may_make_networks() -> bool:
    """Whether this process may make a network namespace with a link to it."""
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    name = f"mlxk-d{os.getpid()}"
    made = ip("netns", "add", name) and ip("link", "add", name, "type", "veth", "peer", "netns", name)
    ip("netns", "del", name)
    return made


@pytest.fixture
def link() -> Iterator[str]:
    """Connect this machine with a namespace, the other host; return the name of both."""
    name = f"mlxkd{os.getpid()}"
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


def limited(link: str) -> float:
    """Have what goes to the other host go slowly, where the system can; return the most bytes per second."""
    rate = ("tbf", "rate", "400mbit", "burst", "64kb", "latency", "50ms")
    command = ["tc", "qdisc", "add", "dev", link, "root", *rate]
    done = shutil.which("tc") is not None and subprocess.run(command, capture_output=True, check=False).returncode == 0
    return 60e6 if done else math.inf
