"""``mlxk bench --against``: two sides in turns, of which one wins only where the rounds support it."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pexpect
import pytest
from doubles.clock import InMemoryClock
from doubles.completion_client import InMemoryCompletionClient
from doubles.installation_probe import InMemoryInstallationProbe
from doubles.machine_meter import InMemoryMachineMeter
from doubles.memory_probe import InMemoryMemoryProbe
from serving.fake_ollama import FakeOllama
from serving.program import ServedProgram

from mlxk.adapters.builtin.lists import model_pairs
from mlxk.application.ports.measuring import CompletionServer, RemoteRequest
from mlxk.application.use_cases.measure_servers import CompareSpeed
from mlxk.application.use_cases.measure_speed import MachineReader
from mlxk.domain.benchmark import Machine, Processor, RemoteCompletion
from mlxk.domain.comparison import Answer, Comparison, SideResult, Turn
from mlxk.domain.diagnosis import PlatformFacts
from mlxk.domain.errors import NetworkError, ValidationError
from mlxk.entrypoints.cli.render.comparison import comparison_markdown, comparison_text

Command = Callable[..., dict[str, Any]]
Program = Callable[..., Any]

pytestmark = pytest.mark.mlx

TINY = {"tiny:latest": 10**8}
STEP = 0.003
"""Time of a token; what a machine in use adds to it is little beside."""


def differences(data: dict[str, Any]) -> dict[str, str]:
    """Return what was said of each figure."""
    return {each["figure"]: each["difference"] for each in data["figures"]}


def test_a_server_is_measured_beside_itself(command: Command) -> None:
    """What a server's own times say of it, a machine in use decides; that no time is no difference, the test below."""
    with FakeOllama(TINY, STEP) as server:
        data = command("bench", "--url", server.url, "tiny", "--against", f"{server.url}#tiny", "-n", "12")["data"]
        prompts = [each["messages"][0]["content"] for each in server.asked]
    assert {"better": "B", "worse": "A", "none": None}[differences(data)["speed"]] == data["winner"]
    assert differences(data)["memory"] == "none"
    assert [len(side["rounds"]) for side in data["sides"]] == [6, 6]
    assert len(set(prompts)) == len(prompts) == 2 * 7 * 4
    assert {prompt.partition(". ")[2] for prompt in prompts} == {"Say a few words.", *data["questions"]}


@pytest.mark.parametrize("slow", ["A", "B"])
def test_a_server_that_was_slowed_down_loses_on_either_side(mlxk: Program, tmp_path: Path, slow: str) -> None:
    """A machine in use stops a side for a moment, which must not put it behind in a single round."""
    with FakeOllama(TINY, STEP) as fast, FakeOllama(TINY, 30 * STEP) as slowed:
        one, other = (slowed, fast) if slow == "A" else (fast, slowed)
        sides = ("--url", one.url, "tiny", "--against", f"{other.url}/api/chat#tiny")
        done = mlxk("bench", *sides, "-n", "4", "--prompt", "Count.", "--results", "found.json")
    winner = "B" if slow == "A" else "A"
    assert done.returncode == 0, done.stderr
    assert f"Winner: {winner}, ahead in tokens/s in " in done.stdout
    data = json.loads((tmp_path / "found.json").read_text())
    assert data["winner"] == winner
    assert differences(data)["speed"] == ("better" if winner == "B" else "worse")
    assert data["questions"] == ["Count."]
    assert "Measuring round 6, A" in done.stderr


