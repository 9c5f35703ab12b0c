"""Thousands of hostile requests: the server answers or hangs up, stays reachable, and keeps nothing.

pytest tests/integration/test_http_hostile.py --hostile-requests 10000 --log-cli-level INFO
"""

import contextlib
import gc
import json
import logging
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from serving import hostile_client
from serving.hostile_client import LARGE, LARGE_BODIES, MESSAGES, PATH
from serving.parts import CHAT_MODEL, Parts
from serving.running import RunningServer, eventually

from mlxk.adapters.mlx.memory import return_freed_memory, use_single_arena
from mlxk.entrypoints.http.server.server import ServerLimits

REQUESTS_PER_LARGE_BODY = 250
KEPT_BYTES = LARGE
"""What the process may have grown by since it knew every kind of body once: what Python's allocator keeps for later."""
KEPT_OBJECTS = 20_000
"""Blocks of memory that Python's objects may hold more than before; one large body makes hundreds of thousands."""
LIMITS = ServerLimits(max_body_bytes=48 * 2**20, connections=512, header_seconds=2, request_seconds=2)


def start(*arguments: object) -> "subprocess.Popen[str]":
    """Start the client, in a process of its own: here it would share the interpreter with the server."""
    command = [sys.executable, "-I", hostile_client.__file__, *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def outcome(client: "subprocess.Popen[str]") -> Any:
    """Return what a client has to say at its end."""
    said, _ = client.communicate(timeout=600)
    assert client.returncode == 0
    return json.loads(said)


def besiege(server: RunningServer, requests: int, large: int) -> tuple[float, list[int]]:
    """Attack and watch; return the slowest answer of readiness and the statuses of large bodies."""
    watcher, attacker = start("watch", server.port), start("attack", server.port, requests, large)
    statuses = outcome(attacker)
    return outcome(watcher), statuses


def resident_bytes() -> int:
    """Return what this process holds of memory, once it gave back what is free; 0 where the system does not say."""
    gc.collect()
    return_freed_memory()
    statm = Path("/proc/self/statm")
    return int(statm.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0


def settled(server: RunningServer) -> int:
    """Return the bytes held when nobody asks for anything, without what the test's own log remembers."""
    assert eventually(lambda: server.parts.application._limit.admitted == 0)
    assert eventually(lambda: len(server.server._channels()) == 0, 10)
    assert not server.parts.log.named("a request failed unexpectedly")
    assert not server.parts.log.named("a response could not be delivered")
    server.parts.log.events.clear()
    server.parts.generator.requests.clear()
    return resident_bytes()


def test_hostile_requests_neither_stop_nor_fill_the_server(request: pytest.FixtureRequest) -> None:
    # A message for every request that waits for a thread: pytest would keep them all.
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)
    requests: int = request.config.getoption("--hostile-requests")
    use_single_arena()  # as the program does
    large = max(2, requests // REQUESTS_PER_LARGE_BODY)
    with RunningServer(Parts(), LIMITS) as server:
        besiege(server, requests=80, large=min(large, len(LARGE_BODIES)))
        before, objects = settled(server), sys.getallocatedblocks()
        slowest, statuses = besiege(server, requests, large)
        assert slowest < 5  # generous: other tests share the cores
        assert len(statuses) == large
        assert set(statuses) <= {400, 404, 413}
        assert server.post(PATH, {"model": CHAT_MODEL, "messages": MESSAGES})[0] == 200
        kept = settled(server) - before
        more = sys.getallocatedblocks() - objects
        said = "ready within %.3f s; %d large bodies; kept: %.1f MiB, %d objects"
        logging.getLogger(__name__).info(said, slowest, large, kept / 2**20, more)
        assert kept < KEPT_BYTES
        assert more < KEPT_OBJECTS
    assert server.ended_well


def test_a_port_scan_is_no_trouble() -> None:
    with RunningServer(Parts(), ServerLimits(connections=64)) as server:
        for _ in range(300):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", server.port), timeout=1):
                pass
        assert server.get("/livez")[0] == 200
