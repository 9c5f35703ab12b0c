"""What newcomers tried, replayed on a pseudo-terminal: each finding of a first look at the program, by its number.

Findings that are not here concern the README (10, see test_readme.py) and benchmarks (a part of 20); the chat page (a
part of 2) is asked for where a server runs (5).
"""

import json
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pexpect
import pytest
from chatting import PROMPT, end, leave, say, start
from hub.models import small_model
from hub.server import LoopbackHub
from models.cached_models import WITHOUT_WEIGHTS, put
from models.scripted_model import write_model
from models.tiny_models import TEMPLATE, build

import mlxk.adapters.builtin

pytestmark = pytest.mark.e2e

BUILT_IN = Path(mlxk.adapters.builtin.__file__).parent / "models"

Typed = Callable[..., tuple[str, int]]


@pytest.fixture
def environment(program_environment: dict[str, str]) -> dict[str, str]:
    """Return the variables of a newcomer, whose path has the program."""
    path = f"{Path(sys.executable).parent}:{program_environment['PATH']}"
    return {**program_environment, "PATH": path, "TERM": "dumb", "HF_HUB_DISABLE_XET": "1"}


@pytest.fixture
def begin(environment: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., "pexpect.spawn[str]"]]:
    """Type a line into a shell on a terminal, and return what runs."""
    begun: list[pexpect.spawn[str]] = []

    def type_line(line: str, columns: int = 80, **variables: str) -> "pexpect.spawn[str]":
        begun.append(
            pexpect.spawn(
                "/bin/sh",
                ["-c", line],
                env={**environment, **variables},
                cwd=str(tmp_path),
                encoding="utf-8",
                timeout=40,
                dimensions=(50, columns),
            )
        )
        return begun[-1]

    yield type_line
    for process in begun:
        end(process)


@pytest.fixture
def typed(begin: Callable[..., "pexpect.spawn[str]"]) -> Typed:
    """Type a line into a shell on a terminal, and return what it shows and its exit status."""

    def run(line: str, columns: int = 80, **variables: str) -> tuple[str, int]:
        process = begin(line, columns, **variables)
        shown: str = process.read()
        process.close()
        assert process.exitstatus is not None
        return shown.replace("\r\n", "\n"), process.exitstatus

    return run


@pytest.fixture
def models(environment: dict[str, str]) -> Path:
    """Return the home of a cache with three models, and one without weights."""
    home = Path(environment["HOME"])
    for name in ("mlx-community/Tiny-4bit", "mlx-community/Big-1B-4bit", "acme/Beta-2B-chat"):
        put(home, name)
    put(home, "mlx-community/Broken-4bit", WITHOUT_WEIGHTS)
    return home


def demo_files() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (BUILT_IN / "demo").iterdir() if path.is_file()}