def test_a_model_here_is_compared_with_one_of_ollama(mlxk: Program, tmp_path: Path) -> None:
    with FakeOllama(TINY, 0.02, load_seconds=0.05) as server:  # apart, so that a busy machine reads them one by one
        server.answer = "**word**"
        few = ("-n", "6", "-r", "2", "--prompt", "What is mlxk?")
        done = mlxk("bench", "demo", "--against", server.url, *few)
        assert done.returncode == 0, done.stderr
        marked = mlxk("bench", "demo", "--against", f"{server.url}#tiny", *few, "--markdown").stdout
        assert server.loaded == set()
    assert done.stdout.startswith(f"A: demo on this machine\nB: tiny:latest at {server.url}\n")
    cells = [[cell.strip() for cell in line.split("|")] for line in done.stdout.splitlines() if " | " in line]
    assert [row[0] for row in cells[:6]] == ["figure", "tokens/s", "first token", "load", "total", "memory"]
    assert {row[-1] for row in cells[1:6]} == {"too few rounds"}
    # What the model answers may depend on the number before the question.
    assert any(re.fullmatch(r"A \(\d tokens?\)", row[0]) and row[1] == "B (6 tokens)" for row in cells)
    assert "No winner: too few rounds." in done.stdout
    assert "| tokens/s | " in marked
    assert re.search(r"### What is mlxk\?\n\nA \(\d tokens?\):\n\n    ", marked)
    data = json.loads((tmp_path / "benchmark_results.json").read_text())
    here, there = (side["rounds"][0] for side in data["sides"])
    for turn in (here, there):
        assert turn["load_seconds"] > 0
        assert turn["memory_bytes"] > 10**6
        assert turn["total_seconds"] == pytest.approx(turn["load_seconds"] + turn["answer_seconds"], abs=1e-5)
    assert there["load_seconds"] >= 0.05
    assert there["answers"] == [{"text": "**word** " * 6, "tokens": 6}]
    assert str(tmp_path) not in done.stdout + json.dumps(data)


def test_our_server_is_compared_with_itself_by_its_two_apis(
    command: Command, program_environment: dict[str, str], tmp_path: Path
) -> None:
    with ServedProgram(tmp_path, program_environment) as server:
        url = f"http://127.0.0.1:{server.port}"
        sides = ("--url", url, "demo", "--against", f"{url}/api#demo")
        data = command("bench", *sides, "-n", "8", "-r", "2", "--prompt", "Hi")["data"]
    openai, ollama = (side["rounds"][0] for side in data["sides"])
    assert (openai["load_seconds"], openai["memory_bytes"]) == (None, None)
    assert ollama["load_seconds"] > 0
    for answer in (*openai["answers"], *ollama["answers"]):
        assert answer["text"]
        assert 0 < answer["tokens"] <= 8
    assert set(differences(data)) == {"speed", "first_token", "duration"}
    totals = next(each for each in data["figures"] if each["figure"] == "duration")
    for side, name in zip(data["sides"], ("a", "b"), strict=True):
        answers = [each["answer_seconds"] for each in side["rounds"]]
        assert totals[name]["median"] == pytest.approx(sum(answers) / 2, abs=1e-5)
    assert any("The server of A cannot be told to load" in note for note in data["notes"])


def test_a_model_that_ollama_lacks_is_fetched_only_if_the_user_says_so(mlxk: Program, command: Command) -> None:
    few = ("-n", "4", "-r", "1", "--prompt", "Hi")
    with FakeOllama(TINY) as server:
        sides = ("--url", server.url, "tiny", "--against", f"{server.url}#llama3.2:1b", *few)
        for flags in ((), ("--skip-pull",)):
            error = command("bench", *sides, *flags)["error"]
            assert error["type"] == "model_not_found"
            assert error["message"] == f"the server {server.url} has no model 'llama3.2:1b'"
            assert "--pull" in error["hint"]
        assert (server.pulled, server.asked) == ([], [])
        assert command("bench", *sides, "--pull")["data"]["sides"][1]["model_id"] == "llama3.2:1b"
        assert server.pulled == ["llama3.2:1b"]
        assert command("bench", *sides, "--pull")["data"]
        assert server.pulled == ["llama3.2:1b"]
        absent = ("--url", server.url, "tiny", "--against", f"{server.url}#nosuch", "--pull")
        assert "does not fetch 'nosuch': pull model manifest" in command("bench", *absent)["error"]["message"]


@pytest.mark.parametrize(("answer", "status"), [("y", 0), ("n", 1)])
def test_on_a_terminal_the_user_is_asked(
    program_environment: dict[str, str], tmp_path: Path, answer: str, status: int
) -> None:
    with FakeOllama(TINY) as server:
        sides = ["--url", server.url, "tiny", "--against", f"{server.url}#other:1b", "-r", "1", "-n", "4"]
        program = pexpect.spawn(
            sys.executable,
            ["-m", "mlxk", "bench", *sides],
            env=program_environment,
            cwd=str(tmp_path),
            encoding="utf-8",
        )
        program.expect_exact("Have it fetch the model? [y/N]: ", timeout=60)
        program.sendline(answer)
        program.expect(pexpect.EOF, timeout=60)
        program.close()
        assert program.exitstatus == status
        assert server.pulled == (["other:1b"] if answer == "y" else [])


