"""The server against the engine it serves: tokens for each second of CPU the server takes, at 1, 8 and 32 streams.

    python benchmarks/server.py [--rounds N] [--tokens N] [--starts N] [--peer NAME=COMMAND …]

A random model is made for it: small, so that what the server adds to a token shows. ``raw`` is mlx-lm's own batch
generator in a process of its own, with no server at all. A peer is any OpenAI-compatible server: ``{model}`` and
``{port}`` in its command are filled in, for example
``--peer 'mlx_lm=python -m mlx_lm.server --model {model} --port {port}'``. Rounds are interleaved, so that a noisy
machine disturbs all alike; figures are medians. CPU and memory are those of the server's processes together, not of the
clients. Connections that a server refused or reset are counted, and tried again.

Before that each server is started several times with no other beside it: ready is a server that has answered its first
request; its memory is looked at a second later, and again after 32 streams at once. Pages that its processes share
count once. This is done with the small model, where memory is that of the program, and with one whose weights take as
much as those of SmolLM2-135M in 4 bits, about the smallest that people serve.
"""

import argparse
import contextlib
import http.client
import importlib.util
import json
import os
import shlex
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import attrs

STREAMS = (1, 8, 32)
PROMPT_WORDS = 8
NEVER = 10**6
"""An end-of-turn token no vocabulary has, so that every answer is as long as asked for."""

SHAPE = {
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "intermediate_size": 768,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
}

SMALLEST_SERVED = {
    "hidden_size": 576,
    "num_hidden_layers": 5,
    "intermediate_size": 1664,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
}
"""76 MB of weights in 32 bits."""


@attrs.frozen
class Sample:
    """One round at one number of streams."""

    tokens: int
    cpu_seconds: float
    first_token_seconds: float
    """Median over the streams."""

    @property
    def tokens_per_cpu_second(self) -> float:
        """What the round is judged by."""
        return self.tokens / self.cpu_seconds


def make_model(directory: Path, name: str, shape: Mapping[str, int]) -> str:
    """Write a model and return its path."""
    place = Path(__file__).parents[1] / "tests" / "models" / "tiny_models.py"
    spec = importlib.util.spec_from_file_location("tiny_models", place)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(place)
    tiny_models = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tiny_models)
    model = directory / name
    tiny_models.build(model, **shape)
    for file in ("config.json", "generation_config.json"):
        settings = json.loads((model / file).read_text())
        (model / file).write_text(json.dumps({**settings, "eos_token_id": NEVER}))
    (model / "README.md").write_text("---\nlibrary_name: mlx\npipeline_tag: text-generation\ntags:\n- mlx\n---\n")
    return str(model)


def family(process: int) -> list[int]:
    """Return a process and those below it."""
    shown = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True)
    pairs = [tuple(map(int, line.split())) for line in shown.stdout.splitlines()]
    found = [process]
    for each in found:
        found += [child for child, parent in pairs if parent == each]
    return found


def cpu_seconds(process: int) -> float:
    """Return the CPU time of a process so far, user and system together."""
    stat = Path(f"/proc/{process}/stat")
    if stat.exists():
        fields = stat.read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    shown = subprocess.run(["ps", "-o", "cputime=", "-p", str(process)], capture_output=True, text=True, check=True)
    minutes, _, seconds = shown.stdout.strip().rpartition(":")
    hours, _, minutes = minutes.rpartition(":")
    return int(hours or 0) * 3600 + int(minutes or 0) * 60 + float(seconds)


def memory_mib(process: int) -> float:
    """Return the resident memory of a process; of pages that several share only its part, where the system tells it."""
    shares = Path(f"/proc/{process}/smaps_rollup")
    if shares.exists():
        return next(int(line.split()[1]) for line in shares.read_text().splitlines() if line.startswith("Pss:")) / 1024
    shown = subprocess.run(["ps", "-o", "rss=", "-p", str(process)], capture_output=True, text=True, check=True)
    return int(shown.stdout) / 1024


