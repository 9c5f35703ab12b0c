"""Several servers behind a router, simulated and, for one and two, measured: latency, throughput, prompts kept.

    python benchmarks/replicas.py [--costs "PREFILL STEP ROW OVERHEAD"] [--no-check] [--requests N] [--load SHARE]

A server is simulated as its engine works: one chunk of a waiting prompt, then one token of every running answer, and so
on. Its four costs are measured first, on a real ``mlxk serve`` with a llama of 2 M random parameters that is bound to
one processor core, or given in seconds: of a prompt's token, of a step, of each answer in a step, of a request. Then
one and two such servers get the load that is simulated, at the same moments, and the two results stand side by side.
Last, 1 to 64 servers are simulated, each with as much to do, with and without a router that keeps conversations
together, and each with more than it can do, beside the limits that follow from the costs.

The load is that of agents and chats: conversations begin at random (Poisson), go on for some turns with pauses, and
send all that was said before with every turn. What a server computed of a conversation it keeps, up to a limit.
"""

import argparse
import http.client
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs
import numpy as np
from server import make_model
from simulated_servers import STREAMS, Costs, Load, Outcome, Router, Turn, demand, load_of, simulated

SHAPE = {
    "hidden_size": 192,
    "num_hidden_layers": 4,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 48,
}
WORDS = ("alpha", "bravo", "delta", "hotel", "india", "kilo", "lima", "oscar", "papa", "quebec", "tango")


