"""``mlxk bench`` on a model of this machine, and on servers: ours, and one that behaves otherwise."""

import datetime
import json
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import ollama
import pytest
from doubles.clock import InMemoryClock
from doubles.completion_client import InMemoryCompletionClient
from doubles.installation_probe import InMemoryInstallationProbe
from doubles.machine_meter import InMemoryMachineMeter
from doubles.memory_probe import InMemoryMemoryProbe
from models.tiny_embedding import build_bert
from serving.fake_ollama import FakeOllama
from serving.program import ServedProgram
from typed_commands import BUILT_IN

from mlxk.application.ports.measuring import CompletionServer, RemoteRequest
from mlxk.application.use_cases.measure_servers import MeasureServer
from mlxk.application.use_cases.measure_speed import MachineReader
from mlxk.domain.benchmark import Load, RemoteCompletion
from mlxk.domain.diagnosis import PlatformFacts
from mlxk.domain.errors import ExecutionError, NetworkError
from mlxk.domain.speed import ServerSpeed
from mlxk.entrypoints.cli.render.benchmark_reports import report_lines

Command = Callable[..., dict[str, Any]]
Program = Callable[..., Any]

pytestmark = pytest.mark.mlx
SMALL = ("-p", "8", "-n", "4", "-r", "2")


@pytest.fixture
def served(program_environment: dict[str, str], tmp_path: Path) -> Iterator[ServedProgram]:
    (tmp_path / "keys").write_text("sesame\n")
    (tmp_path / "keys").chmod(0o600)
    with ServedProgram(tmp_path, program_environment, "--api-key-file", "keys") as server:
        yield server


def test_a_model_is_measured_by_prompts_generation_and_streams(command: Command) -> None:
    data = command("bench", "demo", *SMALL, "--streams", "1,2", "--depth", "0,16")["data"]
    names = ["pp8", "pp8", "tg4", "tg4", "tg4 @ d16", "tg4 @ d16"]
    assert [row["test"] for row in data["rows"]] == names
    assert [row["streams"] for row in data["rows"]] == [1, 2] * 3
    for row in data["rows"]:
        assert row["repeats"] == 2
        assert 0 < row["tokens_per_second"]["least"] <= row["tokens_per_second"]["median"]
        assert row["first_token_seconds"]["median"] > 0
    assert data["load_seconds"] > 0
    assert 10**6 < data["peak_memory"]["array_bytes"] < data["peak_memory"]["process_bytes"]
    assert (data["model"], data["server"], data["levels"]) == ("demo", None, [])
    noisy = ", ".join(dict.fromkeys(row["test"] for row in data["rows"] if row["noisy"]))
    said = [note for note in data["notes"] if "lie far apart" in note]
    assert said == [f"The repeats of {noisy} lie far apart: repeat the measurement on an idle machine."] * bool(noisy)
    assert {"mlxk", "python", "mlx"} <= {each["name"] for each in data["versions"]}


def test_the_text_shows_the_rows_and_nothing_of_the_user(mlxk_here: Program, tmp_path: Path) -> None:
    shutil.copytree(BUILT_IN / "demo", tmp_path / "own")
    (tmp_path / "runs.jsonl").write_text('{"earlier": true}\n')
    done = mlxk_here("bench", "-m", "./own", *SMALL, "--report", "runs.jsonl")
    assert done.returncode == 0, done.stderr
    assert [line.split("|")[0].strip() for line in done.stdout.splitlines() if " | " in line] == ["test", "pp8", "tg4"]
    assert done.stdout.startswith("Model: own\n")
    assert "Measuring tg4 (" in done.stderr
    assert str(tmp_path) not in done.stdout
    earlier, prompts, generated = map(json.loads, (tmp_path / "runs.jsonl").read_text().splitlines())
    assert earlier == {"earlier": True}
    assert (prompts["test"], generated["test"]) == ("bench::pp8[streams=1]", "bench::tg4[streams=1]")
    for record in (prompts, generated):
        assert (record["schema_version"], record["outcome"], record["model"]["id"]) == ("0.2.2", "passed", "own")
        assert datetime.datetime.fromisoformat(record["timestamp"]).utcoffset() == datetime.timedelta(0)
        assert None not in record["performance"].values()
        assert record["performance"]["tokens_per_sec"] == record["metadata"]["tokens_per_second"]["median"]
        assert {"model_load_time_s", "time_to_first_token_s", "peak_ram_gb"} <= record["performance"].keys()
        assert str(tmp_path) not in json.dumps(record)