class Server:
    """A server under test, started by its command line."""

    def __init__(self, name: str, command: str, model: str) -> None:
        self.name = name
        self.resets = 0
        self._model = model
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        words = shlex.split(command.format(model=model, port=self.port))
        self._log = Path(tempfile.gettempdir()) / f"bench-{name}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(words, stdout=log, stderr=log)
        began = time.perf_counter()
        while not self._listens():
            if self._process.poll() is not None or time.perf_counter() - began > 120:
                raise RuntimeError(f"{name} does not start: {shlex.join(words)}")
            time.sleep(0.05)
        self._stream("warm up", 2)
        self.ready_seconds = time.perf_counter() - began

    @property
    def process(self) -> int:
        """Its first process."""
        return self._process.pid

    def measure(self, streams: int, tokens: int) -> Sample:
        """Answer so many streams at once."""
        start = threading.Barrier(streams)

        def client(index: int) -> tuple[int, float]:
            start.wait()
            return self._stream(f"request {index} of {time.time()}", tokens)

        processes = family(self._process.pid)
        before = sum(map(cpu_seconds, processes))
        with ThreadPoolExecutor(streams) as clients:
            results = list(clients.map(client, range(streams)))
        taken = sum(map(cpu_seconds, processes)) - before
        return Sample(sum(each[0] for each in results), taken, statistics.median(each[1] for each in results))

    def memory_mib(self) -> float:
        """Return the memory of its processes together, after a second of rest."""
        time.sleep(1)
        return sum(map(memory_mib, family(self._process.pid)))

    def close(self) -> None:
        """End it, with everything it started."""
        processes = family(self._process.pid)
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        for each in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)
        self._process.wait(10)

    def _listens(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return True
        except OSError:
            return False

    def _stream(self, text: str, tokens: int) -> tuple[int, float]:
        words = " ".join(f"word{index % 97}" for index in range(PROMPT_WORDS))
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": f"{text} {words}"}],
            "max_tokens": tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        began = time.perf_counter()
        first, counted = 0.0, 0
        response = self._response(json.dumps(body))
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            event: dict[str, Any] = json.loads(line[6:])
            if not first and event.get("choices") and event["choices"][0]["delta"].get("content"):
                first = time.perf_counter() - began
            counted = (event.get("usage") or {}).get("completion_tokens", counted)
        response.close()
        return counted, first

    def _response(self, body: str) -> http.client.HTTPResponse:
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
            try:
                connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
                return connection.getresponse()
            except ConnectionError:
                self.resets += 1
                if self._process.poll() is not None:
                    raise
                time.sleep(0.02)


class Raw:
    """mlx-lm's batch generator, told what to do over a pipe."""

    name = "raw"
    resets = 0

    def __init__(self, model: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--raw", model], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._ask(1, 2)

    def measure(self, streams: int, tokens: int) -> Sample:
        """Generate so many answers at once."""
        return Sample(**self._ask(streams, tokens))

    def close(self) -> None:
        """End it."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait(30)

    def _ask(self, streams: int, tokens: int) -> dict[str, Any]:
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("the raw generator has no pipes")
        self._process.stdin.write(f"{streams} {tokens}\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer


def generate_raw(model_path: str) -> None:
    """Answer the lines of standard input, each a number of streams and of tokens."""
    from mlx_lm import load  # noqa: PLC0415 - in the process of the raw generator only
    from mlx_lm.generate import BatchGenerator  # noqa: PLC0415 - the same

    network, tokenizer = load(model_path)[:2]
    for line in sys.stdin:
        streams, tokens = map(int, line.split())
        before, began = time.process_time(), time.perf_counter()
        words = " ".join(f"word{index % 97}" for index in range(PROMPT_WORDS))
        prompts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": f"request {index} of {time.time()} {words}"}], add_generation_prompt=True
            )
            for index in range(streams)
        ]
        generator = BatchGenerator(network, completion_batch_size=32, prefill_batch_size=8, prefill_step_size=512)
        generator.insert(prompts, max_tokens=[tokens] * streams)
        first: dict[int, float] = {}
        ended = counted = 0
        while ended < streams:
            for each in generator.next()[1]:
                counted += 1
                first.setdefault(each.uid, time.perf_counter() - began)
                ended += each.finish_reason is not None
        generator.close()
        taken = time.process_time() - before
        sample = Sample(counted, taken, statistics.median(first.values()))
        sys.stdout.write(json.dumps(attrs.asdict(sample)) + "\n")
        sys.stdout.flush()


def compare(contestants: Sequence[Raw | Server], rounds: int, tokens: int) -> None:
    """Measure what a token costs, and print a table."""
    samples: dict[tuple[str, int], list[Sample]] = {}
    for _ in range(rounds):
        for streams in STREAMS:
            for each in contestants:
                samples.setdefault((each.name, streams), []).append(each.measure(streams, tokens))
    print(f"{'':12} {'streams':>7} {'tok/CPU s':>10} {'of raw':>7} {'first token':>12}")
    for (name, streams), measured in samples.items():
        rate = statistics.median(sample.tokens_per_cpu_second for sample in measured)
        ratio = statistics.median(
            sample.tokens_per_cpu_second / raw.tokens_per_cpu_second
            for sample, raw in zip(measured, samples["raw", streams], strict=True)
        )
        first = statistics.median(sample.first_token_seconds for sample in measured)
        print(f"{name:12} {streams:7} {rate:10.1f} {ratio:7.3f} {first * 1000:9.0f} ms")
    for each in contestants:
        print(f"{each.name:12} {each.resets} connections refused or reset")


def compare_starts(commands: Mapping[str, str], model: str, starts: int, tokens: int) -> None:
    """Start each server several times, alone, and print what that takes."""
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    ready: dict[str, list[float]] = {name: [] for name in commands}
    loaded: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(starts):
        for name, command in commands.items():
            server = Server(name, command, model)
            seconds[name].append(server.ready_seconds)
            ready[name].append(server.memory_mib())
            server.measure(STREAMS[-1], tokens)
            loaded[name].append(server.memory_mib())
            server.close()
    weights = sum(file.stat().st_size for file in Path(model).glob("*.safetensors")) / 1e6
    print(f"{f'{weights:.0f} MB':12} {'ready after':>12} {'MiB':>5} {f'after {STREAMS[-1]} streams':>17}")
    for name in commands:
        figures = [statistics.median(each[name]) for each in (seconds, ready, loaded)]
        print(f"{name:12} {figures[0]:10.2f} s {figures[1]:5.0f} {figures[2]:17.0f}")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=COMMAND")
    parser.add_argument("--raw", metavar="MODEL", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.raw:
        generate_raw(arguments.raw)
        return
    ours = f"{sys.executable} -m mlxk serve --allow-model-paths --port {{port}} --model {{model}}"
    commands = {"mlxk": ours, **dict(peer.split("=", 1) for peer in arguments.peer)}
    with tempfile.TemporaryDirectory() as directory:
        model = make_model(Path(directory), "bench-llama", SHAPE)
        served = make_model(Path(directory), "bench-smallest-served", SMALLEST_SERVED)
        for started in (model, served):
            compare_starts(commands, started, arguments.starts, arguments.tokens)
        contestants = [Raw(model), *(Server(name, command, model) for name, command in commands.items())]
        try:
            compare(contestants, arguments.rounds, arguments.tokens)
        finally:
            for each in contestants:
                each.close()


if __name__ == "__main__":
    main()
