"""What a server keeps after thousands of requests: resident memory, threads, descriptors, temporary files.

    python benchmarks/soak.py [--requests N] [--clients N]

Eight clients send requests of every kind to a started ``mlxk serve``: chats and raw texts, streamed and not, several
choices, grammars, tools, log probabilities, refused ones, and a fifth given up in the middle. They ask for two models
in turns, of which only one fits into the memory budget, so that models are loaded and unloaded all the time. Figures
are of the worker's process, taken between requests, its memory before and after everything was unloaded; the slope is
that of a straight line through the last two thirds, since what is kept of earlier prompts grows until it is full.
"""

import argparse
import http.client
import json
import os
import queue
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import attrs

DEMO = Path(__file__).parents[1] / "adapters" / "builtin" / "models" / "demo"
SAMPLES = 50
WORDS = (
    "Paris",
    "Rome",
    "weather",
    "knife",
    "model",
    "cache",
    "list",
    "run",
    "serve",
    "token",
    "What",
    "is",
    "the",
    "of",
)
SCHEMA = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": SCHEMA}}
FORM = {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA}}
TURN = 40
"""Requests after which the clients ask for the other model."""


@attrs.frozen
class Sample:
    """The worker at one moment."""

    requests: int
    resident_mib: float
    empty_mib: float
    """Resident once everything is unloaded."""
    threads: int
    descriptors: int
    files: int
    """In the folder for temporary files."""
    prefixes_mib: float
    """Kept of earlier prompts."""


class Server:
    """A started ``mlxk serve`` with two models of which one fits."""

    def __init__(self, folder: Path) -> None:
        self._temporary = folder / "tmp"
        self._temporary.mkdir()
        self.models = [str(shutil.copytree(DEMO, folder / name)) for name in ("first", "second")]
        command = [sys.executable, "-m", "mlxk", "serve", "--port", "0", "--json", "--allow-model-paths"]
        flags = ["--memory-budget", "3", "--log-level", "warning"]
        self._process = subprocess.Popen(
            [*command, *flags, "--model", self.models[0]],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": str(self._temporary)},
        )
        if self._process.stdout is None:
            raise RuntimeError("the server has no output")
        self.port: int = json.loads(self._process.stdout.readline())["data"]["port"]
        found = subprocess.run(["pgrep", "-P", str(self._process.pid)], capture_output=True, text=True, check=True)
        self._worker = Path("/proc") / found.stdout.split()[0]

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, str]:
        """Return status and body of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        connection.request(method, path, json.dumps(body) if body else None, {"Content-Type": "application/json"})
        response = connection.getresponse()
        text = response.read().decode()
        connection.close()
        return response.status, text

    def give_up(self, path: str, body: object, seconds: float) -> None:
        """Ask, and go before the answer has come."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        time.sleep(seconds)
        connection.close()

    def sample(self, requests: int) -> Sample:
        """Look at the worker, then have everything unloaded, and look at its memory again."""
        kept, resident = self.figure("mlxk_prefix_cache_bytes") / 2**20, self.status("VmRSS") / 1024
        self.ask("POST", "/v1/unload", {})
        return Sample(
            requests,
            resident,
            self.status("VmRSS") / 1024,
            self.status("Threads"),
            len(os.listdir(self._worker / "fd")),
            sum(len(files) for _, _, files in os.walk(self._temporary)),
            kept,
        )

    def status(self, name: str) -> int:
        """Return a number the system tells about the worker."""
        lines = (self._worker / "status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))

    def figure(self, name: str) -> float:
        """Return one of the server's own figures."""
        lines = self.ask("GET", "/metrics")[1].splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))

    def close(self) -> int:
        """End it and return its exit status."""
        self._process.terminate()
        return self._process.wait(60)


def request(chance: random.Random, model: str) -> tuple[str, dict[str, Any]]:
    """Return one request of any kind."""
    text = " ".join(chance.choices(WORDS, k=chance.choice([3, 10, 60])))
    body: dict[str, Any] = {"model": model, "max_tokens": chance.choice([1, 8, 24]), "stream": chance.random() < 0.5}
    if chance.random() < 0.2:
        return "/v1/completions", {**body, "prompt": [text, text[:9]], "echo": True}
    more: list[dict[str, Any]] = [
        {},
        {},
        {"n": 3},
        {"response_format": FORM},
        {"tools": [TOOL], "tool_choice": "required"},
        {"logprobs": True, "top_logprobs": 3},
        {"temperature": 0, "stop": ["a", "the"]},
        {"n": -1},
    ]
    return "/v1/chat/completions", {**body, "messages": [{"role": "user", "content": text}], **chance.choice(more)}


def client(server: Server, numbers: "queue.SimpleQueue[int]", outcomes: "queue.SimpleQueue[str]") -> None:
    """Send the requests of some numbers."""
    while True:
        try:
            number = numbers.get_nowait()
        except queue.Empty:
            return
        chance = random.Random(number)
        path, body = request(chance, server.models[number // TURN % 2])
        if chance.random() < 0.2:
            server.give_up(path, body, chance.choice([0, 0.01, 0.05]))
            outcomes.put("given up")
        else:
            outcomes.put(str(server.ask("POST", path, body)[0]))


def send(server: Server, numbers: range, clients: int) -> Counter[str]:
    """Send requests and return how they ended."""
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    outcomes: queue.SimpleQueue[str] = queue.SimpleQueue()
    for number in numbers:
        waiting.put(number)
    threads = [threading.Thread(target=client, args=(server, waiting, outcomes)) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return Counter(outcomes.get() for _ in range(outcomes.qsize()))


def slope(samples: list[Sample], values: list[float]) -> float:
    """Return how much a figure grows in a thousand requests, by the line that fits best."""
    return 1000 * statistics.linear_regression([each.requests for each in samples], values).slope


def report(samples: list[Sample]) -> None:
    """Print the figures."""
    print(
        f"{'requests':>8} {'RSS MiB':>8} {'empty':>8} {'threads':>8} {'fds':>4} {'files':>6} {'kept prompts MiB':>17}"
    )
    for each in samples[:: max(1, len(samples) // 10)]:
        print(
            f"{each.requests:8} {each.resident_mib:8.1f} {each.empty_mib:8.1f} {each.threads:8} {each.descriptors:4}"
            f" {each.files:6} {each.prefixes_mib:17.1f}"
        )
    late = samples[len(samples) // 3 :]
    for name, values in (
        ("resident MiB", [each.resident_mib for each in late]),
        ("empty MiB", [each.empty_mib for each in late]),
        ("threads", [float(each.threads) for each in late]),
        ("descriptors", [float(each.descriptors) for each in late]),
        ("temporary files", [float(each.files) for each in late]),
    ):
        print(f"{name:16} {slope(late, values):+.2f} in 1,000 requests; {min(values):.1f} to {max(values):.1f}")


def main() -> int:
    """Read the command line, and soak."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--clients", type=int, default=8)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder))
        began = time.monotonic()
        outcomes: Counter[str] = Counter()
        samples = [server.sample(0)]
        step = max(1, arguments.requests // SAMPLES)
        for start in range(0, arguments.requests, step):
            numbers = range(start, min(start + step, arguments.requests))
            outcomes += send(server, numbers, arguments.clients)
            samples.append(server.sample(numbers.stop))
        report(samples)
        print(f"{dict(outcomes)} in {time.monotonic() - began:.0f} s")
        return server.close()


if __name__ == "__main__":
    sys.exit(main())