def test_finding_01_piped_text_and_a_question_are_joined(typed: Typed, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("What is mlxk?\n")
    shown, status = typed('cat note.txt | mlxk run demo "Summarize this" --json | cat')
    document = json.loads(shown[shown.index("{") :])
    assert (status, "[joined to the prompt: standard input, 1 line]" in shown) == (0, True)
    assert document["data"]["prompt"] == "What is mlxk?\n\n\nSummarize this"
    assert typed('cat note.txt | mlxk run demo - "Summarize this"')[1] == 0
    shown, _ = typed("MLXK2_ENABLE_PIPES=1 echo 'What is mlxk?' | mlxk run demo -")
    assert "mlxk is the knife" in shown


def test_finding_03_models_are_found_and_chosen(typed: Typed, hub: LoopbackHub) -> None:
    hub.add("mlx-community/Llama-3.2-3B-4bit", small_model(), tags=("mlx",), parameters={"U32": 10})
    shown, status = typed("mlxk search llama 3b", HF_ENDPOINT=hub.url)
    assert (status, "mlx-community/Llama-3.2-3B-4bit" in shown, "| Fits |" in shown) == (0, True, True)
    shown, status = typed("mlxk recommend --for code")
    assert (status, "Qwen2.5-Coder-7B-Instruct-4bit" in shown, "| Fits" in shown) == (0, True, True)
    shown, _ = typed("mlxk show Llama-3.2-3B-4bit --remote", HF_ENDPOINT=hub.url)
    assert "Estimate: " in shown
    assert not hub.calls("/cdn/")


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize("columns", [60, 80])
@pytest.mark.parametrize("flags", ["", " --all", " --verbose --health", " --all --health"])
def test_finding_04_wide_tables_stay_whole(typed: Typed, columns: int, flags: str) -> None:
    shown, status = typed(f"mlxk list{flags}", columns)
    lines = [line for line in shown.splitlines() if " | " in line]
    assert (status, max(map(len, lines)) <= columns) == (0, True)
    assert not any(line.startswith(" ") for line in lines), "no row needs a second line"
    assert "Clean" not in lines[0]


def test_finding_05_a_running_server_shares_its_warm_model_and_is_seen_and_stopped(
    begin: Callable[..., "pexpect.spawn[str]"], typed: Typed
) -> None:
    server = begin("exec mlxk serve --port 0 --model demo", 200)
    server.expect(r"mlxk serves at (http://[\d.:]+)/v1")
    url = server.match.group(1)
    server.expect_exact(f"for a browser: {url}/\r\n")
    assert "page/app.js" in typed(f"curl -s -H 'Accept: text/html' {url}", 400)[0]
    shown, status = typed('mlxk run demo "What is mlxk?" -v', 200)
    assert (status, f"[computed by the server {url}" in shown) == (0, True), shown
    shown, status = typed("mlxk ps", 200)
    assert (status, "demo" in shown) == (0, True), shown
    assert typed("mlxk stop demo", 200)[1] == 0
    assert typed("mlxk stop --all", 200)[1] == 0
    server.expect(pexpect.EOF)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("mlxk lst", "Did you mean list?"),
        ("mlxk chat demo", "Did you mean run?"),
        ("mlxk run demo --temprature 0", "Did you mean --temperature? 'mlxk run --help' lists the flags."),
        ("mlxk run", "the following arguments are required: MODEL\n"),
    ],
)
def test_finding_06_typos_get_a_suggestion_and_no_wall(typed: Typed, line: str, said: str) -> None:
    shown, status = typed(line)
    assert (status, said in shown, len(shown.splitlines())) == (2, True, 2)
    assert "choose from" not in shown


@pytest.mark.usefixtures("models")
def test_finding_07_hints_can_be_followed(
    typed: Typed, begin: Callable[..., "pexpect.spawn[str]"], tmp_path: Path
) -> None:
    shown, _ = typed("mlxk run llama3.2:1b hi", 200)
    assert "Models of the hub are named like" in shown
    build(tmp_path / "tiny-llama")
    shown, _ = typed("mlxk run tiny-llama hi", 200)
    assert "Did you mean the folder ./tiny-llama?" in shown
    assert typed("mlxk show ./tiny-llama")[1] == 0
    asking = begin("mlxk run mlx-community/Foo hi", 200)
    asking.expect_exact("Look for mlx-community/Foo on the hub? [y/N]: ")
    asking.sendline("n")
    asking.expect(pexpect.EOF)
    assert "Did you mean" not in asking.before


def test_finding_08_a_config_that_does_not_fit_is_no_healthy_model(typed: Typed, tmp_path: Path) -> None:
    build(tmp_path / "ws")
    config = json.loads((tmp_path / "ws" / "config.json").read_text())
    (tmp_path / "ws" / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 7}))
    shown, _ = typed("mlxk health ./ws", 200)
    assert shown.startswith("unhealthy")
    shown, status = typed("mlxk run ./ws hi", 200)
    assert (status, "1 tensors" in shown, ".." in shown.replace("...", "")) == (1, False, False)


