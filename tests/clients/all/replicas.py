"""Two servers behind a proxy: one is asked to end, then one is killed, while answers are streamed through the proxy."""

import contextlib
import http.client
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Self
from urllib import request

KEY = "sk-of-the-cluster-4711"
STREAMS = 8
TOKENS = 1500
FORBIDDEN_ENDS = {"0": -100, "1": -100, "2": -100, "3": -100}
"""Without the tokens that end an answer, the model of the demo goes on to the limit."""


def free_port() -> int:
    """Return a port that nothing has."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def eventually(what: Callable[[], bool], name: str, seconds: float = 40) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not what():
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds:.0f} s: {name}")
        time.sleep(0.1)


class Replica:
    """A server that can be ended, killed, and started again on its port."""

    def __init__(self) -> None:
        self.port = free_port()
        self._process = self._started()

    def _started(self) -> subprocess.Popen[str]:
        command = [*shlex.split(os.environ["MLXK_COMMAND"]), "serve", "--port", str(self.port), "--model", "demo"]
        process = subprocess.Popen(
            [*command, "--json", "--log-level", "error", "--drain-timeout", "60"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "MLXK2_API_KEY": KEY},
        )
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["status"] == "success"
        return process

    def start_again(self) -> None:
        """Start what was ended."""
        self._process = self._started()

    def running(self) -> int:
        """Return how many answers it computes."""
        asked = request.Request(f"http://127.0.0.1:{self.port}/metrics", headers={"Authorization": f"Bearer {KEY}"})
        with request.urlopen(asked, timeout=10) as answer:
            found = re.search(r"^mlxk_answers_running (\S+)$", answer.read().decode(), re.MULTILINE)
        return int(float(found[1])) if found else 0

    def end(self) -> None:
        """Ask it to end."""
        self._process.terminate()

    def kill(self) -> None:
        """Kill all of its processes."""
        listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
        parents = {int(one): int(other) for one, other in (line.split() for line in listed.splitlines())}
        killed = [self._process.pid]
        for each in killed:
            killed += (one for one, parent in parents.items() if parent == each)
        for each in killed:
            with contextlib.suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)

    def wait(self) -> None:
        """Wait for its end."""
        self._process.wait(90)
        if self._process.stdout is not None:
            self._process.stdout.close()

    def stop(self) -> None:
        """End it, whatever it does."""
        if self._process.poll() is None:
            self.kill()
        self.wait()


class Stream:
    """One streamed answer, read by a thread of its own."""

    def __init__(self, url: str, model: str) -> None:
        self.text = b""
        body = {
            "model": model,
            "messages": [{"role": "user", "content": "What is mlxk?"}],
            "max_tokens": TOKENS,
            "logit_bias": FORBIDDEN_ENDS,
            "stream": True,
        }
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
        self._request = request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), headers)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        broken = contextlib.suppress(OSError, http.client.HTTPException)
        with broken, request.urlopen(self._request, timeout=180) as answer:
            while part := answer.read1(65536):
                self.text += part

    def join(self) -> Self:
        """Wait for its end."""
        self._thread.join(180)
        return self

    @property
    def whole(self) -> bool:
        """Whether it came to its end."""
        return b'"finish_reason":"length"' in self.text.replace(b": ", b":") and b"[DONE]" in self.text


def answered(url: str, model: str, count: int) -> tuple[int, float]:
    """Return how many of some short questions are answered, one after the other, and the longest wait in seconds."""
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 5}
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    good, longest = 0, 0.0
    for _ in range(count):
        began = time.monotonic()
        with contextlib.suppress(OSError, http.client.HTTPException):
            asked = request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), headers)
            with request.urlopen(asked, timeout=60) as answer:
                good += bool(json.load(answer)["choices"][0]["message"]["content"])
        longest = max(longest, time.monotonic() - began)
    return good, longest


@contextlib.contextmanager
def two_replicas() -> Iterator[list[Replica]]:
    """Yield two servers, which end with the block."""
    with contextlib.ExitStack() as stack:
        replicas = []
        for _ in range(2):
            replicas.append(Replica())
            stack.callback(replicas[-1].stop)
        yield replicas


def streams_on_both(url: str, model: str, replicas: list[Replica]) -> tuple[list[Stream], list[int]]:
    """Begin streams through the proxy, and return them with how many each server has."""
    streams = [Stream(url, model) for _ in range(STREAMS)]
    eventually(lambda: sum(each.running() for each in replicas) == STREAMS, f"{STREAMS} streams begin")
    shares = [each.running() for each in replicas]
    assert min(shares) > 0, shares
    return streams, shares


def try_ends(url: str, model: str, replicas: list[Replica], *, taken_again: Callable[[], bool]) -> None:
    """End a server and kill one while answers are streamed, and print what came of it.

    Args:
        url: The proxy's address.
        model: The model's name there.
        replicas: The servers behind it.
        taken_again: Whether the proxy sends requests to both.
    """
    first = replicas[0]
    streams, shares = streams_on_both(url, model, replicas)
    first.end()
    good, longest = answered(url, model, 10)
    whole = sum(stream.join().whole for stream in streams)
    first.wait()
    sys.stdout.write(f"SIGTERM: {whole} of {STREAMS} whole ({shares[0]} on it); then {good} of 10, {longest:.2f} s\n")
    assert (whole, good) == (STREAMS, 10)

    first.start_again()
    eventually(taken_again, "the proxy takes the server again")
    streams, shares = streams_on_both(url, model, replicas)
    victim = shares.index(max(shares))
    replicas[victim].kill()
    good, longest = answered(url, model, 10)
    whole = sum(stream.join().whole for stream in streams)
    replicas[victim].wait()
    sys.stdout.write(
        f"SIGKILL: {whole} of {STREAMS} whole ({shares[victim]} on it); then {good} of 10, {longest:.2f} s\n"
    )
    assert good == 10
    assert whole >= STREAMS - shares[victim]
