"""``run`` beside a running server: the same words, statuses and JSON as without one, in a fraction of the time."""

import json
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest
from chatting import end, say, start
from dependency_injector import providers
from models.tiny_embedding import build_bert
from models.tiny_models import build as build_model
from serving.program import ServedProgram
from serving.running import eventually

from mlxk.entrypoints.container import Container, build
from mlxk.entrypoints.providers import DeferredTextGenerator
from mlxk.entrypoints.settings import Settings, read_settings

pytestmark = [pytest.mark.e2e, pytest.mark.mlx]
CALLS = 50


@attrs.frozen
class WarmServer:
    """A running server and the environment of its user."""

    program: ServedProgram
    environment: dict[str, str]
    folder: Path

    def metric(self, name: str) -> float:
        """Return the value of a metric."""
        lines = self.program.ask("GET", "/metrics")[1].decode().splitlines()
        return sum(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmServer]:
    """Serve, with the demo in memory."""
    folder = tmp_path_factory.mktemp("warm")
    environment = {
        "HOME": str(folder),
        "XDG_STATE_HOME": str(folder),
        "PATH": os.environ["PATH"],
        "MLXK2_BLAS": "off",  # this process has begun to compute without
        "MLX_DISABLE_COMPILE": "1",
        "HF_HUB_OFFLINE": "1",
    }
    with ServedProgram(folder, environment, "--model", "demo") as program:
        yield WarmServer(program, environment, folder)