def test_finding_09_save_overwrites_nothing_unasked(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("precious")
    chat = start(environment, tmp_path, "run", "demo")
    chat.sendline("/save precious.txt")
    chat.expect_exact("'precious.txt' exists. Replace it? [y/N]: ")
    say(chat, "n", "not saved")
    assert (tmp_path / "precious.txt").read_text() == "precious"
    leave(chat)


def test_finding_11_run_offers_to_fetch(begin: Callable[..., "pexpect.spawn[str]"], hub: LoopbackHub) -> None:
    hub.add("mlx-community/Small-4bit", demo_files(), tags=("mlx",))
    asking = begin('mlxk run Small-4bit "What is mlxk?"', HF_ENDPOINT=hub.url)
    asking.expect_exact("Look for Small-4bit on the hub? [y/N]: ")
    assert hub.calls() == []
    asking.sendline("y")
    asking.expect_exact("Fetch mlx-community/Small-4bit? [y/N]: ")
    asking.sendline("y")
    asking.expect_exact("mlxk is the knife")


def test_finding_12_agents_have_a_launcher_and_their_apis(typed: Typed) -> None:
    for agent, needed in (("codex", "/v1"), ("claude", "ANTHROPIC_BASE_URL"), ("opencode", "opencode")):
        shown, status = typed(f"mlxk launch {agent} --print", 200)
        assert (status, needed in shown, "mlxk serve" in shown) == (0, True, True), shown


@pytest.mark.usefixtures("models")
def test_finding_13_list_says_what_it_hides(typed: Typed) -> None:
    shown, _ = typed("mlxk list", 200)
    assert "Not shown: " in shown
    names = [line.split(" | ")[0].strip() for line in shown.splitlines() if " | " in line][1:]
    assert names == sorted(names, key=str.lower)
    shown, status = typed("mlxk list nosuch")
    assert (status, shown) == (0, "No model fits 'nosuch'.\n")
    shown, _ = typed("mlxk list 'Tiny*' --all")
    assert "Tiny-4bit" in shown


def test_finding_14_a_full_context_is_no_dead_end(environment: dict[str, str], tmp_path: Path) -> None:
    write_model(tmp_path / "small", TEMPLATE, "I hear you.", context=700, special=("<|im_start|>",))
    chat = start(environment, tmp_path, "run", "./small")
    for _ in range(8):
        chat.sendline("word " * 25)
        if chat.expect_exact(["I hear you.", "leave the message? [d/s/N]: "]) == 1:
            break
        chat.expect_exact(PROMPT)
    chat.sendline("d")
    chat.expect(r"dropped the (oldest turn|\d oldest turns)")
    chat.expect_exact("I hear you.")
    leave(chat)


@pytest.mark.usefixtures("models")
def test_finding_15_health_puts_the_broken_first_and_the_summary_last(typed: Typed) -> None:
    shown, status = typed("mlxk health", 200, TERM="xterm-256color")
    lines = shown.splitlines()
    assert (status, lines[0].startswith("\x1b[31munhealthy mlx-community/Broken-4bit")) == (0, True)
    assert lines[-1] == "Summary: total 7, healthy 6, unhealthy 1"


@pytest.mark.usefixtures("models")
def test_finding_16_a_misspelt_name_is_told_its_spelling(typed: Typed, hub: LoopbackHub) -> None:
    shown, status = typed("mlxk pull mlx-community/Bigg-1B-4bit", 200, HF_ENDPOINT=hub.url)
    assert (status, "Did you mean mlx-community/Big-1B-4bit" in shown) == (1, True)
    shown, status = typed("mlxk rm Tny-4bit", 200)
    assert (status, "Did you mean mlx-community/Tiny-4bit?" in shown) == (1, True)


def test_finding_17_settings_names_and_chats_are_kept(
    typed: Typed, environment: dict[str, str], tmp_path: Path
) -> None:
    shown, status = typed("mlxk config path", 200)
    path = Path(shown.strip())
    assert (status, path.is_relative_to(environment["HOME"])) == (0, True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('log_level = "error"\n')
    shown, _ = typed("mlxk config show", 120)
    assert any(line.split()[:3] == ["log_level", "|", "error"] for line in shown.splitlines()), shown
    assert typed("mlxk alias helper demo", 200)[1] == 0
    assert typed("mlxk profile polite --model demo --system 'Be polite.'", 200)[1] == 0
    for name in ("helper", "polite"):
        shown, status = typed(f'mlxk run {name} "What is mlxk?"', 200)
        assert (status, "mlxk is the knife" in shown) == (0, True), shown
    chat = start(environment, tmp_path, "run", "demo", "--keep")
    say(chat, "My name is Olga.", "Olga!")
    leave(chat)
    chat = start(environment, tmp_path, "run", "--continue")
    say(chat, "What is my name?", "Your name is Olga.")
    leave(chat)


def test_finding_18_the_chat_helps(environment: dict[str, str], tmp_path: Path) -> None:
    chat = start(environment, tmp_path, "run", "demo")
    say(chat, "/hlep", "Did you mean /help?")
    chat.sendline("/help")
    chat.expect_exact(PROMPT)
    assert all(name in chat.before for name in ("/bye", "/quit", "/retry", "/stats"))
    leave(chat)
    chat = start(environment, tmp_path, "run", "demo", TERM="xterm", PROMPT_TOOLKIT_NO_CPR="1")
    chat.send("/he\t")
    chat.expect_exact("lp")
    chat.sendcontrol("u")
    leave(chat)


def test_finding_19_paths_in_a_prompt_are_attached(typed: Typed, tmp_path: Path) -> None:
    (tmp_path / "square.jpg").write_bytes((BUILT_IN / "demo-vision" / "blue-square.jpg").read_bytes())
    (tmp_path / "note.txt").write_text("What is mlxk?")
    shown, status = typed('mlxk run demo-vision "What color is it? ./square.jpg"', 200)
    assert (status, "[attached: ./square.jpg]" in shown, "It is blue." in shown) == (0, True, True)
    shown, status = typed("mlxk run demo --file note.txt", 200)
    assert (status, "mlxk is the knife" in shown) == (0, True)


def test_finding_20_one_answer_has_its_speed(typed: Typed) -> None:
    assert "tokens/s; prompt " in typed("mlxk run demo Hello --verbose")[0]
    shown, status = typed("mlxk run demo-speech --audio demo-speech/hello.wav -v")
    assert (status, " s of sound in " in shown) == (0, True), shown


@pytest.mark.usefixtures("models")
def test_finding_21_usual_short_flags_and_examples(typed: Typed) -> None:
    for line in (
        "mlxk -V",
        "mlxk list -a",
        "mlxk list -v",
        "mlxk run -m demo -s 'Be kind.' Hello",
        "mlxk rm -y Tiny-4bit",
    ):
        assert typed(line)[1] == 0, line
    for command in ("list", "run", "pull", "recommend", "serve"):
        assert f"examples:\n  mlxk {command}" in typed(f"mlxk {command} --help")[0]


def test_finding_22_a_server_for_the_network_says_how_it_is_reached(
    begin: Callable[..., "pexpect.spawn[str]"], typed: Typed
) -> None:
    server = begin("exec mlxk serve --host 0.0.0.0 --port 0", 200)
    server.expect(r"mlxk serves at http://127\.0\.0\.1:(\d+)/v1")
    port = server.match.group(1)
    server.expect_exact(f"for a browser: http://127.0.0.1:{port}/docs")
    assert "<html" in typed(f"curl -s localhost:{port}/docs", 400)[0]
    server.expect([rf"other machines reach it at http://[\d.]+:{port}/v1", "serving"])
    shown, _ = typed(f"curl -s -H 'Host: mymac.example' localhost:{port}/v1/models", 400)
    assert "--allowed-host mymac.example" in shown
    shown, _ = typed(f"curl -s -H 'Origin: null' localhost:{port}/v1/models", 400)
    assert "--cors-origin null" in shown
    server.sendintr()
    server.expect(pexpect.EOF)


def test_finding_23_lines_of_old_pages_work_as_written(
    typed: Typed, begin: Callable[..., "pexpect.spawn[str]"]
) -> None:
    shown, status = typed("mlxk show demo --json --config | jq -r .data.model_config.model_type")
    assert (status, shown) == (0, "llama\n")
    server = begin("MLXK2_RELOAD=1 exec mlxk serve --port 0 --log-level debug", 200)
    server.expect_exact("mlxk serves at")
    server.sendintr()
    server.expect(pexpect.EOF)
    shown, _ = typed(
        "mlxk run demo-vision --image demo-vision/blue-square.jpg demo-vision/red-circle.png --chunk 1 'What color?'",
        200,
    )
    assert ("Chunk 1/2: Image 1<" in shown, "Chunk 2/2: Image 2<" in shown, "+00:00" in shown) == (True, True, False)
    assert "2023-12-06 12:19 |" in shown


def test_finding_24_waits_are_explained_and_the_next_step_is_named(
    begin: Callable[..., "pexpect.spawn[str]"], typed: Typed, hub: LoopbackHub, environment: dict[str, str]
) -> None:
    hub.add("mlx-community/Small-4bit", demo_files(), tags=("mlx",))
    shown, _ = typed("mlxk pull Small-4bit", 200, HF_ENDPOINT=hub.url)
    assert shown.splitlines()[-1] == "Use it: mlxk run mlx-community/Small-4bit"
    (weights,) = Path(environment["HF_HOME"]).glob("hub/models--*Small-4bit/snapshots/*/model.safetensors")
    weights.resolve().unlink()
    weights.unlink()
    asking = begin("mlxk run Small-4bit 'What is mlxk?'", 200, HF_ENDPOINT=hub.url)
    asking.expect_exact("Model 'mlx-community/Small-4bit' is not whole")
    asking.expect_exact("Fetch the rest from the hub? [y/N]: ")
    asking.sendline("y")
    asking.expect_exact("mlxk is the knife")
    waits = """import mlxk.entrypoints.cli.progress as p, sys
p.SPINNER_DELAY_SECONDS = 0.0
from mlxk.entrypoints.main import main
sys.exit(main(sys.argv[1:]))"""
    slow = f"{shlex.quote(sys.executable)} -c {shlex.quote(waits)}"
    for line, said in (
        ("convert demo ./made --quantize 8", "Reading the model"),
        ("clone demo ./copy", "Reading the model"),
        ("du", "Measuring the cache"),
        ("rm mlx-community/Small-4bit", "Removing"),
        ("run demo Hello", "Loading the model"),
    ):
        shown, status = typed(f"{slow} {line}", 120, TERM="xterm-256color")
        assert (status, said in shown) == (0, True), shown


@pytest.mark.usefixtures("models")
def test_finding_25_words_are_explained_and_offers_can_be_taken(
    typed: Typed, environment: dict[str, str], hub: LoopbackHub, tmp_path: Path
) -> None:
    shown, _ = typed("mlxk list --help")
    assert "ws?, one that mlxk did not make" in " ".join(shown.split())
    put(Path(environment["HOME"]), "acme/torch", {**WITHOUT_WEIGHTS, "pytorch_model.bin": b"0" * 1000})
    assert "(fits" not in typed("mlxk show acme/torch")[0]
    hub.add("org/page", small_model(), tags=("mlx",))
    shown, status = typed("mlxk pull https://huggingface.co/org/page --dry-run", 200, HF_ENDPOINT=hub.url)
    assert (status, shown.startswith("pull: org/page")) == (0, True)
    offered = {"_ARGCOMPLETE": "1", "COMP_LINE": "mlxk rm ", "COMP_POINT": "8", "COMP_TYPE": "9"}
    shown, _ = typed("exec 8>&1; mlxk", **offered)
    assert ("Tiny-4bit" in shown, "demo" in shown) == (True, False)
    assert "compinit" in typed("mlxk completion zsh | head -1", 200)[0]
    page = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    assert not any(odd in page for odd in ("the first of these that fits is meant", "in any case of letters"))