class Replica:
    """A real server on one processor core."""

    def __init__(self, model: str, core: int) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = int(free.getsockname()[1])
        command = [sys.executable, "-m", "mlxk", "serve", "--port", str(self.port), "--model", model, "--json"]
        command += ["--allow-model-paths", "--blas", "off", "--log-level", "error", "--max-streams", str(STREAMS)]
        bound = ["taskset", "-c", str(core), *command] if hasattr(os, "sched_setaffinity") else command
        self._process = subprocess.Popen(bound, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.model = str(json.loads(self._process.stdout.readline())["data"]["model"])

    def ask(self, words: str, tokens: int) -> tuple[float, int, int]:
        """Return the seconds of a request, and the tokens of its prompt, computed and kept ones together and kept."""
        body = {"model": self.model, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
        body["messages"] = [{"role": "user", "content": words}]
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        began = time.perf_counter()
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = json.loads(connection.getresponse().read())
        taken = time.perf_counter() - began
        connection.close()
        usage = response["usage"]
        assert usage["completion_tokens"] == tokens, response
        return taken, usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(60)


def text_of(conversation: int, count: int) -> str:
    """Return the words of a conversation: the same beginning however many they are."""
    source = random.Random(conversation)
    return " ".join(source.choice(WORDS) for _ in range(count))


def measured_costs(replica: Replica) -> tuple[Costs, tuple[float, float]]:
    """Return the costs of a server, and the tokens of an empty prompt and of a word."""
    seeds: Iterator[int] = iter(range(10**6, 2 * 10**6))
    replica.ask(text_of(next(seeds), 40), 4)

    def alone(words: int, answer: int) -> tuple[float, float, float]:
        found = [replica.ask(text_of(next(seeds), words), answer)[:2] for _ in range(7)]
        return statistics.median(each[0] for each in found), statistics.mean(each[1] for each in found), answer

    def together(streams: int, answer: int) -> float:
        threads = [threading.Thread(target=replica.ask, args=(text_of(next(seeds), 2), answer)) for _ in range(streams)]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - began

    single = [alone(words, answer) for words in (4, 20, 60) for answer in (1, 17, 49)]
    known = np.array([[1.0, prompt, answer] for _, prompt, answer in single])
    request, token, step = np.linalg.lstsq(known, np.array([seconds for seconds, _, _ in single]), rcond=None)[0]
    word = (single[6][1] - single[0][1]) / 56
    empty = single[0][1] - 4 * word
    eight = statistics.median(together(8, 64) for _ in range(5))
    row = (eight - 8 * (request + token * (empty + 2 * word)) - 64 * step) / (64 * 7)
    row = min(max(row, 0.0), step)
    return Costs(token, step - row, row, max(request, 0.0)), (empty, word)


def measured(load: Load, replicas: Sequence[Replica], words: tuple[float, float]) -> Outcome:
    """Send a load to real servers, each conversation by a thread."""
    router, lock, outcome = Router(len(replicas), together=True), threading.Lock(), Outcome()

    def talk(turns: tuple[Turn, ...]) -> None:
        for turn in turns:
            text = text_of(turn.conversation, round((turn.prompt - words[0]) / words[1]))
            time.sleep(turn.pause)
            with lock:
                chosen = router.choose(turn.conversation)
            seconds, prompt, kept = replicas[chosen].ask(text, turn.answer)
            with lock:
                router.busy[chosen] -= 1
                outcome.latencies.append(seconds)
                outcome.prompts, outcome.kept = outcome.prompts + prompt, outcome.kept + kept
                outcome.end = time.perf_counter() - began

    threads = [threading.Thread(target=talk, args=(turns,)) for turns in load]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcome


HEAD = "| servers | mean s | p95 s | requests/s | prompt tokens kept |\n|---|--:|--:|--:|--:|"


def check(costs: Costs | None, requests: int, share: float) -> Costs:
    """Print what one and two real servers make of a load, and the simulation of the same one; return the costs."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0, 0]
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(Path(folder), "replicas-2m", SHAPE)
        replicas = [Replica(model, cores[index % len(cores)]) for index in range(2)]
        try:
            found, words = measured_costs(replicas[0])
            measured(load_of(8.0, 80, 41, words), replicas, words)  # until the engines know what their steps cost
            costs = costs or found
            print(f"costs: {costs.token:.6f} {costs.step:.6f} {costs.row:.6f} {costs.request:.6f} s\n{HEAD}")
            for count in (1, 2):
                rate = share * count / demand(load_of(1.0, requests, 40, words), costs, kept=True, full=False)
                load = load_of(rate, requests * count, 40, words)
                predicted = simulated(load, costs, count, together=True)
                real = measured(load, replicas[:count], words)
                print(predicted.line(f"{count}, simulated"))
                print(real.line(f"{count}, measured"))
                ratio = statistics.mean(predicted.latencies) / statistics.mean(real.latencies)
                print(f"|  | simulated / measured: {ratio:.2f} | | | |")
        finally:
            for replica in replicas:
                replica.close()
    return costs


def at_scale(costs: Costs, share: float) -> None:
    """Print what 1 to 64 servers make of a load that grows with them, and of one beyond their limit."""
    words = (14.0, 5.0)
    print(HEAD)
    for count in (1, 4, 16, 64):
        once = load_of(1.0, 400 * count, 7, words)
        load = load_of(share * count / demand(once, costs, kept=True, full=False), 400 * count, 7, words)
        for together, name in ((False, "to the idlest"), (True, "kept together")):
            print(simulated(load, costs, count, together=together).line(f"{count}, {name}"))
        limits = [count / demand(load, costs, kept=kept, full=True) for kept in (False, True)]
        flood = [tuple(attrs.evolve(turn, pause=0.0) for turn in turns) for turns in load]
        found = simulated(flood, costs, count, together=True)
        most = len(found.latencies) / found.end
        print(f"| {count}, all at once | | | {most:.2f}; limits {limits[0]:.2f} and {limits[1]:.2f} | |")


def main() -> None:
    """Measure, compare, simulate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--costs", type=lambda text: Costs(*map(float, text.split())))
    parser.add_argument("--no-check", action="store_true", help="only simulate, where costs are given")
    parser.add_argument("--requests", type=int, default=150)
    parser.add_argument(
        "--load",
        type=float,
        default=0.6,
        help="share of its time that a server is busy with an answer at a time",
    )
    arguments = parser.parse_args()
    costs = arguments.costs
    if costs is None or not arguments.no_check:
        costs = check(costs, arguments.requests, arguments.load)
    at_scale(costs, arguments.load)


if __name__ == "__main__":
    main()