def test_a_model_for_images_is_measured_by_images_too(command: Command, mlxk_here: Program, tmp_path: Path) -> None:
    data = command("bench", "demo-vision", *SMALL, "--image-size", "32,64")["data"]
    assert [row["test"] for row in data["rows"]] == ["pp8", "tg4"]
    assert [(task["test"], task["unit"], task["amount"]) for task in data["tasks"]] == [
        *[("image32", "images", 1), ("image64", "images", 1)]
    ]
    for task in data["tasks"]:
        assert task["repeats"] == 2
        assert task["per_second"]["most"] == pytest.approx(1 / task["seconds"]["least"], rel=1e-3)
    done = mlxk_here(
        "bench", "demo-vision", "-p", "0", "-n", "0", "-r", "3", "--image-size", "32", "--report", "a.jsonl"
    )
    cells = [[cell.strip() for cell in line.split("|")] for line in done.stdout.splitlines() if " | " in line]
    assert [row[0] for row in cells] == ["test", "image32"]
    assert cells[1][1].endswith(" images/s")
    record = json.loads((tmp_path / "a.jsonl").read_text())
    assert (record["test"], record["metadata"]["inference_modality"]) == ("bench::image32", "vision")
    assert "images/s" in mlxk_here("bench", "report", "a.jsonl").stdout


def test_a_model_for_speech_is_measured_by_seconds_of_sound(
    command: Command, mlxk_here: Program, tmp_path: Path
) -> None:
    data = command("bench", "demo-speech", "-r", "1")["data"]
    assert (data["rows"], data["load_seconds"], data["levels"]) == ([], None, [])
    (task,) = data["tasks"]
    assert (task["test"], task["unit"], task["amount"]) == ("sound30", "s of sound", 30.0)
    assert task["per_second"]["median"] == pytest.approx(30 / task["seconds"]["median"], rel=1e-3)
    own = str(BUILT_IN / "demo-speech" / "hello.wav")
    done = mlxk_here("bench", "demo-speech", "--audio", own, "-r", "1", "--markdown", "--report", "a.jsonl")
    assert "| sound1 | " in done.stdout
    assert " s of sound/s | " in done.stdout
    (line,) = map(json.loads, (tmp_path / "a.jsonl").read_text().splitlines())
    assert line["metadata"]["inference_modality"] == "audio"
    assert own not in done.stdout + json.dumps(line)


def test_a_model_for_embeddings_is_measured_by_texts(command: Command, tmp_path: Path) -> None:
    build_bert(tmp_path / "bert")
    small = ("bench", "./bert", "-p", "8,16", "--streams", "1,4", "-r", "2")
    assert "MLXK2_ENABLE_ALPHA_FEATURES=1" in command(*small)["error"]["message"]
    data = command(*small, MLXK2_ENABLE_ALPHA_FEATURES="1")["data"]
    assert [(task["test"], task["amount"]) for task in data["tasks"]] == [
        *[("embed8", 1), ("embed8 x4", 4), ("embed16", 1), ("embed16 x4", 4)]
    ]
    assert {task["unit"] for task in data["tasks"]} == {"texts"}
    assert data["peak_memory"]["array_bytes"] > 0
    long = command("bench", "./bert", "-p", "5000", MLXK2_ENABLE_ALPHA_FEATURES="1")["error"]
    assert (long["type"], long["hint"]) == ("context_length_exceeded", "Measure fewer tokens.")
    none = command("bench", "./bert", "-p", "0", MLXK2_ENABLE_ALPHA_FEATURES="1")["error"]
    assert none["message"] == "nothing to measure: --prompt-tokens is 0"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "required: MODEL"),
        (("demo", "-m", "other"), "two models"),
        (("demo", "-p", "0", "-n", "0"), "nothing to measure"),
        (("demo", "-n", "1"), "--generate takes 2"),
        (("demo", "-p", "many"), "'many' is no whole number"),
        (("demo", "--streams", "0"), "'0' is no whole number from 1 to 256"),
        (("demo", "--api-key-file", "keys"), "goes with --url"),
        (("demo", "-p", "5000"), "pp5000 takes 5001 tokens; the context window of 'demo' has 2048"),
        (("demo", "--image-size", "64"), "--image-size has no meaning: 'demo' takes no images"),
        (("demo", "--audio", "a.wav"), "--audio has no meaning: 'demo' is not for speech"),
        (("demo-speech", "-n", "4"), "--generate has no meaning: 'demo-speech' is for speech"),
        (("demo-speech", "--audio", "nosuch.wav"), "nosuch.wav"),
        (("demo-vision", "-p", "0", "-n", "0", "--image-size", "0"), "nothing to measure"),
        (("--url", "http://127.0.0.1:1", "--audio", "a.wav"), "--audio has no meaning for a server"),
        (("demo", "--report", "no/such/folder"), "'no/such/folder' cannot be written: No such file or directory"),
        (("--url", "127.0.0.1:8000"), "--url takes an address"),
        (("--url", "http://a:b@127.0.0.1:1"), "no user name and password"),
        (("--url", "http://127.0.0.1:1", "--depth", "8"), "--depth has no meaning for a server"),
        (("--url", "http://127.0.0.1:1", "--generate", "0"), "a server needs a prompt"),
        (("--url", "http://127.0.0.1:1", "--api-key-file", "nosuch"), "'nosuch' cannot be read"),
        (("demo", "--api", "ollama"), "--api goes with --url"),
        (("--url", "http://127.0.0.1:1", "--api", "grpc"), "'grpc' is not one of openai, ollama"),
        (("--url", "http://127.0.0.1:1"), "the server cannot be asked: Connection refused"),
        (("demo", "--url", "http://127.0.0.1:1"), "the server answers no request: Connection refused"),
    ],
)
def test_what_cannot_be_measured_is_refused_by_name(command: Command, arguments: tuple[str, ...], said: str) -> None:
    assert said in command("bench", *arguments)["error"]["message"]


