"""LiteLLM's proxy with the configuration of docs/cluster.md before two servers: one is ended and one is killed."""

import os
import subprocess
import tempfile
import time
from pathlib import Path
from urllib import request

import replicas
from coding_agents import program

CONFIGURATION = Path(__file__).parents[3] / "docs" / "examples" / "litellm.yaml"
COOLDOWN = 5
"""Seconds, as the configuration has it."""


def alive(url: str) -> bool:
    """Whether the proxy answers."""
    try:
        with request.urlopen(f"{url}/health/liveliness", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def cooled() -> bool:
    """Wait until the proxy tries a server again that it has left alone."""
    time.sleep(COOLDOWN + 1)
    return True


if __name__ == "__main__":
    command = program("litellm")
    with tempfile.TemporaryDirectory() as folder, replicas.two_replicas() as servers:
        port, text = replicas.free_port(), CONFIGURATION.read_text(encoding="utf-8")
        assert f"cooldown_time: {COOLDOWN}\n" in text
        for written, server in ((8001, servers[0]), (8002, servers[1])):
            assert f"127.0.0.1:{written}" in text
            text = text.replace(f"127.0.0.1:{written}", f"127.0.0.1:{server.port}")
        configuration = Path(folder) / "litellm.yaml"
        configuration.write_text(text, encoding="utf-8")
        # The key of the servers is also the clients' key, so that one reads the servers' figures and asks the proxy.
        keys = {"MLXK2_API_KEY": replicas.KEY, "LITELLM_MASTER_KEY": replicas.KEY}
        proxy = subprocess.Popen(
            [command, "--config", configuration, "--host", "127.0.0.1", "--port", str(port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **keys, "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
        )
        try:
            url = f"http://127.0.0.1:{port}"
            replicas.eventually(lambda: alive(url), "litellm starts", seconds=120)
            replicas.try_ends(url, "demo", servers, taken_again=cooled)
        finally:
            proxy.terminate()
            proxy.wait(30)
