"""Servers on a CPU, with the same quantized model: speed and processor time of a prompt and of an answer.

    python benchmarks/cpu_servers.py [--shape 25M|135M] [--sentences N] [--only SERVER]... [--llama-cpp PYTHON] [ROUNDS]

A llama of random parameters in 4 bits with bf16 scales is served by ``mlxk serve`` with and without a BLAS of the
machine, by ``mlx_lm.server`` as it is and with OpenBLAS preloaded, and by llama.cpp, where ``--llama-cpp`` names a
Python that has ``llama-cpp-python[server]``, ``gguf`` and ``safetensors``: the same parameters as Q4_0, which takes as
many bits (4.5) as 4 bits in groups of 64. The servers run one at a time and answer single requests; medians.

``135M`` has the shape of SmolLM-135M with its 49,152 tokens, ``25M`` the vocabulary of the tests. Processor time is
that of all processes of a server, as Linux counts it, of everything it does for a request.
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
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import attrs
import mlx_lm
from models.tiny_models import build
from widening import SHAPE

TOKENS = 24
SECONDS = 900
SENTENCE = "The quick brown fox jumps over the lazy dog. "
SMOLLM = {
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "vocab_size": 49152,
}
SHAPES: Mapping[str, Mapping[str, Any]] = {"25M": SHAPE, "135M": SMOLLM}
TICKS = os.sysconf("SC_CLK_TCK")


@attrs.frozen
class Server:
    """One of the programs to measure."""

    command: tuple[str, ...]
    variables: Mapping[str, str] = attrs.field(factory=dict)


@attrs.frozen
class Answered:
    """What one completion took."""

    seconds: float
    processor_seconds: float
    prompt_tokens: int
    completion_tokens: int


def ask(url: str, model: str, prompt: str, tokens: int, process: int) -> Answered:
    """Ask a server, whose first process has an id, for one completion."""
    body = {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    used, began = processor_seconds(process), time.perf_counter()
    with urllib.request.urlopen(request, timeout=SECONDS) as answer:
        usage = json.load(answer)["usage"]
    seconds = time.perf_counter() - began
    return Answered(seconds, processor_seconds(process) - used, usage["prompt_tokens"], usage["completion_tokens"])


def processor_seconds(process: int) -> float:
    """Return the processor time of a process and of all that it started, seconds; 0 without a ``/proc``."""
    found: dict[int, tuple[int, int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(") ")[2].split()
        except OSError:
            continue
        found[int(status.parent.name)] = int(fields[1]), int(fields[11]) + int(fields[12])
    family = {process}
    while grown := {each for each, (parent, _) in found.items() if parent in family} - family:
        family |= grown
    return sum(found[each][1] for each in family if each in found) / TICKS


def measured(server: Server, model: str, prompt: str, rounds: int) -> str:
    """Return what a server does in a second, and what a token takes of the processor."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [*server.command, "--port", str(port)],
        env={**os.environ, "MLX_DISABLE_COMPILE": "1", **server.variables},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            try:
                ask(url, model, "Hello", 2, process.pid)
                break
            except OSError:
                time.sleep(0.5)
        reading, writing = [], []
        for number in range(rounds):
            short = ask(url, model, f"{number} first {prompt}", 1, process.pid)
            long = ask(url, model, f"{number} other {prompt}", TOKENS, process.pid)
            reading.append((short.prompt_tokens, short.seconds, short.processor_seconds))
            # Without ignore_eos an answer may end early; such a round says nothing about its speed.
            if long.completion_tokens > 2 and long.seconds > short.seconds:
                further = long.processor_seconds - short.processor_seconds
                writing.append((long.completion_tokens - 1, long.seconds - short.seconds, further))
        return " | ".join((*_medians(reading), *_medians(writing)))
    finally:
        process.terminate()
        process.wait()


def _medians(samples: list[tuple[int, float, float]]) -> tuple[str, str]:
    """Return tokens per second, and milliseconds of the processor for each."""
    if not samples:
        return "?", "?"
    speed = statistics.median(tokens / seconds for tokens, seconds, _ in samples)
    work = statistics.median(processor / tokens * 1000 for tokens, _, processor in samples)
    return f"{speed:.1f}", f"{work:.1f} ms"


def servers(packed: str, gguf: str, llama_cpp: str | None) -> dict[str, Server]:
    """Return the servers by name."""
    ours = (sys.executable, "-m", "mlxk", "serve", "--allow-model-paths", "--model", packed)
    peer = shutil.which("mlx_lm.server", path=os.path.dirname(sys.executable)) or "mlx_lm.server"
    found = {
        "mlx_lm.server": Server((peer, "--model", packed)),
        "mlx_lm.server, OpenBLAS preloaded": Server((peer, "--model", packed), {"LD_PRELOAD": "libopenblas.so.0"}),
        "mlxk --blas off": Server((*ours, "--blas", "off")),
        "mlxk": Server(ours),
    }
    if llama_cpp is not None:
        threads = str(os.cpu_count())
        options = ("--n_ctx", "4096", "--n_threads", threads, "--n_threads_batch", threads)
        found["llama.cpp"] = Server((llama_cpp, "-m", "llama_cpp.server", "--model", gguf, *options))
    return found


def with_vocabulary(model: Path, size: int) -> None:
    """Give a tokenizer as many tokens as the network has; the further ones are never made of text."""
    path = model / "tokenizer.json"
    document = json.loads(path.read_text())
    known = document["model"]["vocab"]
    taken = {*known.values(), *(each["id"] for each in document["added_tokens"])}
    known.update({f"token{number}": number for number in range(size) if number not in taken})
    path.write_text(json.dumps(document))


def main(arguments: argparse.Namespace) -> None:
    """Build the model, and measure each server."""
    shape = SHAPES[arguments.shape]
    with tempfile.TemporaryDirectory() as directory:
        whole, packed, gguf = Path(directory, "float32"), f"{directory}/4bit", f"{directory}/model.gguf"
        build(whole, **shape)
        if "vocab_size" in shape:
            with_vocabulary(whole, shape["vocab_size"])
        mlx_lm.convert(str(whole), packed, dtype="bfloat16", quantize=True, q_bits=4)
        if arguments.llama_cpp is not None:
            script = str(Path(__file__).with_name("as_gguf.py"))
            subprocess.run([arguments.llama_cpp, script, str(whole), gguf], check=True)
        print("server | prompt, tokens/s | processor a token | answer, tokens/s | processor a token", flush=True)
        for name, server in servers(packed, gguf, arguments.llama_cpp).items():
            if not arguments.only or name in arguments.only:
                prompt = SENTENCE * arguments.sentences
                print(f"{name} | {measured(server, packed, prompt, arguments.rounds)}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rounds", nargs="?", type=int, default=3)
    parser.add_argument("--shape", choices=SHAPES, default="25M")
    parser.add_argument("--sentences", type=int, default=6, help="of a prompt, about 11 tokens each")
    parser.add_argument("--only", action="append", help="a server by its name here; repeatable")
    parser.add_argument("--llama-cpp", metavar="PYTHON", help="the Python that has llama.cpp's server")
    main(parser.parse_args())