def test_ollama_is_found_at_its_usual_port_and_its_model_by_ours(mlxk: Program, command: Command) -> None:
    try:
        server = FakeOllama({"llama3.2:1b": 10**9}, port=11434)
    except OSError:
        pytest.skip("something else listens at the port of Ollama")
    with server:
        data = command("bench", "demo", "--against", "ollama:llama3.2:1b", "-n", "4", "-r", "1", "--prompt", "Hi")[
            "data"
        ]
        assert data["sides"][1] | {"rounds": []} == {
            **{"name": "B", "model_id": "llama3.2:1b", "server": server.url, "rounds": []}
        }
        error = command("bench", "--against", "ollama:llama3.2:1b", "--skip-pull")["error"]
        assert error["type"] == "model_not_found"
        assert "mlx-community/Llama-3.2-1B-Instruct-4bit" in error["message"] + error["hint"]
        assert server.asked


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--against", "ollama"), "validation_error", "no model is named"),
        (("demo", "--against", "ollama"), "validation_error", "which model is the same as 'demo'"),
        (("--against", "ollama:other:1b"), "validation_error", "which model is the same as 'other:1b'"),
        (("demo", "--against", "olama:x"), "usage_error", "--against takes an address"),
        (("demo", "--against", "http://127.0.0.1:1#x"), "network_error", "'x' at http://127.0.0.1:1 does not answer"),
        (("demo", "--against", "http://127.0.0.1:1"), "network_error", "cannot be asked: Connection refused"),
        (("nosuch", "--against", "http://127.0.0.1:1#x", "--skip-pull"), "model_not_found", "nosuch"),
        (("demo", "--against", "http://127.0.0.1:1#x", "--streams", "2"), "usage_error", "--streams has no meaning"),
        (("demo", "--against", "http://127.0.0.1:1#x", "-n", "4,8"), "usage_error", "one number for --generate"),
        (("demo", "--against", "http://127.0.0.1:1#x", "--pull", "--skip-pull"), "usage_error", "exclude each other"),
        (("demo", "--against", "http://127.0.0.1:1#x", "--results", "no/such"), "storage_error", "'no/such' cannot be"),
        (("demo", "--prompt", "Hi"), "usage_error", "--prompt goes with --against"),
        (("demo-speech", "--against", "http://127.0.0.1:1#x"), "capability_not_supported", "demo-speech"),
    ],
)
def test_what_cannot_be_compared_is_refused_by_name(
    command: Command, arguments: tuple[str, ...], code: str, said: str, tmp_path: Path
) -> None:
    error = command("bench", *arguments)["error"]
    assert (error["type"], said in error["message"]) == (code, True), error
    assert not (tmp_path / "benchmark_results.json").exists()


def compare_speed() -> CompareSpeed:
    """Return the use case with a server in memory, and without models of this machine."""
    probe = InMemoryInstallationProbe(PlatformFacts("linux", "Linux 6", "x86_64", (3, 11, 0)))
    machine = MachineReader(probe, InMemoryMemoryProbe(), InMemoryMachineMeter())
    absent: Any = None
    return CompareSpeed(machine, InMemoryCompletionClient(("m",)), InMemoryClock(), absent, absent, model_pairs())


def test_a_side_that_does_not_count_tokens_has_no_speed_and_one_that_fails_is_named() -> None:
    compare = compare_speed()
    assert isinstance(compare.client, InMemoryCompletionClient)
    side = compare.remote(CompletionServer("http://127.0.0.1"), None)
    asked = (side, side, ["Hi"], 8, 6, lambda *_: None)
    assert {each.figure.value: each.difference.value for each in compare(*asked).contests} == {
        **{"speed": "none", "first_token": "none", "load": "none", "duration": "none", "memory": "none"}
    }
    compare.client.counts_tokens = False
    found = compare(*asked)
    assert "speed" not in {each.figure.value for each in found.contests}
    assert "No winner: a side does not count its tokens, or sends" in comparison_text(found, None)
    compare.client.status = 503
    with pytest.raises(NetworkError, match="HTTP 503"):
        compare(*asked)


MACHINE = Machine("Linux 6", "x86_64", Processor("Chip", 2), 16 * 10**9, True, None, None, ())


def compared(first: tuple[float, ...], second: tuple[float, ...]) -> Comparison:
    """Return a comparison by the tokens per second of each round."""
    sides = (("*own*", first, "one\n| two"), ("other", second, "three"))
    one, other = (
        SideResult(name, server, tuple(Turn(None, 0.5, speed, 2.0, None, (Answer(text, 2),)) for speed in speeds))
        for (name, speeds, text), server in zip(sides, (None, "http://a"), strict=True)
    )
    return Comparison(MACHINE, ("What | is it?",), one, other, ("Both were warm.",))


