"""One model over several processes: the same answers as from one, and what happens when one of them is killed.

Its commands are those of docs/cluster.md.
"""

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import attrs
import pytest
from models import tiny_models
from models.answers import oracle
from models.cached_models import put
from serving.program import CHAT, ServedProgram
from serving.running import eventually

from mlxk.domain.models.footprint import RESERVE_BYTES

pytestmark = [pytest.mark.e2e, pytest.mark.mlx]

NAME = "spread"
PROMPTS = [f"{word} and count" for word in ("How", "Why", "Where is", "Who", "When", "What", "Is", "Are")]
LOST_SECONDS = 3.0
"""Within which every client has an answer or an error."""
NEXT_SECONDS = 10.0 * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
"""Within which the next request is answered: ten on a machine that does nothing else."""


Faults = Callable[[str, Any], list[str]]


@attrs.frozen
class Pair:
    """The same model served by one process and by two."""

    one: ServedProgram
    two: ServedProgram
    ends: tuple[int, ...]
    """The tokens that end answers."""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Start both servers."""
    folder = tmp_path_factory.mktemp("ranks")
    handle = tiny_models.build(folder / NAME, "llama")
    ends = json.loads((folder / NAME / "generation_config.json").read_text())["eos_token_id"]
    environment = {
        "HOME": str(folder / "home"),
        "HF_HOME": str(folder / "hf"),
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.environ["PYTHONPATH"],
        "MLXK2_BLAS": "off",
    }
    with ThreadPoolExecutor() as threads:
        starts = [
            threads.submit(ServedProgram, folder, environment, "--model", handle.directory, "--local-ranks", str(ranks))
            for ranks in (1, 2)
        ]
        one, two = (each.result() for each in starts)
    with one, two:
        yield Pair(one, two, tuple(ends))


def question(prompt: str, **fields: Any) -> dict[str, Any]:
    """Return a request for an answer of some length."""
    given = {"max_tokens": 20, "temperature": 0, **fields}
    return {"model": NAME, "messages": [{"role": "user", "content": prompt}], **given}


def answer(server: ServedProgram, prompt: str, **fields: Any) -> dict[str, Any]:
    """Ask, and return the answer without what differs from one to the next."""
    status, body = server.ask("POST", CHAT, question(prompt, **fields))
    assert status == 200, body
    (choice,) = body["choices"]
    return {**choice, "tokens": body["usage"]["completion_tokens"]}


def without_figures(choice: dict[str, Any]) -> dict[str, Any]:
    """Return a choice without the log probabilities, whose last digits depend on the order of sums."""
    return {key: value for key, value in choice.items() if key != "logprobs"}


def logprobs(choice: dict[str, Any]) -> list[float]:
    """Return the log probabilities of a choice."""
    return [each["logprob"] for each in choice["logprobs"]["content"]]


def test_eight_answers_at_once_are_those_of_one_process(pair: Pair) -> None:
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(lambda prompt: answer(pair.two, prompt), PROMPTS))
    assert together == [answer(pair.one, prompt) for prompt in PROMPTS]
    assert len({each["message"]["content"] for each in together}) > 1


def test_what_rank_0_decides_is_as_with_one_process(pair: Pair) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "boolean"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    kinds: list[dict[str, Any]] = [
        {"temperature": 1.0, "seed": 7},
        {"stop": ["e"]},
        {"logprobs": True, "top_logprobs": 2},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}},
    ]
    for fields in kinds:
        one, two = answer(pair.one, "Hello", **fields), answer(pair.two, "Hello", **fields)
        assert without_figures(two) == without_figures(one)
        if "logprobs" in fields:
            assert logprobs(two) == pytest.approx(logprobs(one), abs=1e-3)


def test_a_prompt_that_begins_as_one_before_is_not_computed_again(pair: Pair) -> None:
    long = "the quick brown fox " * 10
    first = answer(pair.two, long)
    status, body = pair.two.ask("POST", CHAT, question(long))
    assert (status, body["choices"][0]["message"]) == (200, first["message"])
    assert body["usage"]["prompt_tokens_details"]["cached_tokens"] > 40
    assert answer(pair.two, long + "jumps") == answer(pair.one, long + "jumps")


def endless(pair: Pair, prompt: str) -> dict[str, Any]:
    """Return a request whose answer does not end soon."""
    return question(prompt, max_tokens=3000, stream=True, logit_bias={str(token): -100 for token in pair.ends})


def begun(pair: Pair, prompt: str) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    """Begin an endless answer, and wait for its first bytes."""
    connection = http.client.HTTPConnection("127.0.0.1", pair.two.port, timeout=30)
    connection.request("POST", CHAT, json.dumps(endless(pair, prompt)), {"Content-Type": "application/json"})
    response = connection.getresponse()
    assert response.status == 200
    assert response.read(200)
    return connection, response


def running(server: ServedProgram) -> int:
    """Return how many answers are computed."""
    lines = server.ask("GET", "/metrics")[1].decode().splitlines()
    return int(next(line for line in lines if line.startswith("mlxk_answers_running ")).split()[1])


def test_a_client_that_leaves_ends_its_answer_and_no_other(pair: Pair) -> None:
    connections = [begun(pair, prompt) for prompt in PROMPTS[:2]]
    for connection, response in connections:
        response.close()
        connection.close()
    assert answer(pair.two, "Hello") == answer(pair.one, "Hello")
    eventually(lambda: running(pair.two) == 0)


def test_another_model_is_refused_by_name(pair: Pair) -> None:
    status, body = pair.two.ask("POST", CHAT, {**question("Hello"), "model": "demo"})
    assert (status, body["error"]["type"]) == (422, "capability_not_supported")
    assert NAME in body["error"]["message"]


def rank_process(server: ServedProgram) -> int:
    """Return the process of rank 1."""
    worker = subprocess.run(["pgrep", "-P", str(server.process.pid)], capture_output=True, text=True, check=True)
    pattern = ["pgrep", "-P", worker.stdout.split()[-1], "-f", "mlxk.entrypoints.rank"]
    return int(subprocess.run(pattern, capture_output=True, text=True, check=True).stdout.split()[0])


def test_a_rank_that_is_killed_under_load(pair: Pair) -> None:
    first = rank_process(pair.two)
    connections = [begun(pair, prompt) for prompt in PROMPTS]
    os.kill(first, signal.SIGKILL)
    killed = time.monotonic()
    with ThreadPoolExecutor(8) as threads:
        bodies = list(threads.map(lambda each: each[1].read().decode(), connections))
    assert time.monotonic() - killed < LOST_SECONDS
    for connection, _ in connections:
        connection.close()
    for body in bodies:
        last = json.loads(body.strip().split("\n\n")[-1].removeprefix("data: "))
        assert last["error"]["type"] == "rank_lost", body[-300:]
    assert pair.two.ask("GET", "/readyz")[0] == 503
    while (asked := pair.two.ask("POST", CHAT, question("Hello")))[0] == 503:
        assert time.monotonic() - killed < NEXT_SECONDS
        time.sleep(0.1)
    assert asked[0] == 200
    assert time.monotonic() - killed < NEXT_SECONDS
    assert rank_process(pair.two) != first
    assert answer(pair.two, "Hello") == answer(pair.one, "Hello")


def run(folder: Path, environment: dict[str, str], *arguments: str) -> Any:
    """Return what ``mlxk run`` prints as JSON."""
    command = [sys.executable, "-m", "mlxk", "run", *arguments, "--json"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, cwd=folder, timeout=100
    )
    return json.loads(done.stdout)


HEADS = {"num_attention_heads": 6, "num_key_value_heads": 3, "hidden_size": 96, "intermediate_size": 96}


def test_three_processes_give_the_text_of_one(tmp_path: Path, program_environment: dict[str, str]) -> None:
    handle = tiny_models.build(tmp_path / "model", "qwen3", **HEADS)
    arguments = ["Hello", "--no-chat-template", "--temperature", "0", "--max-tokens", "24"]
    document = run(tmp_path, program_environment, "./model", *arguments, "--local-ranks", "3")
    assert document["status"] == "success", document
    assert document["data"]["response"] == b"".join(oracle(handle, "Hello")).decode(errors="replace")


@pytest.mark.parametrize(
    ("model", "arguments", "kind", "word"),
    [
        ("lfm2", [], "incompatible_model", "lfm2"),
        ("llama", ["--kv-bits", "8"], "capability_not_supported", "kv_bits"),
        ("llama", ["--server"], "usage_error", "--server"),
        ("llama", ["--adapter", "adapter"], "capability_not_supported", "is an adapter, and a model is spread"),
    ],
)
def test_what_cannot_be_spread_is_refused_by_name(
    model: str, arguments: list[str], kind: str, word: str, tmp_path: Path, program_environment: dict[str, str]
) -> None:
    handle = tiny_models.build(tmp_path / "model", model)
    if "--adapter" in arguments:
        tiny_models.write_adapter(tmp_path / "adapter", handle)
    document = run(tmp_path, program_environment, "./model", "Hello", "--local-ranks", "2", *arguments)
    assert document["error"]["type"] == kind
    assert word in document["error"]["message"]


SSH = """#!/bin/sh
while [ "$1" != two ]; do shift; done
shift
HF_HOME={hf} exec sh -c "$*"
"""


@attrs.frozen
class Hosts:
    """Two hosts of a file ``hosts.json``, this machine and one behind a stand-in for ssh, with a cache each."""

    folder: Path
    environment: dict[str, str]

    def becomes(self, home: str) -> None:
        """Give the second host the cache of a folder."""
        self.answers(SSH.format(hf=self.folder / home / "hf"))

    def answers(self, script: str) -> None:
        """Put a script in the place of ssh."""
        ssh = self.folder / "bin" / "ssh"
        ssh.write_text(script)
        ssh.chmod(0o755)


@pytest.fixture
def hosts(tmp_path: Path, program_environment: dict[str, str]) -> Hosts:
    """Make caches: of this machine, one with the same model, one with another of the same name, and an empty one."""
    handles = [tiny_models.build(tmp_path / str(seed), "llama", seed) for seed in (0, 1)]
    contents = [{file.name: file.read_bytes() for file in Path(each.directory).iterdir()} for each in handles]
    for home, files in (("home", 0), ("same", 0), ("other", 1)):
        put(tmp_path / home, "org/spread", contents[files])
    (tmp_path / "bin").mkdir()
    program_environment["PATH"] = f"{tmp_path / 'bin'}:{program_environment['PATH']}"
    program_environment["HF_HOME"] = str(tmp_path / "home" / "hf")
    entries = [{"ssh": name, "ips": ["127.0.0.1"]} for name in ("one", "two")]
    (tmp_path / "hosts.json").write_text(json.dumps(entries))
    return Hosts(tmp_path, program_environment)


def test_two_hosts_compute_what_one_does_and_must_have_the_same_files(hosts: Hosts) -> None:
    arguments = ["Hello", "--no-chat-template", "--temperature", "0", "--max-tokens", "24", "--hostfile", "hosts.json"]
    documents = []
    for home in ("same", "other"):
        hosts.becomes(home)
        documents.append(run(hosts.folder, hosts.environment, "org/spread", *arguments))
    expected = b"".join(oracle(tiny_models.build(hosts.folder / "again", "llama", 0), "Hello")).decode(errors="replace")
    assert documents[0]["data"]["response"] == expected, documents[0]
    assert documents[1]["error"]["type"] == "execution_error"
    assert documents[1]["error"]["message"] == "rank 1 on two has other files of 'org/spread' than this process."


def shown(hosts: Hosts, *arguments: str, model: str = "org/spread") -> str:
    """Return what ``mlxk show --hosts`` prints."""
    command = [sys.executable, "-m", "mlxk", "show", model, "--hosts", "hosts.json", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=hosts.environment, cwd=hosts.folder, timeout=100
    ).stdout


@pytest.mark.parametrize("home", ["same", "other", "empty"])
def test_show_says_what_fits_on_which_host_and_whether_the_files_are_the_same(
    home: str, hosts: Hosts, faults: Faults
) -> None:
    hosts.becomes(home)
    document = json.loads(shown(hosts, "--json"))
    assert faults("show", document) == []
    data = document["data"]
    files = [(each["host"], each["files"]) for each in data["hosts"]]
    assert files == [("one", "same"), ("two", "absent" if home == "empty" else home)]
    memory = data["memory"]
    config = json.loads((hosts.folder / "0" / "config.json").read_text())
    undivided = 4 * config["hidden_size"] * (config["vocab_size"] + 1)  # the embeddings and the last norm
    cache = memory["needed_bytes"] - memory["weights_bytes"] - RESERVE_BYTES
    saved = (memory["weights_bytes"] - undivided) // 2 + cache // 2
    for each in data["hosts"]:
        assert (each["problem"], each["fit"]) == (None, "fits")
        assert each["budget_bytes"] == memory["budget_bytes"]
        assert each["needed_bytes"] == memory["needed_bytes"] - saved
    assert data["cut"] == {"kind": "tensor", "reason": None}


def test_a_host_that_does_not_answer_is_shown_with_what_ssh_said(hosts: Hosts, faults: Faults) -> None:
    hosts.answers('#!/bin/sh\necho "$@" > asked\necho "ssh: No route to host" >&2\nexit 255\n')
    document = json.loads(shown(hosts, "--json"))
    assert faults("show", document) == []
    one, two = document["data"]["hosts"]
    assert (one["fit"], one["files"]) == ("fits", "same")
    assert (two["fit"], two["files"], two["problem"]) == ("unknown", "unknown", "ssh: No route to host")
    assert (hosts.folder / "asked").read_text().startswith("-T -o BatchMode=yes two ")
    table = shown(hosts).partition("Hosts:")[2].splitlines()
    assert [line.split(" | ")[0].strip() for line in table[3:5]] == ["one", "two"]
    assert table[4].endswith("| unknown | unknown | ssh: No route to host")
    assert table[5] == "Division: every layer is cut (tensor parallel)"


def test_a_host_with_another_version_is_shown_with_it(hosts: Hosts) -> None:
    line = SSH.format(hf=hosts.folder / "same" / "hf").replace("exec ", "")
    hosts.answers(line.replace('"$*"', """"$*" | sed -u 's/"mlx-lm": "[^"]*"/"mlx-lm": "0.1"/'"""))
    one, two = json.loads(shown(hosts, "--json"))["data"]["hosts"]
    assert (one["problem"], two["files"]) == (None, "same")
    assert two["problem"] == f"it has mlx-lm 0.1, and the first host {version('mlx-lm')}"


def test_show_says_why_a_model_cannot_be_divided(hosts: Hosts) -> None:
    tiny_models.build(hosts.folder / "uneven", "lfm2")
    hosts.becomes("same")
    data = json.loads(shown(hosts, "--json", model="./uneven"))["data"]
    assert data["cut"]["kind"] is None
    assert "there is no way to divide 'lfm2'" in data["cut"]["reason"]
    assert [each["files"] for each in data["hosts"]] == ["same", "same"]  # the path is the same one


def test_an_adapter_is_not_spread_and_its_remedy_is_named(hosts: Hosts) -> None:
    tiny_models.write_adapter(hosts.folder / "adapter", tiny_models.build(hosts.folder / "model", "llama"))
    error = json.loads(shown(hosts, "--json", model="./adapter"))["error"]
    assert error["type"] == "capability_not_supported"
    assert f"mlxk fuse {hosts.folder / 'adapter'} --into NAME" in error["hint"]


def test_layers_are_distributed_where_heads_cannot_be(hosts: Hosts) -> None:
    tiny_models.build(hosts.folder / "layers", "qwen2", num_hidden_layers=3)
    names = ("one", "two", "localhost")
    (hosts.folder / "hosts.json").write_text(json.dumps([{"ssh": name, "ips": ["127.0.0.1"]} for name in names]))
    hosts.becomes("same")
    data = json.loads(shown(hosts, "--json", model="./layers"))["data"]
    assert data["cut"] == {"kind": "pipeline", "reason": None}
    assert [(each["host"], each["files"]) for each in data["hosts"]] == [(name, "same") for name in names]


@pytest.mark.parametrize("flag", [["--remote"], ["--files"], ["--config"], ["--format-report"], ["--kv-bits", "8"]])
def test_hosts_are_not_asked_for_other_sections(flag: list[str], hosts: Hosts) -> None:
    error = json.loads(shown(hosts, "--json", *flag))["error"]
    assert (error["type"], error["message"]) == ("usage_error", f"--hosts and {flag[0]} exclude each other")


def test_a_file_of_hosts_that_is_wrong_names_its_entry(hosts: Hosts) -> None:
    (hosts.folder / "hosts.json").write_text('[{"ssh": "one", "ips": ["127.0.0.1"]}, {"ssh": "-oProxy", "ips": []}]')
    error = json.loads(shown(hosts, "--json"))["error"]
    assert error["type"] == "validation_error"
    assert error["message"].startswith("--hosts: hosts.json: host 2: ssh must be a name for ssh")