@pytest.fixture
def run_here(
    server: WarmServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """Run a command in this process, in the environment of the server's user; its own engine outlives the commands."""
    from mlxk.entrypoints.cli.command import CommandContext
    from mlxk.entrypoints.cli.program import run

    monkeypatch.chdir(server.folder)
    own = build(attrs.evolve(read_settings(server.environment), use_server=False)).adapters.text_generator()
    assert isinstance(own, DeferredTextGenerator)

    def build_here(settings: Settings) -> Container:
        container = build(settings)
        if not settings.use_server:
            container.adapters.text_generator.override(providers.Object(KeptOpen(lambda: own.engine)))
        return container

    def execute(*arguments: str, **variables: str) -> tuple[int, str, str]:
        with open(os.devnull) as null:
            settings = read_settings({**server.environment, **variables})
            context = CommandContext(settings, build_here, lambda *_: 1, null.fileno())
            status = run(arguments, context)
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    yield execute
    own.close()


class KeptOpen(DeferredTextGenerator):
    """An engine that the end of a command does not close."""

    def close(self) -> None:
        """Leave it open."""


def generated_calls() -> Iterator[list[str]]:
    """Yield command lines of ``run``, of all kinds."""
    draw = random.Random(17)
    prompts = ["What is mlxk?", "Hello!", "How do I remove a model?", "Übergröße 🎈", "a" * 40, "x" * 20_000, ""]
    for _ in range(CALLS):
        call = ["run", draw.choice(["demo"] * 9 + ["nosuch"]), draw.choice(prompts), "--no-stdin"]
        call += draw.choice([["--temperature", "0"], ["--seed", str(draw.randrange(99))]])
        call += ["--max-tokens", str(draw.choice([1, 3, 12, 30]))]
        for flags in (
            ["--json"],
            ["--json"],
            ["--system", "Be brief."],
            ["--stop", "the"],
            ["--json-schema", "schema.json"],
            ["--no-chat-template"],
            ["--thinking"],
            ["--top-p", draw.choice(["0.5", "7"])],
            ["--repetition-penalty", "1.3"],
            ["--draft-model", "demo"],
            ["--tools", "tools.json"],
        ):
            if draw.random() < 0.15:
                call += flags
        yield call


def without_timings(text: str) -> object:
    """Return the output without what a warm engine changes: times, and prompt tokens that it has kept."""
    try:
        document = json.loads(text)
    except ValueError:
        return text
    if "data" not in document:
        return text
    data = document["data"] or {}
    data.pop("timings", None)
    data.get("usage", {}).pop("cached_tokens", None)
    return document


def test_words_statuses_and_json_are_the_same_with_and_without_the_server(
    server: WarmServer, run_here: Callable[..., tuple[int, str, str]]
) -> None:
    (server.folder / "schema.json").write_text('{"type": "object", "properties": {"a": {"enum": [1, 22]}}}')
    function = {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}
    (server.folder / "tools.json").write_text(json.dumps([{"type": "function", "function": function}]))
    before = server.metric("mlxk_completion_tokens_total")
    outcomes = set()
    for call in generated_calls():
        status, out, err = run_here(*call)
        status_here, out_here, err_here = run_here(*call, "--no-server")
        assert (status, without_timings(out), err) == (status_here, without_timings(out_here), err_here), call
        outcomes.add(status)
    assert outcomes == {0, 1, 2}
    assert server.metric("mlxk_completion_tokens_total") > before + CALLS


USES = {
    "with the server": ([], {}, r"\[computed by the server http://127\.0\.0\.1:\d+\]"),
    "with the flag": (["--no-server"], {}, None),
    "with the variable": ([], {"MLXK2_USE_SERVER": "0"}, None),
    "with another cache": ([], {"HF_HOME": "/nowhere"}, r"\[computed here: the server \S+ has another model cache\]"),
    "with another MLX": ([], {"MLX_X": "1"}, r"\[computed here: the server \S+ has another environment\]"),
    "in another session": ([], {"XDG_RUNTIME_DIR": "/nowhere"}, r"\[computed by the server http://127\.0\.0\.1:\d+\]"),
    "of another user": ([], {"XDG_STATE_HOME": "/nowhere"}, r"\[computed here: no server of this user is running\]"),
}


@pytest.mark.parametrize(("flags", "variables", "said"), USES.values(), ids=USES)
def test_verbose_says_where_the_answer_was_computed(
    run_here: Callable[..., tuple[int, str, str]], flags: list[str], variables: dict[str, str], said: str | None
) -> None:
    status, _, err = run_here("run", "demo", "Hello!", "--verbose", "--max-tokens", "3", *flags, **variables)
    assert status == 0
    assert re.findall(r"\[computed .*", err) == ([] if said is None else re.findall(said, err))
    assert (said is None) == ("[computed" not in err)


def test_answers_about_images_are_the_same_and_speech_is_computed_here(
    run_here: Callable[..., tuple[int, str, str]],
) -> None:
    call = ["run", "demo-vision", "What color is it?", "--image", "demo-vision/blue-square.jpg", "--verbose"]
    status, out, err = run_here(*call)
    assert (status, out) == run_here(*call, "--no-server")[:2]
    assert "It is blue." in out
    assert "[computed by the server" in err
    assert run_here("run", "demo-speech", "--audio", "demo-speech/hello.wav")[:2] == (0, "Hello world.\n")


def test_the_chat_answers_from_the_server(server: WarmServer, tmp_path: Path) -> None:
    before = server.metric("mlxk_completion_tokens_total")
    process = start(server.environment, tmp_path, "run", "demo", "--chat", "--verbose", MLXK2_USE_SERVER="1")
    try:
        say(process, "My name is Olga.", "Olga!")
        say(process, "What is my name?", "Your name is Olga.")
        process.sendline("/bye")
        process.expect(r"\[computed by the server http")
        process.wait()
    finally:
        end(process)
    assert server.metric("mlxk_completion_tokens_total") > before
    assert server.metric('mlxk_answer_seconds_count{model="demo",api="command"}') > 0


def test_vectors_are_the_same_with_and_without_the_server(
    server: WarmServer, run_here: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    model = build_bert(tmp_path / "bert").directory
    for flags in ([], ["--json"], ["--query"], ["--dimensions", "8"]):
        call = ["embed", model, "a man is eating food", "--verbose", *flags]
        status, out, err = run_here(*call, MLXK2_ENABLE_ALPHA_FEATURES="1")
        assert (status, out) == run_here(*call, "--no-server", MLXK2_ENABLE_ALPHA_FEATURES="1")[:2]
        assert "[computed by the server" in err or status == 1
    assert server.metric('mlxk_embedding_seconds_count{model="bert",api="command"}') > 0


PROGRAM = """
import sys
from mlxk.entrypoints.main import main
status = main(["run", "demo", "Hello!", "--no-stdin", "--max-tokens", "2"])
print(status, *{name.partition(".")[0] for name in sys.modules}, file=sys.stderr)
"""


def test_a_command_that_a_server_answers_loads_no_model_library(server: WarmServer) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=server.environment, capture_output=True, text=True, check=True, timeout=60
    )
    status, *modules = done.stderr.splitlines()[-1].split()
    heavy = {"PIL", "jinja2", "mlx", "mlx_lm", "mlx_vlm", "numpy", "rich", "structlog", "tokenizers", "transformers"}
    assert (status, heavy & set(modules)) == ("0", set())


def test_ctrl_c_cancels_the_answer_on_the_server(server: WarmServer, tmp_path: Path) -> None:
    talker = build_model(tmp_path / "talker", num_hidden_layers=8, max_position_embeddings=1_000_000).directory
    (tmp_path / "endless.json").write_text(json.dumps({"type": "array", "items": {"enum": [1, 2]}, "minItems": 10**5}))
    command = [sys.executable, "-m", "mlxk", "run", talker, "hello", "--json-schema", "endless.json", "--no-stdin"]
    with subprocess.Popen(command, env=server.environment, cwd=tmp_path, stdout=subprocess.PIPE) as process:
        try:
            assert eventually(lambda: server.metric("mlxk_answers_running") == 1, 60)
            process.send_signal(signal.SIGINT)
            assert eventually(lambda: server.metric("mlxk_answers_running") == 0, 60)
        finally:
            if process.returncode is None and server.metric("mlxk_answers_running"):
                process.kill()
    assert process.returncode == 130
