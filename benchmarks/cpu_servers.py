"""Servers on a CPU, with the same quantized model: tokens per second of a prompt and of an answer.

    python benchmarks/cpu_servers.py [ROUNDS]

A llama of 25 million random parameters in 4 bits with bf16 scales is served by ``mlxk serve`` with and without a BLAS
of the machine, and by ``mlx_lm.server`` as it is and with OpenBLAS preloaded. The servers run one at a time and answer
single requests; medians.
"""

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import mlx_lm
from models.tiny_models import build
from widening import PROMPT, SHAPE

TOKENS = 24
SECONDS = 300


def answered(url: str, model: str, prompt: str, tokens: int) -> tuple[float, Mapping[str, int]]:
    """Return the seconds of one completion, and its usage."""
    body = {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    began = time.perf_counter()
    with urllib.request.urlopen(request, timeout=SECONDS) as answer:
        usage = json.load(answer)["usage"]
    return time.perf_counter() - began, usage


def measured(command: list[str], variables: Mapping[str, str], model: str, rounds: int) -> str:
    """Return what a server does in a second."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "MLX_DISABLE_COMPILE": "1", **variables}
    server = subprocess.Popen(
        [*command, "--port", str(port)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            try:
                answered(url, model, "Hello", 2)
                break
            except OSError:
                time.sleep(0.5)
        reading, writing = [], []
        for number in range(rounds):
            short, first = answered(url, model, f"{number} first {PROMPT}", 1)
            long, usage = answered(url, model, f"{number} other {PROMPT}", TOKENS)
            reading.append(first["prompt_tokens"] / short)
            # Without ignore_eos an answer may end early; such a round says nothing about its speed.
            if usage["completion_tokens"] > 2 and long > short:
                writing.append((usage["completion_tokens"] - 1) / (long - short))
        answer = f"{statistics.median(writing):.1f}" if writing else "?"
        return f"{statistics.median(reading):.1f} tokens/s of a prompt, {answer} of an answer"
    finally:
        server.terminate()
        server.wait()


def main(rounds: int) -> None:
    """Build the model, and measure each server."""
    with tempfile.TemporaryDirectory() as directory:
        build(Path(directory, "float32"), **SHAPE)
        packed = f"{directory}/4bit"
        mlx_lm.convert(f"{directory}/float32", packed, dtype="bfloat16", quantize=True, q_bits=4)
        ours = [sys.executable, "-m", "mlxk", "serve", "--allow-model-paths", "--model", packed]
        peer = [
            shutil.which("mlx_lm.server", path=os.path.dirname(sys.executable)) or "mlx_lm.server",
            "--model",
            packed,
        ]
        preloaded = {"LD_PRELOAD": "libopenblas.so.0"}
        print("mlx_lm.server:", measured(peer, {}, packed, rounds), flush=True)
        print("the same, OpenBLAS preloaded:", measured(peer, preloaded, packed, rounds), flush=True)
        print("mlxk --blas off:", measured([*ours, "--blas", "off"], {}, packed, rounds), flush=True)
        print("mlxk:", measured(ours, {}, packed, rounds), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rounds", nargs="?", type=int, default=3)
    main(parser.parse_args().rounds)