STEADY = (10.0, 10.1, 9.9, 10.0, 10.1, 9.9)


@pytest.mark.parametrize(
    ("first", "second", "verdict"),
    [
        (STEADY[:5], STEADY[:5], "No winner: too few rounds."),
        (STEADY, STEADY, "No difference in tokens/s that the rounds support."),
        (STEADY, tuple(2 * x for x in STEADY), "Winner: B, ahead in tokens/s in 6 of 6 rounds; B beside A: +100.0 %."),
        (tuple(2 * x for x in STEADY), STEADY, "Winner: A, ahead in tokens/s in 6 of 6 rounds; B beside A: -50.0 %."),
        ((10.0,) * 9 + (40.0,), (20.0,) * 10, "Winner: B, ahead in tokens/s in 9 of 10 rounds; B beside A: +100.0 %."),
    ],
)
def test_a_side_wins_only_where_the_rounds_show_it(
    first: tuple[float, ...], second: tuple[float, ...], verdict: str
) -> None:
    for shown in (comparison_text(compared(first, second), None), comparison_markdown(compared(first, second))):
        assert f"\n\n{verdict}\n" in shown


def test_a_comparison_in_markdown_has_facts_a_table_and_the_answers_of_each_side() -> None:
    assert comparison_markdown(compared(STEADY, STEADY)).splitlines() == [
        "- A: *own* on this machine",
        "- B: other at http://a",
        "- Measured on: Linux 6, x86_64, Chip, 2 cores, 16.0GB of memory",
        "- Asked: 1 question in each of 6 rounds; the sides begin in turns",
        "",
        "| figure | A | B | B beside A | ahead A : B | difference |",
        "|---|---|---|---|---|---|",
        "| tokens/s | 10.0 tokens/s (9.9 to 10.1) | 10.0 tokens/s (9.9 to 10.1) | +0.0 % | 0 : 0 | no difference |",
        "| first token | 500.0 ms | 500.0 ms | +0.0 % | 0 : 0 | no difference |",
        "| total | 2.00 s | 2.00 s | +0.0 % | 0 : 0 | no difference |",
        "",
        "No difference in tokens/s that the rounds support.",
        "",
        "- Both were warm.",
        "",
        "### What \\| is it?",
        "",
        "A (2 tokens):",
        "",
        "    one",
        "    | two",
        "",
        "B (2 tokens):",
        "",
        "    three",
    ]


def test_sides_whose_answers_differ_in_length_are_compared_by_the_token() -> None:
    class Brief(InMemoryCompletionClient):
        """Stops after a part of the tokens."""

        least = 20

        def complete(self, server: CompletionServer, request: RemoteRequest) -> RemoteCompletion:
            done = super().complete(server, request)
            return attrs.evolve(done, completion_tokens=self.least) if server.url.endswith("b") else done

    client = Brief(("m",))
    compare = attrs.evolve(compare_speed(), client=client)
    one, other = (compare.remote(CompletionServer(f"http://127.0.0.1/{name}"), None) for name in "ab")
    note = "All answers of A have 120 tokens, those of B 102: compare tokens/s rather than totals."
    for client.least, notes in ((17, [note]), (18, []), (20, [])):
        found = compare(one, other, ["Hi"], 20, 6, lambda *_: None)
        assert [each for each in found.notes if "compare tokens/s" in each] == notes


@pytest.mark.parametrize("pair", model_pairs(), ids=lambda pair: pair.elsewhere)
def test_a_known_pair_needs_one_name(pair: Any) -> None:
    paired = compare_speed().paired
    assert paired(None, pair.elsewhere, must_name=True) == (pair.here, pair.elsewhere)
    assert paired(pair.here, None, must_name=True) == (pair.here, pair.elsewhere)
    short = pair.here.rpartition("/")[2].lower()
    assert paired(short, None, must_name=True) == (short, pair.elsewhere)
    assert paired(pair.here, "other", must_name=True) == (pair.here, "other")
    assert paired(pair.here, None, must_name=False) == (pair.here, None)
    with pytest.raises(ValidationError) as unknown:
        paired("my-own", None, must_name=True)
    assert f"{pair.here} = {pair.elsewhere}" in unknown.value.matches
