"""Two hundred clients of every kind at once: all are answered, nothing is left behind."""

import http.client
import json
import os
import random
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from doubles.text_generator import InMemoryTextGenerator
from serving.parts import CHAT_MODEL, Parts
from serving.running import RunningServer, events_of, eventually, read_all

from mlxk.domain.generation.request import GenerationRequest
from mlxk.entrypoints.http.server.server import ServerLimits
from mlxk.entrypoints.settings import ServerSettings

PATH = "/v1/chat/completions"
CLIENTS = 200


def answers(request: GenerationRequest) -> tuple[str, ...]:
    """Answer as many words as asked for, wide ones when asked for many."""
    count = request.settings.max_tokens or 1
    return ("x" * 1000 if count > 1000 else " word",) * count


def body(count: int, *, stream: bool) -> dict[str, object]:
    """Return a request for so many words."""
    messages = [{"role": "user", "content": "go"}]
    return {"model": CHAT_MODEL, "messages": messages, "max_tokens": count, "stream": stream}


def client(server: RunningServer, kind: int, seed: int) -> str:
    """Behave as one kind of client and say how it went."""
    chance = random.Random(seed)
    if kind in (0, 1):
        events = events_of(read_all(server.raw(PATH, body(30, stream=True))))
        return "streamed" if len(events) == 33 and events[-1] == "[DONE]" else "wrong"
    if kind == 2:
        connection = server.raw(PATH, body(100, stream=chance.random() < 0.5))
        time.sleep(chance.random() * 0.4)
        connection.close()
        return "left"
    if kind == 3:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        for _ in range(20):
            connection.request("POST", PATH, json.dumps(body(1, stream=False)), {"Content-Type": "application/json"})
            if json.loads(connection.getresponse().read())["choices"][0]["message"]["content"] != " word":
                return "wrong"
        connection.close()
        return "kept alive"
    connection = server.raw(PATH, body(20_000, stream=True))
    time.sleep(1.5)
    connection.close()
    return "slow"


@pytest.mark.timeout(120)
def test_two_hundred_mixed_clients_are_served_and_forgotten() -> None:
    settings = ServerSettings(max_streams=256, max_queue=64)
    parts = Parts(InMemoryTextGenerator(answers, 0.002), settings)
    outcomes: Counter[str] = Counter()
    lock = threading.Lock()
    descriptors = len(os.listdir("/dev/fd"))
    with RunningServer(parts, ServerLimits(threads=16)) as server:

        def run(index: int) -> None:
            outcome = client(server, index % 5, index)
            with lock:
                outcomes[outcome] += 1

        threads = [threading.Thread(target=run, args=(index,)) for index in range(CLIENTS)]
        for thread in threads:
            thread.start()
        slowest = 0.0
        while any(thread.is_alive() for thread in threads):
            asked = time.monotonic()
            assert server.get("/livez")[0] == 200
            slowest = max(slowest, time.monotonic() - asked)
            time.sleep(0.1)
        assert eventually(lambda: parts.generator.state(0.1).running == 0)
        assert eventually(lambda: parts.application._limit.admitted == 0)
        assert eventually(lambda: len(server.server._channels()) == 0)
        assert not parts.log.named("a response could not be delivered")
    assert outcomes == {"streamed": 80, "left": 40, "kept alive": 40, "slow": 40}
    assert slowest < 20
    assert server.ended_well
    assert len(os.listdir("/dev/fd")) <= descriptors + 2
    assert Path("/dev/fd").exists()
