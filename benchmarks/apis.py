"""The APIs of the server against each other: CPU for each token, and an agent's second conversation.

    python benchmarks/apis.py [--rounds N] [--tokens N] [--streams N]

One server, one random model. In each round every API streams the same number of answers of the same length at once, in
a new order; figures are medians of the rounds and of the ratios to chat completions within each round. Before that, an
agent's prompt of 24 tools and some 25,000 tokens is answered in two conversations that differ in the question: what
counts is the time to the first token of the second.
"""

import argparse
import http.client
import json
import random
import re
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "tests")]

from clients import agent_models  # noqa: E402 - needs the paths above
from server import SHAPE, Server, cpu_seconds, family, make_model  # noqa: E402

Document = dict[str, Any]


def requests(model: str, text: str, tokens: int) -> Mapping[str, tuple[str, Document]]:
    """Return path and body of one request in each API."""
    messages = [{"role": "user", "content": text}]
    return {
        "chat": (
            "/v1/chat/completions",
            {"model": model, "messages": messages, "max_tokens": tokens, "temperature": 0, "stream": True},
        ),
        "responses": (
            "/v1/responses",
            {
                "model": model,
                "input": text,
                "max_output_tokens": tokens,
                "temperature": 0,
                "stream": True,
                "store": False,
            },
        ),
        "messages": (
            "/v1/messages",
            {"model": model, "messages": messages, "max_tokens": tokens, "temperature": 0, "stream": True},
        ),
        "ollama": (
            "/api/chat",
            {"model": model, "messages": messages, "options": {"num_predict": tokens, "temperature": 0}},
        ),
    }


def stream(port: int, path: str, body: Document) -> tuple[bytes, float]:
    """Send a request; return the response and the seconds up to its first token."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    began = time.perf_counter()
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    data, first = b"", 0.0
    while part := response.read1(65536):
        data += part
        if not first and re.search(rb'content":\s*"[^"]', data):
            first = time.perf_counter() - began
    connection.close()
    if response.status != 200:
        raise RuntimeError(f"{path}: {response.status} {data[:300]!r}")
    return data, first


def cost(server: Server, name: str, model: str, streams: int, tokens: int) -> float:
    """Return the CPU milliseconds of the server for each token of one API."""
    start = threading.Barrier(streams)

    def client(index: int) -> None:
        start.wait()
        path, body = requests(model, f"request {index} of {time.time()}", tokens)[name]
        stream(server.port, path, body)

    processes = family(server.process)
    before = sum(map(cpu_seconds, processes))
    with ThreadPoolExecutor(streams) as clients:
        list(clients.map(client, range(streams)))
    return (sum(map(cpu_seconds, processes)) - before) * 1000 / (streams * tokens)


def compare(server: Server, model: str, rounds: int, streams: int, tokens: int) -> None:
    """Measure every API in each round, and print a table."""
    names = list(requests(model, "", tokens))
    measured: dict[str, list[float]] = {name: [] for name in names}
    for seed in range(rounds):
        for name in random.Random(seed).sample(names, len(names)):
            measured[name].append(cost(server, name, model, streams, tokens))
    print(f"{streams} streams of {tokens} tokens, {rounds} rounds\n{'':12} {'CPU ms a token':>15} {'of chat':>9}")
    for name in names:
        ratio = statistics.median(own / chat for own, chat in zip(measured[name], measured["chat"], strict=True))
        print(f"{name:12} {statistics.median(measured[name]):15.3f} {ratio:9.3f}")


def second_conversation(server: Server, model: str) -> None:
    """Ask two questions after the same long prompt, and print the times to the first token."""
    root = Path(__file__).parents[1]
    system = "\n".join(path.read_text(encoding="utf-8") for path in sorted((root / "docs").glob("*.md")))[:60_000]
    schema = {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]}
    described = "Does something useful with the files of the project. " * 6
    tools = [
        {"type": "function", "function": {"name": f"tool_{index}", "description": described, "parameters": schema}}
        for index in range(24)
    ]
    seconds = []
    for question in ("What is the first question?", "Another conversation begins with this."):
        messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
        body = {"model": model, "messages": messages, "tools": tools, "max_tokens": 4, "temperature": 0, "stream": True}
        options = {"stream_options": {"include_usage": True}}
        data, first = stream(server.port, "/v1/chat/completions", {**body, **options})
        usage = json.loads(data.decode().split("data: ")[-2])["usage"]
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        print(f"{usage['prompt_tokens']:,} prompt tokens, {cached:,} cached: first token after {first:.2f} s")
        seconds.append(first)
    print(f"the second conversation's first token came {seconds[0] / seconds[1]:.0f} times faster")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--streams", type=int, default=8)
    arguments = parser.parse_args()
    command = f"{sys.executable} -m mlxk serve --allow-model-paths --port {{port}} --model {{model}}"
    with tempfile.TemporaryDirectory() as directory:
        agent_models.main(Path(directory))
        long = str(Path(directory, "reads-by-shell"))
        server = Server("mlxk", command, long)
        second_conversation(server, long)
        server.close()
        model = make_model(Path(directory), "bench-llama", SHAPE)
        server = Server("mlxk", command, model)
        compare(server, model, arguments.rounds, arguments.streams, arguments.tokens)
        server.close()


if __name__ == "__main__":
    main()