def test_our_server_is_measured_at_several_levels(
    command: Command, mlxk: Program, served: ServedProgram, tmp_path: Path
) -> None:
    (tmp_path / "key").write_text("sesame\n")
    address = ("--url", f"http://127.0.0.1:{served.port}/v1/")
    data = command("bench", *address, "demo", "--api-key-file", "key", *SMALL, "--streams", "1,3")["data"]
    assert data["server"] == f"http://127.0.0.1:{served.port}"
    assert [(each["streams"], each["requests"], each["failed"]) for each in data["levels"]] == [(1, 2, 0), (3, 6, 0)]
    for level in data["levels"]:
        assert level["completion_tokens"] == 4 * level["requests"]
        assert level["prompt_tokens"] > 8 * level["requests"]
        assert 0 < level["first_token_seconds"]["p50"] <= level["end_to_end_seconds"]["p50"]
        assert level["inter_token_seconds"]["p99"] > 0
    assert "HTTP 401" in command("bench", *address, "demo", *SMALL)["error"]["message"]
    shown = ("--markdown", "--report", "levels.jsonl")
    marked = mlxk("bench", *address, "demo", "--api-key-file", "key", *SMALL, *shown).stdout
    header, _, row = (line.strip("| ").split("|") for line in marked.splitlines() if line.startswith("|"))
    assert [name.strip() for name in header[:4]] == ["streams", "prompt", "output", "requests"]
    assert [cell.strip() for cell in (row[0], *row[2:5])] == ["1", "4", "2", "0"]
    (line,) = (tmp_path / "levels.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert record["test"] == "bench::server[words=8,tokens=4,streams=1]"
    assert (record["outcome"], record["performance"]["completion_tokens"]) == ("passed", 8)
    assert "sesame" not in marked + line


def test_an_interruption_does_not_wait_for_a_silent_server(program_environment: dict[str, str]) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        silent.settimeout(60)
        words = ["bench", "--url", f"http://127.0.0.1:{silent.getsockname()[1]}", "m", "--streams", "2"]
        program = [sys.executable, "-m", "mlxk", *words]
        with subprocess.Popen(program, env=program_environment, stderr=subprocess.PIPE, text=True) as process:
            connections = [silent.accept()[0] for _ in range(2)]
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 130
            assert process.stderr is not None
            assert "Traceback" not in process.stderr.read()
            for each in connections:
                each.close()


def measured(client: InMemoryCompletionClient, model: str | None = None, *, load: float = 0.0) -> ServerSpeed:
    """Measure a server in memory."""
    probe = InMemoryInstallationProbe(PlatformFacts("linux", "Linux 6", "x86_64", (3, 11, 0)))
    machine = MachineReader(probe, InMemoryMemoryProbe(), InMemoryMachineMeter(load))
    measure = MeasureServer(machine, client, InMemoryClock())
    return measure(CompletionServer("http://127.0.0.1"), model, [Load(2, 5, 4), Load(1, 5, 4)], 3, lambda *_: None)


def test_requests_that_warm_up_do_not_count_and_no_prompt_begins_as_another() -> None:
    client = InMemoryCompletionClient(("only",))
    found = measured(client)
    assert (found.model, [each.requests for each in found.levels], found.notes) == ("only", [6, 3], ())
    assert len(client.asked) == 2 + 6 + 1 + 3
    assert len({each.prompt for each in client.asked}) == len(client.asked)
    assert {each.prompt for each in client.asked} & {each.prompt for each in again(client)} == set()


def test_a_report_has_a_line_for_each_level_of_a_server() -> None:
    client = InMemoryCompletionClient(("only",))
    found = measured(client)
    two, one = found.levels
    stumbling = attrs.evolve(found, levels=(two, attrs.evolve(one, failures=(("HTTP 503", 1),))))
    records = [json.loads(line) for line in report_lines(stumbling)]
    assert [(each["test"], each["outcome"]) for each in records] == [
        ("bench::server[words=5,tokens=4,streams=2]", "passed"),
        ("bench::server[words=5,tokens=4,streams=1]", "failed"),
    ]
    assert [each["model"] for each in records] == [{"id": "only"}] * 2
    assert two.tokens_per_second is not None
    assert records[0]["performance"] == {
        "tokens_per_sec": pytest.approx(two.tokens_per_second),
        "duration_s": pytest.approx(two.seconds),
        "prompt_tokens": two.prompt_tokens,
        "completion_tokens": 6 * 4,
        "time_to_first_token_s": 0.1,
    }
    assert (records[0]["metadata"]["inference_modality"], records[0]["metadata"]["streams"]) == ("text", 2)
    unknown = attrs.evolve(two, first_token_seconds=None, prompt_tokens=None)
    (record,) = map(json.loads, report_lines(attrs.evolve(found, levels=(unknown,))))
    assert record["performance"].keys() == {"tokens_per_sec", "duration_s", "completion_tokens"}


def again(client: InMemoryCompletionClient) -> list[Any]:
    """Measure once more, and return what was asked then."""
    before = len(client.asked)
    measured(client)
    return client.asked[before:]


def test_a_server_that_does_not_know_ignore_eos_is_asked_without_it() -> None:
    client = InMemoryCompletionClient(("m",), knows_ignore_eos=False)
    found = measured(client, "m")
    assert [each.failed for each in found.levels] == [0, 0]
    assert found.notes == ("The server does not take ignore_eos: its answers may end early.",)
    assert sum(each.ignore_eos for each in client.asked) == 2


def test_one_answer_is_enough_to_ask_without_ignore_eos_from_then_on() -> None:
    class LosesOne(InMemoryCompletionClient):
        """Fails at the first request that it would answer."""

        def complete(self, server: CompletionServer, request: RemoteRequest) -> RemoteCompletion:
            first = not request.ignore_eos and not any(not each.ignore_eos for each in self.asked)
            done = super().complete(server, request)
            return attrs.evolve(done, first_token=None, failure="closed", status=None) if first else done

    client = LosesOne(("m",), knows_ignore_eos=False)
    found = measured(client, "m")
    assert [each.failed for each in found.levels] == [0, 0]
    assert sum(each.ignore_eos for each in client.asked) == 2


def test_a_fault_of_the_program_in_one_of_many_requests_ends_the_measurement() -> None:
    class Faulty(InMemoryCompletionClient):
        """Has a fault in the requests that count."""

        def complete(self, server: CompletionServer, request: RemoteRequest) -> RemoteCompletion:
            if len(self.asked) >= 4:
                raise ArithmeticError("a fault of ours")
            return super().complete(server, request)

    client = Faulty(("m",))
    with pytest.raises(ArithmeticError, match="a fault of ours"):
        measured(client, "m")
    assert len(client.asked) <= 5  # two at once


def test_prompts_that_the_server_has_cut_are_noted() -> None:
    class Cutting(InMemoryCompletionClient):
        """Reads one token of each prompt."""

        def complete(self, server: CompletionServer, request: RemoteRequest) -> RemoteCompletion:
            return attrs.evolve(super().complete(server, request), prompt_tokens=1)

    said = "The server counts fewer tokens than the prompts have words: it has cut them."
    assert measured(Cutting(("m",))).notes == (said,)


def test_what_limits_the_figures_is_said() -> None:
    client = InMemoryCompletionClient(("m",))
    client.counts_tokens = False
    assert [note.partition(":")[0] for note in measured(client, load=0.5).notes] == [
        "Other programs loaded the cores to 50 % in the minute before",
        "The server does not say how many tokens it generated",
    ]
    client.counts_tokens, client.cached_tokens = True, 1
    assert measured(client).notes == ()
    client.cached_tokens = 3
    assert "from a cache" in measured(client).notes[0]


def test_a_server_with_several_models_or_without_answers_is_refused() -> None:
    with pytest.raises(ExecutionError) as several:
        measured(InMemoryCompletionClient(("b", "a")))
    assert several.value.matches == ("a", "b")
    with pytest.raises(NetworkError, match="HTTP 404"):
        measured(InMemoryCompletionClient(("m",)), "other")


def test_a_server_of_ollama_is_found_out_and_measured_by_its_own_counts(
    command: Command, mlxk_here: Program, tmp_path: Path
) -> None:
    with FakeOllama({"tiny:latest": 10**8}, step_seconds=0.004, load_seconds=0.25) as server:
        data = command("bench", "--url", server.url, "-p", "16", "-n", "8", "-r", "3", "--streams", "1,3")["data"]
        assert (data["model"], data["server"]) == ("tiny:latest", server.url)
        assert 0.25 <= data["load_seconds"] < 60
        assert [(each["requests"], each["failed"]) for each in data["levels"]] == [(3, 0), (9, 0)]
        for level in data["levels"]:
            assert (level["completion_tokens"], level["cached_tokens"]) == (8 * level["requests"], None)
            assert level["prompt_tokens"] == (16 + 14) * level["requests"]
            assert 0 < level["stated"]["tokens_per_second"] < 250
            assert level["inter_token_seconds"]["p50"] > 0
            assert level["end_to_end_seconds"]["p25"] > 8 * 0.004
        one, three = data["levels"]
        assert one["first_token_seconds"]["p25"] > 0.004
        assert three["first_token_seconds"]["p75"] > 8 * 0.004  # they wait for the answer of another
        assert len({each["messages"][0]["content"] for each in server.asked}) == len(server.asked) == 16
        server.longest = 2
        done = mlxk_here("bench", "--url", f"{server.url}/api/chat", "tiny", "-p", "16", "-n", "8", "-r", "1")
        assert "Note: Answers ended before the limit of 8 tokens, after 2 on average." in done.stdout
        assert "Load time, as the server says: " in done.stdout
        assert "server's own tokens/s prompt/output" in done.stdout
        long = command("bench", "--url", server.url, "tiny", "-p", "5000", "-n", "4", "-r", "1")["error"]["message"]
        assert long == "the server answers no request: HTTP 400: the input length exceeds the context length"
        wrong = command("bench", "--url", server.url, "other", "-r", "1")["error"]["message"]
        assert wrong == "the server answers no request: HTTP 404: model 'other' not found"
        as_openai = command("bench", "--url", server.url, "--api", "openai", "tiny", "-r", "1")["error"]["message"]
        assert "HTTP 404" in as_openai


def test_what_plays_ollama_here_is_read_by_its_real_client() -> None:
    with FakeOllama({"tiny:latest": 10**8}) as server:
        client = ollama.Client(host=server.url)
        assert [each.model for each in client.list().models] == ["tiny:latest"]
        *_, last = client.chat("tiny", [{"role": "user", "content": "a b"}], stream=True, options={"num_predict": 3})
        assert (last.prompt_eval_count, last.eval_count, last.done_reason) == (2, 3, "length")
        assert client.generate("tiny", "a b c", options={"num_predict": 1}, stream=True)
        assert [each.size_vram for each in client.ps().models] == [10**8]
        client.chat("tiny", [], keep_alive=0)
        assert client.ps().models == []
        assert [each.status for each in client.pull("other:1b", stream=True)][-1] == "success"


def test_our_server_is_measured_by_both_of_its_apis(
    command: Command, program_environment: dict[str, str], tmp_path: Path
) -> None:
    with ServedProgram(tmp_path, program_environment) as server:
        url = f"http://127.0.0.1:{server.port}"
        own, other = (
            command("bench", "--url", url, *api, "demo", *SMALL)["data"]["levels"][0]
            for api in ((), ("--api", "ollama"))
        )
        assert (own["stated"], own["cached_tokens"] is None) == (None, False)
        assert (other["failed"], other["cached_tokens"]) == (0, None)
        assert 0 < other["completion_tokens"] <= own["completion_tokens"]
        assert other["prompt_tokens"] > 8 * other["requests"]
        assert other["stated"]["prompt_tokens_per_second"] > 0
